"""What devices tell about the networks that they had: counts, checked, added up by version.

They are claims of strangers: a report weighs `MOST` touches at most, nothing but the metrics
depends on it, and only versions that are in memory become a label.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from services.runtime.metrics import Metrics

MOST = 100
_OTHER = "other"


@dataclass(frozen=True)
class DeviceReport:
    """See DeviceReport in controller.proto."""

    version: str
    touched: int
    hits: int
    damaged: int

    @property
    def sane(self) -> bool:
        return self.hits <= self.touched <= MOST and self.damaged <= MOST


class Reports:
    """loaded: the versions in memory now."""

    def __init__(self, metrics: Metrics, loaded: Callable[[], Collection[str]]) -> None:
        self._metrics, self._loaded = metrics, loaded
        self._counted = metrics.device_reports.labels("counted")
        self._ignored = metrics.device_reports.labels("ignored")

    def count(self, report: DeviceReport) -> None:
        """Adds a report up, or ignores it."""
        if not report.sane:
            self._ignored.inc()
            return
        self._counted.inc()
        if report.damaged:
            self._metrics.device_damaged.inc(report.damaged)
        if report.touched:
            version = report.version if report.version in self._loaded() else _OTHER
            self._metrics.online_touches.labels(version).inc(report.touched)
            self._metrics.online_hits.labels(version).inc(report.hits)
