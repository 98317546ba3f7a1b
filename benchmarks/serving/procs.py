"""What processes and their children use."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import psutil

MEGABYTE = 1_000_000
_NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")


def end_on_term() -> None:
    """SIGTERM unwinds as Ctrl-C does, so that no server is left behind."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """The processes with all their descendants, those that have gone left out."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
    return list(found.values())


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """CPU time, user and system, so far."""
    return sum(_cpu(processes))


def machine_cpu_seconds() -> float:
    """CPU time of everything on this machine so far, what a host took away included."""
    times = psutil.cpu_times()._asdict()
    return float(sum(value for name, value in times.items() if name not in _NOT_BUSY))


def _cpu(processes: Iterable[psutil.Process]) -> Iterator[float]:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            yield times.user + times.system


@dataclass(frozen=True)
class Usage:
    """Sums over a tree. Megabytes; rss counts shared pages in each process, pss divides them,
    uss leaves them out."""

    rss_mb: float = 0.0
    pss_mb: float = 0.0
    uss_mb: float = 0.0
    fds: int = 0
    threads: int = 0
    processes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


def usage(pids: Iterable[int]) -> Usage:
    """What a tree uses now."""
    rss = pss = uss = 0.0
    fds = threads = count = 0
    for process in tree(pids):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            rss, pss, uss = rss + memory.rss, pss + memory.pss, uss + memory.uss
            fds, threads, count = (
                fds + process.num_fds(),
                threads + process.num_threads(),
                count + 1,
            )
    return Usage(rss / MEGABYTE, pss / MEGABYTE, uss / MEGABYTE, fds, threads, count)
