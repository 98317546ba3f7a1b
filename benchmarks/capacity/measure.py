"""Everything that `costs.toml` has, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

from benchmarks.capacity import extras
from benchmarks.capacity.chain import start_chain
from benchmarks.capacity.points import (
    Point,
    Question,
    fit,
    fit_kinds,
    measure_points,
    questions,
)
from benchmarks.serving.loader import Loader, LoadError
from benchmarks.serving.machine import describe
from benchmarks.serving.servers import Servers
from benchmarks.serving.venvs import Unavailable
from benchmarks.serving.version import make_version
from forward_ofa_cli.capacity.costs import LAYOUTS, Batching, Costs, Downloads, Tls
from tests.support.redis_server import RedisServer

COMMAND = "python -m benchmarks.capacity"
T = TypeVar("T")
_ATTEMPTS = 4


@dataclass(frozen=True)
class Effort:
    """clients: connections that ask at once. rounds, seconds: of each question. calls: of each
    small measurement. steps: of training; 0: figures of training are not measured."""

    clients: int = 4
    rounds: int = 3
    seconds: float = 1.5
    calls: int = 150
    sessions: int = 20_000
    steps: int = 3


@dataclass
class Findings:
    """costs: what the file says. points, batches: what it was made of."""

    costs: Costs
    points: list[Point] = field(default_factory=list)
    batches: list[Point] = field(default_factory=list)
    session_bytes: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": describe(),
            "points": [point.as_json() for point in self.points],
            "batches": [point.as_json() for point in self.batches],
            "session_bytes": self.session_bytes,
        }


class Measurement:
    """One run: servers come and go layout by layout. cores: of servers and load generator;
    empty: wherever the system puts them."""

    def __init__(
        self, folder: Path, effort: Effort, cores: list[int], say: Callable[[str], None]
    ) -> None:
        self._folder, self._effort, self._cores, self._say = folder, effort, cores, say
        self._version = make_version(folder)
        self._points: list[Point] = []
        self._batches: list[Point] = []
        self._memory: dict[str, Any] = {}

    def run(self) -> Findings:
        """Minutes. Raises Unavailable, LoadError, RuntimeError."""
        effort = self._effort
        with Loader(self._cores) as loader:
            for layout in LAYOUTS:
                self._patiently(partial(self._layout, layout, loader))
        cpu, residual = fit_kinds(self._points)
        self._say("sessions in Redis")
        with _redis(self._folder / "sessions") as server:
            sessions, seen = extras.measure_redis(server, effort.sessions)
        self._say("connections, downloads, small calls")
        tls, downloads, call = self._patiently(self._front)
        self._say("retrieval, ranking, training")
        costs = Costs(
            cpu=cpu,
            memory=self._memory,
            downloads=downloads,
            tls=tls,
            redis=sessions,
            retrieval=extras.measure_retrieval(),
            ranking=extras.measure_ranking(self._version, call),
            trainer=extras.measure_trainer(effort.steps),
            batching=self._batching(),
            origin=origin(effort),
            residual=residual,
        )
        return Findings(costs, self._points, self._batches, seen)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Tried anew: where others stop our processes for a while, servers start too late."""
        for left in range(_ATTEMPTS - 1, -1, -1):
            try:
                return work()
            except (Unavailable, LoadError, RuntimeError, OSError, grpc.RpcError) as error:
                if not left:
                    raise
                self._say(f"once more, since {type(error).__name__}: {error}")
        raise AssertionError("not reached")

    def _layout(self, layout: str, loader: Loader) -> None:
        effort = self._effort
        work = self._folder / f"{layout}-{time.monotonic_ns()}"
        version = make_version(work)
        points: list[Point] = []
        with _redis(work) as server, Servers(work / "logs", self._cores) as servers:
            chain = start_chain([servers], version, layout, server)
            asked = questions(layout, effort.clients)
            points += measure_points(
                chain, asked, loader, rounds=effort.rounds, seconds=effort.seconds, say=self._say
            )
            batches: list[Point] = []
            if layout == "split":
                more = [Question(clients=clients) for clients in (1, 16)]
                batches += measure_points(
                    chain, more, loader, rounds=effort.rounds, seconds=effort.seconds,
                    say=self._say,
                )  # fmt: skip
            self._say(f"{layout}: memory with a second version")
            self._memory |= extras.measure_memory(chain, partial(extras.publish_larger, version))
        self._points += points
        self._batches += batches

    def _front(self) -> tuple[Tls, Downloads, float]:
        ca, (certificate, key) = extras.certificate(self._folder / "tls")
        secure = ["--tls-cert", str(certificate), "--tls-key", str(key)]
        calls = self._effort.calls
        with (
            _redis(self._folder / "front") as server,
            Servers(self._folder / "front" / "logs", self._cores) as servers,
            Servers(self._folder / "front" / "secure", self._cores) as others,
        ):
            plain = start_chain([servers], self._version, "one", server)
            secured = start_chain([others], self._version, "one", server, front_options=secure)
            tls = extras.measure_tls(plain, secured, ca, calls)
            return tls, extras.measure_downloads(plain, calls), extras.measure_call(plain, calls)

    def _batching(self) -> Batching:
        """From the mapper's CPU at several numbers of clients: start / batch + each."""
        all_six = Question(clients=self._effort.clients)
        points = [*self._batches, *(p for p in self._points if p.question == all_six)]
        points = [point for point in points if "mapper" in point.cpu]
        rows = np.array([[1 / point.batch, 1.0] for point in points])
        return Batching(*fit(rows, np.array([point.cpu["mapper"] for point in points])))


class _redis:
    """A Redis for a `with`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._server = RedisServer(folder)

    def __enter__(self) -> RedisServer:
        self._server.start()
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.kill()


def origin(effort: Effort) -> dict[str, str]:
    """Machine, date, commit, command."""
    machine = describe()
    return {
        "cpu": str(machine["cpu"]),
        "cores": str(machine["cores"]),
        "system": str(machine["system"]),
        "python": str(machine["python"]),
        "time": str(machine["time"]),
        "revision": str(machine["revision"])[:12],
        "command": COMMAND,
        "load": f"{effort.clients} clients in a closed loop; load average "
        + ", ".join(str(value) for value in machine["load_average"]),
    }


def as_toml(costs: Costs) -> str:
    """The file, as `read_costs` reads it."""
    lines = [
        "# What `forward-ofa plan` computes with. Written by the command below; CPU in",
        "# milliseconds of one core, memory in bytes. Names: costs.py beside this file.",
        "",
        *_table("origin", costs.origin),
        *_table("residual", costs.residual),
    ]
    for kind, values in costs.cpu.items():
        lines += _table(f"cpu.{kind}", values)
    for kind, memory in costs.memory.items():
        lines += _table(f"memory.{kind}", vars(memory))
    for name in ("downloads", "tls", "redis", "retrieval", "ranking", "trainer", "batching"):
        lines += _table(name, vars(getattr(costs, name)))
    return "\n".join(lines)


def _table(name: str, values: Any) -> list[str]:
    return [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in values.items()), ""]


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(round(value)) if value >= 1000 else f"{value:.4f}"
