"""The services as processes apart, with a real Redis, over loopback: what is measured."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving import messages
from benchmarks.serving.load import Job
from benchmarks.serving.loader import Loader
from benchmarks.serving.servers import Servers, services
from benchmarks.serving.systems import Ask, System
from benchmarks.serving.version import BenchVersion
from benchmarks.serving.workload import Workload
from forward_ofa_cli.capacity.costs import LAYOUTS, TARGETS
from tests.support.redis_server import RedisServer


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of processes so far, all threads, to the nanosecond.

    The kernel's ticks are 10 ms, too coarse for the small shares of short runs. The number of
    a process's clock is made as clock_getcpuclockid(3) makes it on Linux.
    """
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


@dataclass
class Chain:
    """Running processes. pids: by kind, `redis` too. addresses: where devices ask, one a replica
    of the first kind. metrics: HOST:PORT of each kind's first process."""

    layout: str
    version: BenchVersion
    pids: dict[str, list[int]] = field(default_factory=dict)
    addresses: dict[str, list[str]] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)

    @property
    def front(self) -> list[str]:
        """Where devices ask."""
        return self.addresses[LAYOUTS[self.layout][0]]

    def all_pids(self) -> list[int]:
        """Of every process, Redis included."""
        return [pid for pids in self.pids.values() for pid in pids]

    def job(self, workload: Workload, ask: Ask, loader: Loader, replica: int = 0) -> Job:
        """A closed-loop job of one client against one replica of the front."""
        pids, target = tuple(self.all_pids()), self.front[replica]
        system = System("chain", self.version, target, pids, "ours", messages.OURS)
        return system.job(workload, ask, loader)

    def counter(self, kind: str, name: str) -> float:
        """A metric's value now, summed over its labels."""
        with urllib.request.urlopen(f"http://{self.metrics[kind]}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def start_chain(
    servers: Sequence[Servers],
    version: BenchVersion,
    layout: str,
    redis: RedisServer,
    *,
    front_options: Sequence[str] = (),
) -> Chain:
    """One replica of each kind for each of `servers`, which may be pinned to different cores.

    front_options: more of `python -m services` for the process that devices talk to.
    Raises Unavailable.
    """
    chain = Chain(layout, version, {"redis": [redis.pid]})
    kinds = LAYOUTS[layout]
    for place, kind in reversed(list(enumerate(kinds))):
        options = ["--target", TARGETS[kind], "--metrics", "127.0.0.1:0"]
        if place + 1 < len(kinds):
            behind = kinds[place + 1]
            option = "--mapper" if behind == "mapper" else "--assembler"
            options += [option, ",".join(chain.addresses[behind])]
        if place == 0:
            options += ["--sessions", redis.url, *front_options]
        for number, group in enumerate(servers):
            name = f"{layout}-{kind}-{number}"
            pid, ready = _start(group, version.registry, name, options)
            chain.pids.setdefault(kind, []).append(pid)
            chain.addresses.setdefault(kind, []).append(ready["address"])
            chain.metrics.setdefault(kind, ready["metrics"])
    return chain


def _start(
    servers: Servers, registry: Path, name: str, options: Sequence[str]
) -> tuple[int, dict[str, str]]:
    file = servers.folder / f"{name}.ready"
    file.unlink(missing_ok=True)
    command = services("--registry", str(registry), "--listen", "127.0.0.1:0")
    command += ["--ready-file", str(file), "--log-level", "WARNING", *options]
    process = servers.start(name, command)
    return process.pid, servers.wait_ready_file(process, name, file)
