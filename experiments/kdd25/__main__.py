"""`make paper`: run, go on, report."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence

import torch

from experiments.kdd25.console import Lines, say
from experiments.kdd25.durations import estimate
from experiments.kdd25.engine import Engine
from experiments.kdd25.options import chosen_cells, chosen_parts, parse, places
from experiments.kdd25.recipes import Part
from experiments.kdd25.report import covered, write_report
from experiments.kdd25.results import DamagedIndex, read_index
from experiments.kdd25.runner import CellError, Plan, failures, forget, schedule, status, work
from experiments.kdd25.summary import Results, duration
from experiments.kdd25.workers import run_workers

_SHOWN = 20
"""Unfinished cells that are named; those that failed come first."""


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 if all that was asked is finished, 1 if something is missing, 2 for usage."""
    words = list(sys.argv[1:] if words is None else words)
    arguments = parse(words)
    parts = chosen_parts(arguments)
    cells = chosen_cells(arguments, parts)
    index = arguments.results / "index.json"
    began = arguments.worker or time.time()
    plan = Plan(cells, arguments.runs, index, began, arguments.quick)
    try:
        if arguments.worker:
            _work(plan, arguments)
            return 0
        if arguments.list:
            _list(plan, arguments)
            return 0
        if not arguments.report_only:
            if arguments.again:
                forget(plan)
            _run(plan, arguments, words)
        return _report(plan, parts, arguments)
    except (CellError, DamagedIndex) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who read it has enough, as `head`; nothing is left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where it stopped.", file=sys.stderr)
        return 130


def _list(plan: Plan, arguments: argparse.Namespace) -> None:
    records, scheduled = plan.finished(), schedule(plan)
    finished = [cell for cell in plan.cells if cell not in scheduled]
    total = 0.0
    for cell in finished:
        print(f"done       {'':>9}  {cell.name}")
    for cell in scheduled:
        where = "" if places(arguments).spec(cell.dataset) else "  (no data: --data KEY=PATH)"
        seconds, known = estimate(cell, records, arguments.quick)
        total += seconds
        said = duration(seconds) + ("" if known else " ?")
        print(f"{status(plan, cell, records):<10} {said:>9}  {cell.name}{where}")
    print(
        f"{len(finished)} cells are finished, {len(scheduled)} to run: about {duration(total)}, "
        "one after the other. With ? for two cores, from the time of a step; without, as it took."
    )


def _run(plan: Plan, arguments: argparse.Namespace, words: Sequence[str]) -> None:
    device = _device(arguments.device)
    scheduled = schedule(plan)
    if not scheduled:
        print("Everything that was asked is finished.")
        return
    count = min(arguments.workers, len(scheduled))
    print(f"{len(scheduled)} cells to run on {device}, {count} at a time.", flush=True)
    if count > 1:
        run_workers([*words, "--threads", str(_threads(arguments))], plan.began, count)
    else:
        _work(plan, arguments)


def _work(plan: Plan, arguments: argparse.Namespace) -> None:
    """Runs cells in this process until none is left, time is over, or its parent has gone."""
    torch.set_num_threads(_threads(arguments))
    device = _device(arguments.device)
    engine = Engine(plan, places(arguments), device, Lines)
    until = plan.began + 3600 * arguments.hours if arguments.hours is not None else math.inf
    parent = os.getppid()
    work(plan, engine.run, say, lambda: time.time() >= until or os.getppid() != parent)


def _threads(arguments: argparse.Namespace) -> int:
    given: int | None = arguments.threads
    return given or max(1, (os.cpu_count() or 1) // arguments.workers)


def _report(plan: Plan, parts: Sequence[Part], arguments: argparse.Namespace) -> int:
    records = plan.finished()
    for name in read_index(plan.index).keys() - records.keys():
        print(f"Left out, run with other settings than the recipe has today: {name}")
    missing = [cell for cell in plan.cells if cell.name not in records]
    failed = failures(plan, missing)
    results = Results(records, failed, arguments.epochs)
    shown = parts if arguments.quick else covered(parts, results)
    path = write_report(arguments.results, shown, results, arguments.quick)
    print(f"The report: {path}")
    if missing:
        print(f"{len(missing)} of {len(plan.cells)} cells are not finished:", file=sys.stderr)
        for cell in sorted(missing, key=lambda cell: cell not in failed)[:_SHOWN]:
            blocked = status(plan, cell, records) == "blocked"
            why = failed.get(cell) or ("needs a cell that failed" if blocked else "not run")
            print(f"  {cell.name}: {why}", file=sys.stderr)
        if len(missing) > _SHOWN:
            print(f"  and {len(missing) - _SHOWN} more: --list has all", file=sys.stderr)
    return 1 if missing else 0


def _device(name: str) -> str:
    """Raises CellError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CellError(f"--device {name}: there is no CUDA device here; use cpu or auto")
    return name


if __name__ == "__main__":
    sys.exit(main())
