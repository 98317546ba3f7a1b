"""The load generator: a process of its own that reads jobs and writes results, a line each.

    closed  `clients` connections, each asks again as soon as it has its reply
    open    requests leave at random moments (Poisson) at a rate, whether or not replies come;
            times count from the moment a request was due, so that waiting is not left out
    etags   asks each request once and gives the candidates' etags

Every reply is looked at: sizes, views of every block, two of its values (float encodings).
Some are compared in full after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import struct
import sys
import time
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from benchmarks.serving import messages, procs
from benchmarks.serving.messages import BadReply, Payloads
from benchmarks.serving.tally import Tally, percentiles
from benchmarks.serving.transports import Connection, Refused, connect
from forward_ofa_device.artefact import BlockLayout, Encoding, unpack_path
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig

SLICE_SECONDS = 0.5
_SHORT_SECONDS = 90.0
_SAMPLES = 8
_MOST_WAITING = 4_000
_LATEST_SECONDS = 0.25
"""Open loop: with so many in flight, or so late, a request is not sent but counted."""


@dataclass(frozen=True)
class Job:
    """What to ask and how; see `Loader.run` for who makes it.

    requests, paths, interests: hexadecimal, one a distinct request; taken in turns.
    weights: .npy [L, D + 1, P], the last row is the bias.
    sessions: 0, or how many requests share a session id before a new one is made up.
    phases: open loop: [seconds, requests a second], one after the other.
    """

    op: str
    kind: str
    target: str
    method: str
    reader: str
    requests: list[str]
    paths: list[str]
    interests: list[str]
    weights: str
    backbone: dict[str, Any]
    encoding: Encoding = "float32"
    held: bool = False
    clients: int = 1
    seconds: float = 1.0
    warmup: float = 0.3
    phases: list[tuple[float, float]] = field(default_factory=list)
    sessions: int = 0
    pids: list[int] = field(default_factory=list)
    seed: int = 0


class Expectations:
    """What each reply has to be."""

    def __init__(self, job: Job) -> None:
        layout = BlockLayout.of(build(BackboneConfig(**job.backbone)).block_parameters())
        self._weights = np.load(job.weights, mmap_mode="r")
        self._payloads = Payloads(layout, job.encoding)
        self._reader, self._held = messages.READERS[job.reader], job.held
        self._blocks = len(self._weights)
        self._paths = [bytes.fromhex(path) for path in job.paths]
        self._interests = [np.frombuffer(bytes.fromhex(h), "<f4") for h in job.interests]
        code = {"float32": "<f", "float16": "<e"}.get(job.encoding)
        # An echo has the size of a network, not its content.
        self._empty = job.reader == "echo"
        self._value = struct.Struct(code) if code and not self._empty else None
        self._probes = [self._probe(index) for index in range(len(self._paths))]

    def look(self, index: int, reply: bytes) -> list[np.ndarray]:
        """The arrays of a reply to request `index`. Raises BadReply."""
        payloads = self._reader(reply)
        arrays = self._payloads.arrays(
            payloads, messages.kept_blocks(self._paths[index], self._blocks)
        )
        if self._value is not None:
            first, last, bound = self._probes[index]
            ends = (
                self._value.unpack_from(payloads, 0)[0] - first,
                self._value.unpack_from(payloads, len(payloads) - self._value.size)[0] - last,
            )
            if not max(map(abs, ends)) <= bound:
                raise BadReply("the values are those of another request")
        return arrays

    def check(self, index: int, reply: bytes) -> None:
        """The whole content. Raises BadReply."""
        if self._empty:
            return
        h, path = self._interests[index], unpack_path(self._paths[index], self._blocks)
        truth = np.zeros((self._blocks, self._weights.shape[2]), np.float32)
        for block in (number for number, kept in enumerate(path) if kept):
            truth[block] = h @ self._weights[block, :-1] + self._weights[block, -1]
        self._payloads.check(self._reader(reply), path, truth)
        if self._held and not messages.read_not_modified(reply):
            raise BadReply("candidates were sent, though they are held")

    def _probe(self, index: int) -> tuple[float, float, float]:
        path = unpack_path(self._paths[index], self._blocks)
        kept = [number for number, is_kept in enumerate(path) if is_kept]
        h = self._interests[index]
        ends = [
            float(h @ self._weights[block, :-1, column] + self._weights[block, -1, column])
            for block, column in ((kept[0], 0), (kept[-1], -1))
        ]
        bound = (1e-4 if self._value and self._value.size == 4 else 2e-3) * max(
            1.0, *map(abs, ends)
        )
        return ends[0], ends[1], bound


class Generator:
    """Runs one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = [bytes.fromhex(request) for request in job.requests]
        self._expected = Expectations(job)
        self._samples: list[tuple[int, bytes]] = []
        self._sent = 0
        self._rng = random.Random(job.seed)

    async def etags(self) -> list[str]:
        """The candidates' etag of each request's reply."""
        connections = await self._open(1)
        etags = [messages.read_etag(await connections[0].ask(each)) for each in self._requests]
        await _close(connections)
        return etags

    async def closed(self) -> dict[str, Any]:
        """See the module's text."""
        job, tally = self._job, Tally()
        connections = await self._open(job.clients)
        stop = asyncio.Event()
        running = [asyncio.create_task(self._client(each, stop, tally)) for each in connections]
        await asyncio.sleep(job.warmup)
        processes = procs.tree(job.pids)
        before, cpu = procs.cpu_seconds(processes), time.process_time()
        all_before = procs.machine_cpu_seconds()
        tally.latencies.clear()
        tally.refusals.clear()
        started = time.perf_counter()
        await asyncio.sleep(job.seconds)
        seconds = time.perf_counter() - started
        # Counted before those that are under way have ended.
        result = tally.summary(seconds)
        used, own = procs.cpu_seconds(processes) - before, time.process_time() - cpu
        others = procs.machine_cpu_seconds() - all_before - used - own
        stop.set()
        await asyncio.gather(*running)
        await _close(connections)
        costs = _costs(used, own, result, seconds)
        return (
            result
            | costs
            | {"other_cores": round(max(0.0, others / seconds), 3)}
            | self._verdict(tally)
        )

    async def _client(self, connection: Connection, stop: asyncio.Event, tally: Tally) -> None:
        while not stop.is_set():
            index, request = self._next()
            started = time.perf_counter()
            try:
                reply = await connection.ask(request)
                self._expected.look(index, reply)
            except Refused:
                tally.refusals.append(time.perf_counter() - started)
                await asyncio.sleep(0.01)
            except Exception as error:
                tally.errors[_text(error)] += 1
                await asyncio.sleep(0.01)
            else:
                tally.latencies.append(time.perf_counter() - started)
                if len(self._samples) < _SAMPLES:
                    self._samples.append((index, reply))

    async def open(self) -> dict[str, Any]:
        """See the module's text."""
        job = self._job
        connections = await self._open(job.clients)
        await asyncio.gather(*(self._warm(each) for each in connections))
        processes = procs.tree(job.pids)
        cpu, own = procs.cpu_seconds(processes), time.process_time()
        stream = _OpenLoop(self, connections)
        started = time.perf_counter()
        await stream.run(job.phases, started)
        seconds = time.perf_counter() - started
        used, own = procs.cpu_seconds(processes) - cpu, time.process_time() - own
        await _close(connections)
        total = stream.total.summary(seconds)
        return (
            total
            | _costs(used, own, total, seconds)
            | self._verdict(stream.total)
            | stream.report(job.phases)
        )

    async def _warm(self, connection: Connection) -> None:
        for _ in range(3):
            _, request = self._next()
            try:
                await connection.ask(request)
            except Refused:
                await asyncio.sleep(0.05)

    async def ask(self, connection: Connection) -> None:
        """One request, looked at. Raises what it ends with."""
        index, request = self._next()
        reply = await connection.ask(request)
        self._expected.look(index, reply)
        place = len(self._samples) if len(self._samples) < _SAMPLES else self._rng.randrange(20_000)
        if place < _SAMPLES:
            self._samples[place:] = [(index, reply), *self._samples[place + 1 :]]

    def _next(self) -> tuple[int, bytes]:
        self._sent += 1
        index = self._sent % len(self._requests)
        request = self._requests[index]
        if self._job.sessions:
            # Of a field that comes twice, protobuf takes the last.
            number = self._sent // self._job.sessions
            request += messages.field(2, f"bench-{self._job.seed:x}-{number:010d}")
        return index, request

    async def _open(self, count: int) -> list[Connection]:
        job = self._job
        connections = [connect(job.kind, job.target, job.method) for _ in range(count)]
        await asyncio.gather(*(each.open() for each in connections))
        return connections

    def _verdict(self, tally: Tally) -> dict[str, Any]:
        """Compares the samples."""
        errors: Counter[str] = Counter(tally.errors)
        for index, reply in self._samples:
            try:
                self._expected.check(index, reply)
            except BadReply as error:
                errors[_text(error)] += 1
        return {
            "errors": sum(errors.values()),
            "error_texts": dict(errors.most_common(5)),
            "checked_in_full": len(self._samples),
        }


class _OpenLoop:
    """Requests at random moments, and what became of them by slice of time."""

    def __init__(self, generator: Generator, connections: list[Connection]) -> None:
        self._generator, self._connections = generator, connections
        self._slices: dict[int, Tally] = {}
        self._phases: dict[int, Tally] = {}
        self._lags: list[float] = []
        self._not_sent: Counter[int] = Counter()
        self._answered: Counter[int] = Counter()
        self._ends: list[float] = []
        self._started = 0.0
        self.total = Tally()

    async def run(self, phases: Sequence[tuple[float, float]], started: float) -> None:
        rng, tasks, sent = random.Random(len(self._connections)), set[asyncio.Task[None]](), 0
        self._started, due, end = started, started, started
        self._ends = list(accumulate(seconds for seconds, _ in phases))
        for phase, (seconds, rate) in enumerate(phases):
            end, due = end + seconds, end
            while (due := due + rng.expovariate(rate)) < end:
                now = time.perf_counter()
                if due > now:
                    await asyncio.sleep(due - now)
                elif sent % 16 == 0:
                    await asyncio.sleep(0)  # behind: let replies in
                late = max(0.0, time.perf_counter() - due)
                if len(tasks) >= _MOST_WAITING or late > _LATEST_SECONDS:
                    self._not_sent[phase] += 1
                    continue
                self._lags.append(late)
                connection = self._connections[sent % len(self._connections)]
                task = asyncio.create_task(self._one(connection, due, phase))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
        await asyncio.gather(*tasks)

    async def _one(self, connection: Connection, due: float, phase: int) -> None:
        part = self._slices.setdefault(int((due - self._started) / SLICE_SECONDS), Tally())
        tallies = (part, self._phases.setdefault(phase, Tally()), self.total)
        sent = time.perf_counter()
        try:
            await self._generator.ask(connection)
        except Refused:
            for tally in tallies:
                tally.refusals.append(time.perf_counter() - sent)
        except Exception as error:
            for tally in tallies:
                tally.errors[_text(error)] += 1
        else:
            ended = time.perf_counter()
            self._answered[bisect(self._ends, ended - self._started)] += 1
            for tally in tallies:
                tally.latencies.append(ended - due)

    def report(self, phases: Sequence[tuple[float, float]]) -> dict[str, Any]:
        """A phase counts the requests that were due in it, whenever they were answered, and
        apart from that what was answered while it lasted. lag_ms: how late requests left.
        not_sent: those that would have left far too late,
        or with too many under way: this process could not keep up."""
        return {
            "phases": [
                {
                    "wanted_rps": rate,
                    "not_sent": self._not_sent[index],
                    "answered_meanwhile_rps": round(self._answered[index] / seconds, 2),
                    **self._phases.get(index, Tally()).summary(seconds),
                }
                for index, (seconds, rate) in enumerate(phases)
            ],
            "slices": {
                str(index * SLICE_SECONDS): tally.summary(SLICE_SECONDS)
                for index, tally in sorted(self._slices.items())
            },
            "not_sent": self._not_sent.total(),
            "lag_ms": percentiles(self._lags),
        }


async def _close(connections: list[Connection]) -> None:
    await asyncio.gather(*(each.close() for each in connections))


def _costs(used: float, own: float, result: dict[str, Any], seconds: float) -> dict[str, Any]:
    answered = max(1, result["ok"] + result["refused"])
    return {
        "server_cpu_ms": round(used / answered * 1e3, 4),
        "client_cpu_ms": round(own / answered * 1e3, 4),
        "server_cores": round(used / seconds, 3),
        "client_cores": round(own / seconds, 3),
    }


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def main() -> int:
    """Jobs from standard input, results to standard output. Argument: cores to run on."""
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
    for line in sys.stdin:
        job = Job(**json.loads(line))
        result: dict[str, Any] = {}
        gc.collect()
        if sum(seconds for seconds, _ in job.phases) < _SHORT_SECONDS:
            gc.disable()  # its pauses would be counted as the system's
        try:
            generator = Generator(job)
            result["result"] = asyncio.run(getattr(generator, job.op)())
        except Exception as error:
            result["error"] = _text(error)
        gc.enable()
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
