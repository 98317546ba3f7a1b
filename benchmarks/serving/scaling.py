"""What holds on a machine larger than this one: a discrete-event simulation of the layouts.

    python -m benchmarks.serving.scaling --cores 64

One Python process reads, checks and writes a request under its interpreter lock, so however
many cores there are, one process answers about 1 / PYTHON_MS requests a second. The question
is how to use the others: more threads, more whole processes (each batches what it gets
itself), or more processes that share mappers (larger batches, one more hop).

The costs are rounded from `benchmarks.serving.stages` and from the echo of `make bench` on 2 cores;
give others by --costs. Named assumptions: no network card limits; the kernel spreads connections
evenly; eight cores share a last-level cache that feeds at most CACHE_STREAMS products at full
speed, since a product of a small batch only reads weights.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import simpy

CORES_A_CACHE = 8
CACHE_STREAMS = 4.0
_Process = Generator[Any, Any, None]


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one core a request (SASRec, six blocks, float16).

    python: under the interpreter lock of the process that talks to devices, gRPC included.
    hash: SHA-256 of the artefact, on the same thread, without the lock.
    hop_front, hop_mapper: one more hop, under the lock of each side.
    start: of a product of one block, for reading its weights. each: more for each request of
    its batch. wake: under the lock, for each product.
    """

    python: float = 0.9
    hash: float = 0.16
    hop_front: float = 0.45
    hop_mapper: float = 0.45
    start: float = 0.12
    each: float = 0.045
    wake: float = 0.03
    blocks: int = 6
    max_batch: int = 32


@dataclass(frozen=True)
class Layout:
    """fronts: processes that devices talk to. mappers: processes that they share; 0: each front
    has its own. threads: of each mapper."""

    name: str
    fronts: int
    mappers: int
    threads: int


class _Mapper:
    """One process's queues and worker threads."""

    def __init__(self, machine: Machine, threads: int, lock: simpy.Resource) -> None:
        self.machine, self.lock = machine, lock
        self.queues: deque[tuple[int, deque[simpy.Event]]] = deque()
        self.by_block: dict[int, deque[simpy.Event]] = {}
        self.waiting = simpy.Store(machine.env)
        for _ in range(threads):
            machine.env.process(self._work())

    def submit(self) -> list[simpy.Event]:
        """An event for each block of one request."""
        done = []
        for block in range(self.machine.costs.blocks):
            event = self.machine.env.event()
            done.append(event)
            if block not in self.by_block:
                self.by_block[block] = deque()
                self.queues.append((block, self.by_block[block]))
                self.waiting.put(block)
            self.by_block[block].append(event)
        return done

    def _work(self) -> _Process:
        machine, costs = self.machine, self.machine.costs
        while True:
            yield self.waiting.get()
            block, queue = self.queues.popleft()
            batch = [queue.popleft() for _ in range(min(len(queue), costs.max_batch))]
            if queue:
                self.queues.append((block, queue))
                self.waiting.put(block)
            else:
                del self.by_block[block]
            yield from machine.locked(self.lock, costs.wake)
            machine.streams += 1
            crowd = max(1.0, machine.streams / machine.stream_limit)
            yield from machine.run(costs.start * crowd + costs.each * len(batch))
            machine.streams -= 1
            machine.batches.append(len(batch))
            for event in batch:
                event.succeed()


class Machine:
    """Cores, processes, and what they did."""

    def __init__(self, cores: int, layout: Layout, costs: Costs, seed: int) -> None:
        self.env = simpy.Environment()
        self.costs, self.layout = costs, layout
        self.cores = simpy.Resource(self.env, cores)
        self.stream_limit = max(1.0, cores / CORES_A_CACHE) * CACHE_STREAMS
        self.streams = 0
        self.batches: list[int] = []
        self.latencies: list[float] = []
        self.rng = random.Random(seed)
        self.fronts = [simpy.Resource(self.env, 1) for _ in range(layout.fronts)]
        own = not layout.mappers
        locks = self.fronts if own else [simpy.Resource(self.env) for _ in range(layout.mappers)]
        self.mappers = [_Mapper(self, layout.threads, lock) for lock in locks]

    def run(self, milliseconds: float) -> _Process:
        """Holds a core."""
        with self.cores.request() as core:
            yield core
            yield self.env.timeout(milliseconds)

    def locked(self, lock: simpy.Resource, milliseconds: float) -> _Process:
        """Holds the interpreter lock of a process, and a core."""
        with lock.request() as held:
            yield held
            yield from self.run(milliseconds)

    def request(self) -> _Process:
        """One request, from arrival to reply."""
        costs, arrived = self.costs, self.env.now
        front = self.rng.randrange(len(self.fronts))
        lock = self.fronts[front]
        yield from self.locked(lock, costs.python / 2)
        if self.layout.mappers:
            mapper = self.rng.choice(self.mappers)
            yield from self.locked(lock, costs.hop_front / 2)
            yield from self.locked(mapper.lock, costs.hop_mapper / 2)
            yield simpy.AllOf(self.env, mapper.submit())
            yield from self.locked(mapper.lock, costs.hop_mapper / 2)
            yield from self.locked(lock, costs.hop_front / 2)
        else:
            yield simpy.AllOf(self.env, self.mappers[front].submit())
        yield from self.locked(lock, costs.hash + costs.python / 2)
        self.latencies.append(self.env.now - arrived)

    def load(self, rate: float, requests: int) -> _Process:
        """Poisson arrivals. rate: a second."""
        for _ in range(requests):
            yield self.env.timeout(self.rng.expovariate(rate / 1000))
            self.env.process(self.request())


@dataclass(frozen=True)
class Outcome:
    """rate: offered, a second. p50, p99: milliseconds. batch: mean requests of a product."""

    rate: float
    p50: float
    p99: float
    batch: float


def simulate(
    cores: int, layout: Layout, costs: Costs, rate: float, requests: int = 4000, seed: int = 0
) -> Outcome:
    """The last three quarters of so many requests."""
    machine = Machine(cores, layout, costs, seed)
    machine.env.process(machine.load(rate, requests))
    # Overload never ends by itself: a quarter more time than the arrivals take.
    machine.env.run(until=requests / rate * 1250 + 200)
    done = sorted(machine.latencies[requests // 4 :])
    if len(machine.latencies) < 0.95 * requests:
        return Outcome(rate, float("inf"), float("inf"), _mean(machine.batches))
    return Outcome(rate, done[len(done) // 2], done[int(len(done) * 0.99)], _mean(machine.batches))


def capacity(cores: int, layout: Layout, costs: Costs, bar_ms: float = 50.0) -> Outcome:
    """The highest rate at which p99 stays under the bar, within 3 %."""
    low, high = 50.0, 2000.0 * cores
    best = Outcome(0.0, 0.0, 0.0, 0.0)
    while high - low > 0.03 * high:
        rate = (low + high) / 2
        found = simulate(cores, layout, costs, rate)
        if found.p99 <= bar_ms:
            low, best = rate, found
        else:
            high = rate
    return best


def layouts(cores: int) -> list[Layout]:
    """One process, whole processes, and processes that share mappers."""
    most = max(2, cores)
    found = [Layout(f"one process, {cores} threads", 1, 0, cores)]
    found += [
        Layout(f"{processes} whole processes, 1 thread each", processes, 0, 1)
        for processes in sorted({most // 2, most * 3 // 4, most})
    ]
    for mappers in sorted({1, max(1, cores // 16), max(1, cores // 8)}):
        fronts = max(1, most * 3 // 4)
        threads = max(1, (cores - fronts) // mappers)
        name = f"{fronts} processes share {mappers} mapper(s) of {threads} thread(s)"
        found.append(Layout(name, fronts, mappers, threads))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--costs", type=Path, help="JSON with measured costs, names as in Costs")
    arguments = parser.parse_args()
    costs = Costs()
    if arguments.costs:
        raw = json.loads(arguments.costs.read_text())
        known = {field.name for field in fields(Costs)}
        costs = replace(costs, **{name: raw[name] for name in raw if name in known})
    print(f"{arguments.cores} cores, {costs}")
    print(
        f"{'layout':52} {'requests/s':>10} {'a core':>7} {'p50 ms':>7} {'p99 ms':>7} {'batch':>6}"
    )
    for layout in layouts(arguments.cores):
        found = capacity(arguments.cores, layout, costs)
        print(
            f"{layout.name:52} {found.rate:10.0f} {found.rate / arguments.cores:7.0f} "
            f"{found.p50:7.1f} {found.p99:7.1f} {found.batch:6.1f}"
        )


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else 0.0


if __name__ == "__main__":
    main()
