"""Ours alone, one process, under open-loop load: what soak and overload share."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.serving.load import Job
from benchmarks.serving.loader import Loader
from benchmarks.serving.machine import describe
from benchmarks.serving.procs import end_on_term
from benchmarks.serving.servers import Servers
from benchmarks.serving.settings import RESULTS, Settings
from benchmarks.serving.systems import Ask, Starter, System
from benchmarks.serving.version import make_version
from benchmarks.serving.workload import all_blocks

MOST_REFUSED = 0.001
"""Share of calls that may be refused at the load that the service is made for."""
_WARM_SECONDS = 1.0


def begin(
    parser: argparse.ArgumentParser,
) -> tuple[argparse.Namespace, Console, Settings]:
    """The options that soak and overload share, added and read with the parser's own."""
    add = parser.add_argument
    add("--no-pin", action="store_true", help="let server and load generator share all cores")
    add("--ours", default="", help="more options of our services")
    add("--out", type=Path, default=RESULTS, help="folder for raw results")
    found = parser.parse_args()
    end_on_term()
    console = Console(width=None if sys.stdout.isatty() else 150)
    return found, console, Settings(pin=not found.no_pin, ours=tuple(found.ours.split()))


@dataclass(frozen=True)
class Stand:
    """A running server, the load generator, and the job that they do: float16, all blocks."""

    system: System
    loader: Loader
    job: Job

    def capacity(self, clients: int, seconds: float, times: int = 5) -> float:
        """Requests a second that `clients` get in a closed loop: the median of `times`."""
        job = replace(self.job, op="closed", clients=clients, seconds=seconds, warmup=_WARM_SECONDS)
        rates = [self.loader.run(job)["rps"] for _ in range(times)]
        return float(statistics.median(rates))


@contextlib.contextmanager
def standing(settings: Settings, ask: Ask, *, options: Sequence[str] = ()) -> Iterator[Stand]:
    """options: more of `python -m services`. Raises Unavailable."""
    server_cores, client_cores = settings.cores()
    with (
        tempfile.TemporaryDirectory(prefix="forward-ofa-bench-") as folder,
        Servers(Path(folder) / "logs", server_cores) as servers,
        Loader(client_cores) as loader,
    ):
        version = make_version(Path(folder))
        system = Starter(servers, version, (*settings.ours, *options)).one_process()
        yield Stand(system, loader, system.job(all_blocks(version), ask, loader))


@dataclass(frozen=True)
class Check:
    """One thing that has to hold."""

    name: str
    value: str
    bound: str
    met: bool


def conclude(
    console: Console, name: str, checks: Sequence[Check], result: dict[str, Any], out: Path
) -> int:
    """Prints the checks, keeps the raw result; 0 if all hold, 1 if not."""
    table = Table(title=name)
    for column in ("check", "value", "bound", ""):
        table.add_column(column)
    for check in checks:
        verdict = "[green]PASS[/]" if check.met else "[bold red]FAIL[/]"
        table.add_row(check.name, check.value, check.bound, verdict)
    console.print(table)
    machine = describe()
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}-{machine['time'].replace(':', '')[:17]}.json"
    raw = {"machine": machine, "checks": [vars(check) for check in checks], **result}
    file.write_text(json.dumps(raw, indent=1) + "\n")
    console.print(f"raw results in {file}", highlight=False)
    return 0 if all(check.met for check in checks) else 1


Say = Callable[[str], None]
