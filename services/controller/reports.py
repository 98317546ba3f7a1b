"""What devices tell about the networks that they had: counts, checked, added up by version.

They are claims of strangers, and alerts look at their sums: so a report weighs `MOST` touches and
one damage at most, and counts for the version that it came with, if that is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from services.runtime.metrics import Metrics

MOST = 20
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
        return self.hits <= self.touched <= MOST


class Reports:
    """loaded: the versions in memory now."""

    def __init__(self, metrics: Metrics, loaded: Callable[[], Collection[str]]) -> None:
        self._metrics, self._loaded = metrics, loaded
        self._counted = metrics.device_reports.labels("counted")
        self._ignored = metrics.device_reports.labels("ignored")

    def count(self, report: DeviceReport, asked: str) -> None:
        """Adds a report up, or ignores it. asked: the version that its request names; what is
        told of another one counts as "other"."""
        if not report.sane:
            self._ignored.inc()
            return
        self._counted.inc()
        if report.damaged:
            self._metrics.device_damaged.inc()
        if report.touched:
            known = report.version == asked and asked in self._loaded()
            version = report.version if known else _OTHER
            self._metrics.online_touches.labels(version).inc(report.touched)
            self._metrics.online_hits.labels(version).inc(report.hits)
