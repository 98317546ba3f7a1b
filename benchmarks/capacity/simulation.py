"""The services as queues: what waiting times a plan's pods give.

    python -m benchmarks.capacity.simulation --devices 1000000 --layout split

simulates a day of that plan hour by hour, then its peak with a zone lost. Each process handles
one thing at a time (Python's lock), in the order of arrival, on a core that it may share; a mapper
takes everything that waits into one product, up to 32; devices meet fronts by chance, and each
front asks those behind it by turns; a front refuses what is beyond its limit of calls at once.
Service times come from the measured costs. Not in it: the network's time, garbage collection,
an adaptive limit, requests of several versions, losses.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import simpy
from rich.console import Console
from rich.table import Table

from forward_ofa_cli.capacity.costs import LAYOUTS, Batching, Costs, Work, read_costs
from forward_ofa_cli.capacity.demand import Demand
from forward_ofa_cli.capacity.planning import Plan, make_plan
from forward_ofa_cli.capacity.sizes import Shape
from forward_ofa_device.backbones.contract import BackboneConfig

_Process = Generator[Any, Any, None]
_BEFORE = 0.4
"""Share of a hop's work that is done before what is behind it is asked; the rest is the reply."""
MAX_BATCH = 32
PEAK_HOUR = 20


@dataclass(frozen=True)
class Stage:
    """One kind of process. ms: of one request. cores: which core each replica runs on."""

    kind: str
    ms: float
    cores: tuple[int, ...]


@dataclass(frozen=True)
class System:
    """stages: as a request passes them. batching: of the last one, in place of its ms; None: it
    takes requests one by one. limit: calls at once in a replica of the first. client_ms: of whoever
    asks, on the core `client_core`; None: it costs nothing. variation: standard
    deviation of a service time by its mean, 1 is exponential. quantum: milliseconds that a
    process keeps a core while others want it. share: of a core that is ours, where strangers
    take the rest."""

    stages: tuple[Stage, ...]
    batching: Batching | None = None
    limit: int = 256
    client_ms: float = 0.0
    client_core: int | None = None
    variation: float = 0.0
    quantum: float = 1.0
    share: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """rps: answered a second. Milliseconds. busy: kind -> share of a core, mean of its replicas.
    refused: share of the requests. batch: mean requests of a product."""

    rps: float
    p50: float
    p99: float
    mean: float
    busy: dict[str, float]
    refused: float
    batch: float


class _Replica:
    """A process: one thing at a time, in order."""

    def __init__(self, world: _World, kind: str, core: int) -> None:
        self.world, self.kind, self.core = world, kind, core
        self.lock = simpy.Resource(world.env)
        self.waiting: deque[simpy.Event] = deque()
        self.bell: simpy.Event | None = None
        self.calls = 0
        self.behind: Iterator[_Replica] = iter(())

    def work(self, ms: float) -> _Process:
        with self.lock.request() as turn:
            yield turn
            yield from self.world.run(self.kind, self.core, self.world.draw(ms))

    def submit(self) -> simpy.Event:
        """For a process that batches."""
        done = self.world.env.event()
        self.waiting.append(done)
        if self.bell is not None and not self.bell.triggered:
            self.bell.succeed()
        return done

    def batches(self, costs: Batching) -> _Process:
        while True:
            if not self.waiting:
                self.bell = self.world.env.event()
                yield self.bell
            taken = [self.waiting.popleft() for _ in range(min(MAX_BATCH, len(self.waiting)))]
            ms = self.world.draw(costs.start + costs.each * len(taken))
            yield from self.world.run(self.kind, self.core, ms)
            self.world.batch_sizes.append(len(taken))
            for done in taken:
                done.succeed()


class _World:
    """Everything of one run."""

    def __init__(self, system: System, seed: int) -> None:
        self.env, self.system, self.rng = simpy.Environment(), system, random.Random(seed)
        used = {core for stage in system.stages for core in stage.cores}
        if system.client_core is not None:
            used.add(system.client_core)
        self.cores = {core: simpy.Resource(self.env) for core in used}
        self.busy = {stage.kind: 0.0 for stage in system.stages} | {"client": 0.0}
        self.batch_sizes: list[int] = []
        self.latencies: list[tuple[float, float]] = []
        self.refused: list[float] = []
        self.tiers = [
            [_Replica(self, stage.kind, core) for core in stage.cores] for stage in system.stages
        ]
        for tier, behind in itertools.pairwise(self.tiers):
            for replica in tier:
                # A client's turns begin anywhere, or all would ask the same one at once.
                start = self.rng.randrange(len(behind))
                replica.behind = itertools.cycle(behind[start:] + behind[:start])
        self.client = _Replica(self, "client", system.client_core or 0)
        if system.batching is not None:
            for replica in self.tiers[-1]:
                self.env.process(replica.batches(system.batching))

    def draw(self, ms: float) -> float:
        variation = self.system.variation
        if not variation or not ms:
            return ms
        shape = 1 / variation**2
        return self.rng.gammavariate(shape, ms / shape)

    def run(self, kind: str, core: int, ms: float) -> _Process:
        """On a core that is shared by turns."""
        while ms > 1e-9:
            part = min(ms, self.system.quantum)
            with self.cores[core].request() as turn:
                yield turn
                yield self.env.timeout(part / self.system.share)
            self.busy[kind] += part
            ms -= part

    def request(self, due: float) -> _Process:
        front = self.rng.choice(self.tiers[0])
        if front.calls >= self.system.limit:
            self.refused.append(due)
            return
        front.calls += 1
        yield from self._hop(0, front)
        front.calls -= 1
        if self.system.client_core is not None:
            yield from self.client.work(self.system.client_ms)
        self.latencies.append((due, self.env.now - due))

    def _hop(self, place: int, replica: _Replica) -> _Process:
        stage, last = self.system.stages[place], place == len(self.tiers) - 1
        if last:
            if self.system.batching is not None:
                yield replica.submit()
            else:
                yield from replica.work(stage.ms)
            return
        yield from replica.work(stage.ms * _BEFORE)
        yield from self._hop(place + 1, next(replica.behind))
        yield from replica.work(stage.ms * (1 - _BEFORE))

    def arrivals(self, rate: float, requests: int) -> _Process:
        """Poisson. rate: a second."""
        for _ in range(requests):
            yield self.env.timeout(self.rng.expovariate(rate / 1000))
            self.env.process(self.request(self.env.now))

    def asks_again(self, until: float) -> _Process:
        """One client of a closed loop."""
        while self.env.now < until:
            yield from self.request(self.env.now)

    def outcome(self, since: float) -> Outcome:
        """Of the requests that were due after `since`."""
        times = sorted(took for due, took in self.latencies if due >= since)
        refused = sum(due >= since for due in self.refused)
        elapsed = self.env.now
        replicas = {stage.kind: len(stage.cores) for stage in self.system.stages} | {"client": 1}
        total = len(times) + refused
        return Outcome(
            rps=len(times) / (elapsed - since) * 1e3 if elapsed > since else 0.0,
            p50=_at(times, 0.5),
            p99=_at(times, 0.99),
            mean=sum(times) / len(times) if times else math.nan,
            busy={kind: ms / elapsed / replicas[kind] for kind, ms in self.busy.items()},
            refused=refused / total if total else 0.0,
            batch=sum(self.batch_sizes) / len(self.batch_sizes) if self.batch_sizes else 1.0,
        )


def simulate_open(system: System, rate: float, requests: int, seed: int = 0) -> Outcome:
    """Poisson arrivals, `rate` a second; the first fifth of the requests does not count."""
    world = _World(system, seed)
    world.env.process(world.arrivals(rate, requests))
    world.env.run(until=requests / rate * 1e3)
    return world.outcome(world.env.now / 5)


def simulate_closed(system: System, clients: int, seconds: float, seed: int = 0) -> Outcome:
    """`clients` that each ask again as soon as they are answered."""
    world = _World(system, seed)
    for _ in range(clients):
        world.env.process(world.asks_again(seconds * 1e3))
    world.env.run(until=seconds * 1e3)
    return world.outcome(world.env.now / 5)


def _at(times: Sequence[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))] if times else math.nan


def of_plan(
    plan: Plan, costs: Costs, *, lost_zones: int = 0, most_pods: int = 60
) -> tuple[System, float]:
    """The plan's pods, each on a core of its own, and the part of the fleet that is simulated: all
    of it, or as small a part as has about `most_pods` pods. Calls spread over pods evenly,
    so the part waits as the whole does."""
    part = min(1.0, most_pods / plan.pod_count)
    zones = plan.demand.zones
    ids = itertools.count()
    stages = []
    for pods in plan.pods:
        left = pods.pods * (zones - lost_zones) / zones * plan.demand.processes
        count = max(1, round(left * part))
        stages.append(Stage(pods.kind, pods.cpu_ms, tuple(next(ids) for _ in range(count))))
    batching = _scaled(costs, plan.pods[-1].cpu_ms) if plan.pods[-1].kind == "mapper" else None
    return System(tuple(stages), batching, variation=0.5), part


def _scaled(costs: Costs, ms: float) -> Batching:
    """The mapper's costs by batch, so that a request alone costs what the plan says of it."""
    whole = costs.batching.start + costs.batching.each
    factor = ms / whole if whole else 0.0
    return Batching(costs.batching.start * factor, costs.batching.each * factor)


def hourly_rate(demand: Demand, hour: float) -> float:
    """Requests a second: a sine wave over the day with the plan's peak, never below a tenth of
    the mean."""
    swing = demand.peak_to_mean - 1
    wave = math.cos((hour - PEAK_HOUR) / 24 * 2 * math.pi)
    return demand.requests_per_second * max(0.1, 1 + swing * wave)


def one_core(costs: Costs, ms: dict[str, float]) -> System:
    """One replica of each of three services, all on one core. ms: by kind, of a lone request."""
    stages = tuple(Stage(kind, ms[kind], (0,)) for kind in LAYOUTS["split"])
    return System(stages, _scaled(costs, ms["mapper"]))


def _closed_table(costs: Costs, clients: Sequence[int]) -> Table:
    """SASRec, six blocks in float16, the list held: the case of docs/benchmarks.md."""
    shape = Shape.of(BackboneConfig(), 3_416, 8)
    work = Work(shape.artefact(6, "float16") / 1e6, 0.0, shape.weights / 1e6, 0.0)
    system = one_core(costs, {kind: costs.request_ms(kind, work) for kind in LAYOUTS["split"]})
    table = Table("clients", "requests/s", "p50 ms", "CPU-ms a request", "batch")
    for count in clients:
        outcome = simulate_closed(system, count, 30)
        busy = sum(outcome.busy.values()) / outcome.rps * 1e3
        table.add_row(
            str(count), f"{outcome.rps:.0f}", f"{outcome.p50:.1f}", f"{busy:.2f}",
            f"{outcome.batch:.1f}",
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--devices", type=int, default=1_000_000)
    add("--layout", choices=sorted(LAYOUTS), default="split")
    add("--utilisation", type=float, default=Demand(1).utilisation)
    add("--costs", type=Path)
    add("--requests", type=int, default=8_000, help="of each hour")
    add("--closed", help="comma list: so many clients of one replica of each on one core, instead")
    found = parser.parse_args()
    costs = read_costs(found.costs)
    console = Console(width=120)
    if found.closed:
        console.print(_closed_table(costs, [int(each) for each in found.closed.split(",")]))
        return
    demand = Demand(found.devices, layout=found.layout, utilisation=found.utilisation)
    plan = make_plan(demand, Shape.of(BackboneConfig(), 100_000, 10), costs)
    counts = ", ".join(f"{each.pods} {each.kind}" for each in plan.pods)
    console.print(f"{found.devices:,} devices, {counts}")
    table = Table("hour", "requests/s", "busy", "p50 ms", "p99 ms", "refused", "batch")
    rows: list[tuple[str, float, int]] = [
        (f"{hour:02d}:00", hourly_rate(demand, hour), 0) for hour in range(0, 24, 2)
    ]
    peak = demand.requests_per_second * demand.peak_to_mean
    for name, rate, lost in (*rows, ("peak, a zone lost", peak, 1)):
        system, part = of_plan(plan, costs, lost_zones=lost)
        outcome = simulate_open(replace(system), rate * part, found.requests)
        busy = max(value for kind, value in outcome.busy.items() if kind != "client")
        table.add_row(
            name, f"{rate:,.0f}", f"{busy:.0%}", f"{outcome.p50:.1f}", f"{outcome.p99:.1f}",
            f"{outcome.refused:.2%}", f"{outcome.batch:.2f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
