"""CPU time of each kind of process, for requests of several sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from benchmarks.capacity.chain import Chain, cpu_seconds
from benchmarks.serving.loader import Loader, LoadError
from benchmarks.serving.systems import Ask
from benchmarks.serving.version import BenchVersion
from benchmarks.serving.workload import DISTINCT, Workload
from forward_ofa_cli.capacity.costs import FEATURES, Work
from forward_ofa_device.artefact import ENCODINGS, Encoding, artefact_bytes, pack_path

T = TypeVar("T")
_ATTEMPTS = 5
CANDIDATES = 200
"""What a controller sends by default."""


@dataclass(frozen=True)
class Question:
    """encoding, kept: of the network. whole: the list of candidates is sent; else it is held.
    clients: connections that ask again as soon as they are answered."""

    encoding: Encoding = "float16"
    kept: int = 6
    whole: bool = False
    clients: int = 4

    def path(self, blocks: int) -> tuple[bool, ...]:
        """So many blocks, the first ones."""
        return (True,) * self.kept + (False,) * (blocks - self.kept)

    def work(self, version: BenchVersion) -> Work:
        """What a request asks for."""
        config, layout = version.config, version.layout
        size = artefact_bytes(
            version.version, config.name, self.path(config.blocks), self.encoding, layout
        )
        values = self.kept * layout.size / 1e6
        return Work(
            megabyte=size / 1e6,
            kiloitem=CANDIDATES / 1000 if self.whole else 0.0,
            megaproduct=values * (config.hidden + 1),
            megaquantised=values if self.encoding == "int8" else 0.0,
        )


@dataclass(frozen=True)
class Point:
    """cpu: milliseconds a request by kind. batch: mean requests of a product of the mapper."""

    layout: str
    question: Question
    work: Work
    cpu: dict[str, float]
    rps: float
    batch: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def questions(layout: str, clients: int) -> list[Question]:
    """What a layout is asked: enough to tell bytes, products and candidates apart."""
    kept = (2, 4, 6) if layout == "split" else (2, 6)
    held = [Question(encoding, k, clients=clients) for encoding in ENCODINGS for k in kept]
    return [*held, Question(whole=True, clients=clients)]


def measure_points(
    chain: Chain, asked: Sequence[Question], loader: Loader, *, rounds: int, seconds: float,
    say: Callable[[str], None],
) -> Iterator[Point]:  # fmt: skip
    """The cheapest round of each question; they take turns. Raises LoadError, RuntimeError."""
    jobs = {}
    for question in asked:
        ask = Ask(question.encoding, held=not question.whole)
        load = workload(chain.version, question)
        job = _again(partial(chain.job, load, ask, loader), say)
        jobs[question] = replace(job, clients=question.clients, seconds=seconds, warmup=0.3)
    found: dict[Question, list[tuple[dict[str, float], float, float]]] = {q: [] for q in asked}
    for number in range(rounds):
        say(f"{chain.layout}: round {number + 1} of {rounds}")
        for question, job in jobs.items():
            found[question].append(_again(partial(_once, chain, job, loader), say))
    for question, rows in found.items():
        # What else a machine does adds to CPU time (cold caches), it never takes from it.
        cpu, rps, batch = min(rows, key=lambda row: sum(row[0].values()))
        yield Point(chain.layout, question, question.work(chain.version), cpu, rps, batch)


def _again(work: Callable[[], T], say: Callable[[str], None]) -> T:
    """Tried anew if requests failed: on a shared machine all may stand still for a while."""
    for left in range(_ATTEMPTS - 1, -1, -1):
        try:
            return work()
        except (LoadError, RuntimeError) as error:
            if not left:
                raise
            say(f"once more, since {error}")
            time.sleep(1.0)
    raise AssertionError("not reached")


def _once(chain: Chain, job: Any, loader: Loader) -> tuple[dict[str, float], float, float]:
    generating = next(k for k in ("mapper", "generator", "whole") if k in chain.pids)
    name = "forward_ofa_mapper_batch_size"
    count, total = (chain.counter(generating, f"{name}_{part}") for part in ("count", "sum"))
    before = {kind: cpu_seconds(pids) for kind, pids in chain.pids.items()}
    result = loader.run(job)
    used = {kind: cpu_seconds(pids) - before[kind] for kind, pids in chain.pids.items()}
    if result["errors"] or result["refused"] or not result["ok"]:
        raise RuntimeError(f"requests failed: {result['error_texts'] or 'refused'}")
    # Of the window the load generator knows the sum, of the whole run we know the shares.
    shares = {kind: value / sum(used.values()) for kind, value in used.items()}
    products = chain.counter(generating, f"{name}_count") - count
    rows = chain.counter(generating, f"{name}_sum") - total
    cpu = {kind: result["server_cpu_ms"] * share for kind, share in shares.items()}
    return cpu, float(result["rps"]), rows / products


def workload(version: BenchVersion, question: Question) -> Workload:
    rng, config = np.random.default_rng(7), version.config
    rows = rng.uniform(-1, 1, (DISTINCT, config.hidden)).astype("<f4")
    path = pack_path(question.path(config.blocks))
    return Workload([path] * DISTINCT, [row.tobytes() for row in rows])


def fit_kinds(points: Sequence[Point]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """(kind -> feature -> milliseconds, kind -> deviation of the points as a share)."""
    cpu, residual = {}, {}
    for kind, names in FEATURES.items():
        mine = [point for point in points if kind in point.cpu]
        rows = [[getattr(point.work, name) for name in names] for point in mine]
        times = [point.cpu[kind] for point in mine]
        found = fit(np.array(rows), np.array(times))
        cpu[kind] = dict(zip(names, found, strict=True))
        off = np.abs(np.array(rows) @ np.array(found) - times) / times
        residual[kind] = float(np.sqrt(np.mean(off**2)))
    return cpu, residual


def fit(rows: np.ndarray, values: np.ndarray) -> list[float]:
    """Least squares without negative factors. rows: [n, m], values: [n]; m factors.

    Each subset of the columns is tried, so m must be small; a cost below 0 makes no sense, and the
    best fit without negative factors has some of them at 0.
    """
    count, best = rows.shape[1], (np.inf, [0.0] * rows.shape[1])
    for subset in range(1, 2**count):
        columns = [place for place in range(count) if subset >> place & 1]
        factors, *_ = np.linalg.lstsq(rows[:, columns], values, rcond=None)
        if (factors < 0).any():
            continue
        error = float(((rows[:, columns] @ factors - values) ** 2).sum())
        if error < best[0]:
            whole = np.zeros(count)
            whole[columns] = factors
            best = (error, whole.tolist())
    return best[1]
