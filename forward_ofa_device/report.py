"""What a device tells the cloud of how its networks did: counts, no items and no times."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_device.errors import CorruptFile, DeviceError, WrongVersion

MOST = 20
"""What the cloud takes of each count; a device stops counting there."""
TOP = 10


class Tally:
    """Counts since the last report that was answered. Safe for threads; in memory only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = ""
        self._shown: frozenset[str] = frozenset()
        self._touched = self._hits = self._damaged = 0

    def ranked(self, version: str, best: Sequence[str]) -> None:
        """A network of `version` ranked the session's candidates: the TOP best of those that
        the user has not touched yet."""
        with self._lock:
            if version != self._version:
                # Counts are of one version; the few of the old one that were not told are lost.
                self._version, self._touched, self._hits = version, 0, 0
            self._shown = frozenset(best)

    def touched(self, item_ids: Sequence[str]) -> None:
        """The user touched these for the first time; others are in no ranking."""
        with self._lock:
            if self._version:
                counted = item_ids[: MOST - self._touched]
                self._touched += len(counted)
                self._hits += sum(item_id in self._shown for item_id in counted)

    def failed(self, error: DeviceError) -> None:
        """Counts what arrived and was thrown away."""
        if isinstance(error, (CorruptFile, WrongVersion)):
            with self._lock:
                self._damaged = min(self._damaged + 1, MOST)

    def report(self) -> pb.DeviceReport | None:
        """What there is to tell; None: nothing."""
        with self._lock:
            if not self._touched and not self._damaged:
                return None
            return pb.DeviceReport(
                version=self._version,
                touched=self._touched,
                hits=self._hits,
                damaged=self._damaged,
            )

    def told(self, report: pb.DeviceReport | None) -> None:
        """The cloud has answered a request that carried `report`."""
        if report is None:
            return
        with self._lock:
            self._damaged -= report.damaged
            if report.version == self._version:
                self._touched -= report.touched
                self._hits -= report.hits
