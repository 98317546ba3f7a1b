"""Whether plan and simulation are right: predicted and measured, side by side, on this machine.

    python -m benchmarks.capacity.compare                    # a small case, split in three
    python -m benchmarks.capacity.compare --replicas         # 1 and 2 replicas of each service

Processes run apart over loopback with a real Redis. The prediction uses the file of costs and
nothing of the run that it is compared with, but the CPU time of the load generator, which
has no place in a plan and here shares the core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.capacity.chain import Chain, cpu_seconds, start_chain
from benchmarks.capacity.points import Question, workload
from benchmarks.capacity.simulation import (
    Outcome,
    System,
    one_core,
    simulate_closed,
    simulate_open,
)
from benchmarks.serving.load import Job
from benchmarks.serving.loader import Loader
from benchmarks.serving.machine import describe
from benchmarks.serving.procs import end_on_term
from benchmarks.serving.servers import Servers
from benchmarks.serving.systems import Ask
from benchmarks.serving.version import make_version
from forward_ofa_cli.capacity.costs import LAYOUTS, Costs, read_costs
from tests.support.redis_server import RedisServer

CLIENTS = 4
LOADS = (0.3, 0.6, 0.8)
_SHOWN = {"rps": ".0f", "p50": ".1f", "p99": ".1f", "busy": ".2f", "cpu_ms": ".1f"}


@dataclass(frozen=True)
class Row:
    """One load. Milliseconds; busy: share of a core, all services together. batch: mean requests
    of a product; others: cores that the rest of the machine used meanwhile."""

    name: str
    offered: float
    measured: dict[str, float]
    predicted: dict[str, float]

    def errors(self) -> dict[str, float]:
        """Predicted against measured, as a share."""
        return {name: self.predicted[name] / value - 1 for name, value in self.measured.items()}


def small_case(
    chain: Chain, loader: Loader, costs: Costs, *, seconds: float, say: Callable[[str], None]
) -> list[Row]:
    """A closed loop, then random arrivals at shares of the capacity that the costs predict.

    Everything on one core, the load generator too. Raises LoadError.
    """
    question = Question(clients=CLIENTS)
    base = chain.job(workload(chain.version, question), Ask("float16", held=True), loader)
    closed = loader.run(replace(base, clients=CLIENTS, seconds=seconds, warmup=0.5))
    client_ms = closed["client_cpu_ms"]
    system = predicted_system(chain, costs, question, client_ms)
    say(f"the load generator takes {client_ms:.2f} ms of the core for each reply")
    # A closed loop takes all that the core has left: strangers have the rest.
    system = replace(system, share=min(1.0, closed["server_cores"] + closed["client_cores"]))
    say(f"{system.share:.0%} of the core was ours; the rest is given to strangers")
    rows = [_row("closed loop", 0.0, closed, simulate_closed(system, CLIENTS, max(10, seconds)))]
    capacity = rows[0].predicted["rps"]
    for load in LOADS:
        rate = load * capacity
        say(f"{rate:.0f} requests/s, {load:.0%} of what is predicted")
        job = replace(base, op="open", clients=16, phases=[(2.0, rate), (seconds * 2, rate)])
        found = loader.run(job)
        rows.append(_row(f"{load:.0%}", rate, found, simulate_open(system, rate, 8_000)))
    return rows


def predicted_system(chain: Chain, costs: Costs, question: Question, client_ms: float) -> System:
    """One core for all; Redis's share is the front's. Only of requests whose list is held."""
    work = question.work(chain.version)
    kinds = LAYOUTS[chain.layout]
    ms = {kind: costs.request_ms(kind, work) for kind in kinds}
    ms[kinds[0]] += costs.request_ms("redis", work)
    return replace(one_core(costs, ms), client_ms=client_ms, client_core=0)


def _row(name: str, offered: float, measured: dict[str, Any], predicted: Outcome) -> Row:
    last = measured["phases"][-1] if "phases" in measured else measured
    services = sum(value for kind, value in predicted.busy.items() if kind != "client")
    return Row(
        name,
        offered,
        {
            "rps": last["rps"],
            "p50": last["latency_ms"]["p50"],
            "p99": last["latency_ms"]["p99"],
            "busy": measured["server_cores"],
            "cpu_ms": measured["server_cpu_ms"],
        },
        {
            "rps": predicted.rps,
            "p50": predicted.p50,
            "p99": predicted.p99,
            "busy": services,
            "cpu_ms": services / predicted.rps * 1e3,
        },
    )


def replicas(
    folder: Path, cores: list[int], *, seconds: float, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """CPU time of a request with one replica of each service and with two, each on its core.

    Load generators (one a replica of the front) share the replicas' cores.
    """
    found: dict[str, Any] = {}
    for count in (1, len(cores)):
        work = folder / f"replicas-{count}"
        version = make_version(work)
        redis = RedisServer(work)
        redis.start()
        groups = [Servers(work / f"logs-{n}", [core]) for n, core in enumerate(cores[:count])]
        loaders = [Loader([core]) for core in cores[:count]]
        try:
            chain = start_chain(groups, version, "split", redis)
            jobs = []
            for number, loader in enumerate(loaders):
                load = workload(version, Question())
                job = chain.job(load, Ask("float16", held=True), loader, number)
                jobs.append(replace(job, clients=CLIENTS, seconds=seconds, warmup=0.5))
            say(f"{count} replica(s) of each")
            rows = [_together(chain, loaders, jobs) for _ in range(rounds)]
            found[str(count)] = sorted(rows, key=lambda row: row["cpu_ms"])[len(rows) // 2]
        finally:
            for loader in loaders:
                loader.__exit__(None, None, None)
            for group in groups:
                group.__exit__(None, None, None)
            redis.kill()
    return found


def _together(chain: Chain, loaders: list[Loader], jobs: list[Job]) -> dict[str, Any]:
    """All load generators at once; CPU of all processes for the answers of all."""
    before = {kind: [cpu_seconds([pid]) for pid in pids] for kind, pids in chain.pids.items()}
    with ThreadPoolExecutor(len(loaders)) as pool:
        futures = [pool.submit(loader.run, job) for loader, job in zip(loaders, jobs, strict=True)]
        results = [future.result() for future in futures]
    if any(result["errors"] or result["refused"] for result in results):
        raise RuntimeError(f"requests failed: {[result['error_texts'] for result in results]}")
    used = {
        kind: [cpu_seconds([pid]) - old for pid, old in zip(pids, before[kind], strict=True)]
        for kind, pids in chain.pids.items()
    }
    # Both windows see all processes, so one of them alone counts the CPU, and all the answers.
    rate = sum(result["rps"] for result in results)
    cores = sum(result["server_cores"] for result in results) / len(results)
    whole = sum(map(sum, used.values()))
    cpu_ms = cores / rate * 1e3
    return {
        "rps": rate,
        "cpu_ms": cpu_ms,
        "by_kind": {kind: cpu_ms * sum(values) / whole for kind, values in used.items()},
        "by_replica": {
            kind: [value / sum(values) for value in values] for kind, values in used.items()
        },
        "p50": max(result["latency_ms"]["p50"] for result in results),
        "others": max(result["other_cores"] for result in results),
    }


def case_table(rows: list[Row]) -> Table:
    """Measured / predicted (error)."""
    table = Table(title="measured / predicted (error)", title_justify="left")
    for name in ("load", "requests/s", "p50 ms", "p99 ms", "cores in use", "CPU-ms a request"):
        table.add_column(name, justify="left" if name == "load" else "right")
    for row in rows:
        shown = []
        for name, form in (
            ("rps", ".0f"),
            ("p50", ".1f"),
            ("p99", ".1f"),
            ("busy", ".2f"),
            ("cpu_ms", ".1f"),
        ):
            measured, predicted = row.measured[name], row.predicted[name]
            shown.append(f"{measured:{form}} / {predicted:{form}} ({row.errors()[name]:+.0%})")
        table.add_row(row.name, *shown)
    return table


def replica_table(found: dict[str, Any]) -> Table:
    """A row a number of replicas."""
    kinds = next(iter(found.values()))["by_kind"]
    table = Table(title="CPU-ms a request, by replicas of each service", title_justify="left")
    for name in ("replicas", "requests/s", "CPU-ms", *kinds, "share of the first replica"):
        table.add_column(name, justify="right")
    for count, row in found.items():
        shares = " ".join(f"{values[0]:.0%}" for values in row["by_replica"].values())
        table.add_row(
            count, f"{row['rps']:.0f}", f"{row['cpu_ms']:.2f}",
            *(f"{row['by_kind'][kind]:.2f}" for kind in kinds), shares,
        )  # fmt: skip
    return table


def main() -> int:
    """0 once it is printed, whatever the errors are."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--costs", type=Path, help="a file of costs; left out: the one of the package")
    add("--replicas", action="store_true", help="1 and 2 replicas in place of the small case")
    add("--cores", default="0", help="comma list; the small case takes the first (0)")
    add("--seconds", type=float, default=5.0, help="of one measurement (5)")
    add("--rounds", type=int, default=3, help="of replicas: medians are shown (3)")
    add("--json", type=Path, help="raw results")
    found = parser.parse_args()
    end_on_term()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    cores = [int(core) for core in found.cores.split(",")]
    if found.replicas and len(cores) < 2:
        parser.error("--replicas needs two --cores, such as 0,1")
    raw: dict[str, Any] = {"machine": describe()}
    with tempfile.TemporaryDirectory(prefix="forward-ofa-compare-") as name:
        folder = Path(name)
        if found.replicas:
            raw["replicas"] = replicas(
                folder, cores, seconds=found.seconds, rounds=found.rounds, say=console.print
            )
            console.print(replica_table(raw["replicas"]))
        else:
            rows = run_small_case(folder, cores[:1], read_costs(found.costs), found.seconds,
                                  console.print)  # fmt: skip
            console.print(case_table(rows))
            raw["rows"] = [asdict(row) for row in rows]
    if found.json:
        found.json.write_text(json.dumps(raw, indent=1) + "\n")
    return 0


def run_small_case(
    folder: Path, cores: list[int], costs: Costs, seconds: float, say: Callable[[str], None]
) -> list[Row]:
    """Starts what `small_case` needs, on these cores."""
    version = make_version(folder)
    redis = RedisServer(folder)
    redis.start()
    try:
        with Servers(folder / "logs", cores) as servers, Loader(cores) as loader:
            chain = start_chain([servers], version, "split", redis)
            return small_case(chain, loader, costs, seconds=seconds, say=say)
    finally:
        redis.kill()


if __name__ == "__main__":
    sys.exit(main())
