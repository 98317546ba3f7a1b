"""What has to be reached, as ratios of what was measured in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.serving.measure import Run
from benchmarks.serving.systems import BARE_BATCHING

ECHO_AND_PRODUCT = 1.3
BEST_PEER = 1.5
BEST_PEER_REAL = 4.0
TAIL = 5.0
CHAIN = 2.2


@dataclass(frozen=True)
class Bar:
    """value against bound; at_most: the bound is from above. detail: the figures behind it."""

    name: str
    value: float | None
    bound: float
    at_most: bool
    detail: str

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or SKIPPED if it could not be measured."""
        if self.value is None:
            return "SKIPPED"
        met = self.value <= self.bound if self.at_most else self.value >= self.bound
        return "PASS" if met else "FAIL"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        value = None if self.value is None else round(self.value, 3)
        return {
            "name": self.name,
            "value": value,
            "bound": f"{'<=' if self.at_most else '>='} {self.bound:g}",
            "verdict": self.verdict,
            "detail": self.detail,
        }


def bars(run: Run) -> list[Bar]:
    """All of them, in order."""
    return [*_latency(run), *_throughput(run), *_tails(run), *_chain(run)]


def _latency(run: Run) -> Iterator[Bar]:
    ours, echo = run.cell("ours, one process"), run.cell("echo")
    name = "1 client, float32: p50 / (echo + product)"
    if 1 not in run.settings.clients or ours is None or echo is None:
        yield Bar(name, None, ECHO_AND_PRODUCT, True, "needs 1 client, ours and the echo")
        return
    mine, floor = ours.median(1)["p50"], echo.median(1)["p50"]
    product = run.product["1"]["ms"]
    detail = f"{mine:.2f} ms / ({floor:.2f} + {product:.2f}) ms"
    yield Bar(name, mine / (floor + product), ECHO_AND_PRODUCT, True, detail)
    peers = {cell.name: cell.median(1).get("p50") for cell in run.peers()}
    timed = {peer: value for peer, value in peers.items() if value}
    name = "1 client, float32: p50 / fastest peer's"
    if not timed:
        yield Bar(name, None, 1.0, True, "no peer was measured")
        return
    best = min(timed, key=lambda peer: timed[peer])
    yield Bar(name, mine / timed[best], 1.0, True, f"{mine:.2f} ms / {timed[best]:.2f} ms, {best}")


def _throughput(run: Run) -> Iterator[Bar]:
    most = max(run.settings.clients)
    best = run.best_peer(most)
    wanted = (
        (f"{most} clients, same bytes", "ours, one process", BEST_PEER),
        (f"{most} clients, float16, real paths", "ours, float16, real paths", BEST_PEER_REAL),
    )
    for what, name, bound in wanted:
        cell, title = run.cell(name), f"{what}: requests/s / best peer's"
        if best is None or cell is None or not cell.median(most):
            why = run.skipped.get(name, "no peer was measured")
            yield Bar(title, None, bound, False, why)
            continue
        mine, theirs = cell.median(most)["rps"], best.median(most)["rps"]
        detail = f"{mine:.0f} / {theirs:.0f}, {best.name}{_limit(run, most, bound)}"
        yield Bar(title, mine / theirs, bound, False, detail)
    yield from _against_queue(run, most)


def _against_queue(run: Run, most: int) -> Iterator[Bar]:
    """The bare peer with batching written by hand: all that a system can do without us."""
    mine, theirs = run.cell("ours, one process"), run.cell(BARE_BATCHING)
    if mine is None or theirs is None or not (mine.median(most) and theirs.median(most)):
        return
    ours, queue = mine.median(most)["rps"], theirs.median(most)["rps"]
    title = f"{most} clients, same bytes: requests/s / {BARE_BATCHING}"
    yield Bar(title, ours / queue, 1.0, False, f"{ours:.0f} / {queue:.0f}")


def _limit(run: Run, most: int, bound: float) -> str:
    """What the same bytes allow: a core that only answers, or only answers and multiplies."""
    echo = run.cell("echo")
    if bound != BEST_PEER or echo is None or not echo.median(most):
        return ""
    median = echo.median(most)
    work = median["server_cpu_ms"] + min(each["ms"] for each in run.product.values())
    return f"; echo {median['rps']:.0f}, echo + product at most {1e3 / work:.0f} a core"


def _tails(run: Run) -> Iterator[Bar]:
    for each in run.at_load:
        if not each["name"].startswith("ours"):
            continue
        latency = each["latency_ms"]
        detail = (
            f"{latency['p99']:.1f} ms / {latency['p50']:.1f} ms at "
            f"{each['phases'][0]['wanted_rps']:.0f} requests/s; sent up to "
            f"{each['lag_ms']['p99']:.1f} ms late (p99)"
        )
        title = f"80 % load, {each['name']}: p99 / p50"
        yield Bar(title, latency["p99"] / latency["p50"], TAIL, True, detail)


def _chain(run: Run) -> Iterator[Bar]:
    most = max(run.settings.clients)
    one, split = run.cell("ours, float16"), run.cell("ours, split, float16")
    title = "split in 3 / one process: server CPU a request, float16"
    if one is None or split is None or not (one.median(most) and split.median(most)):
        yield Bar(title, None, CHAIN, True, "needs both")
        return
    mine, theirs = split.median(most)["server_cpu_ms"], one.median(most)["server_cpu_ms"]
    yield Bar(title, mine / theirs, CHAIN, True, f"{mine:.2f} ms / {theirs:.2f} ms")
