"""Runs cells: what is asked, what that needs, what is half done goes on.

Any number of processes may work on the same folder, of one `make paper --workers N` or of several.
They agree by files alone: a lock a cell, which the kernel frees when its process dies, the runs'
own folders, and the index of finished cells. A cell whose process was killed is taken over by
another, from its last checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.kdd25.cells import Cell
from experiments.kdd25.recipes import requirements
from experiments.kdd25.results import Record, Records, add, remove
from experiments.kdd25.settings import finished
from forward_ofa.locks import locked
from forward_ofa.runs import write_json

Status = Literal["done", "failed", "blocked", "half done", "to do"]
_FAILURE = "failure.json"
_OPEN = ("to do", "half done")
_PAUSE = 3.0


class CellError(Exception):
    """A cell cannot be run; the message says what to do."""


@dataclass(frozen=True)
class Plan:
    """What one invocation works on.

    cells: asked for. runs: folder of run folders. index: file of finished cells.
    began: seconds since the epoch; failures from before it are tried again.
    quick: a smoke run: little networks, next to no training.
    """

    cells: tuple[Cell, ...]
    runs: Path
    index: Path
    began: float
    quick: bool = False

    def folder(self, cell: Cell) -> Path:
        """Of the run of a cell, or of what its look is about."""
        return self.runs / cell.name

    def finished(self) -> Records:
        """What the index has, but for what was run with other settings than today's."""
        return finished(self.index, self.quick)

    def lock(self, cell: Cell) -> Path:
        return self.runs / "locks" / f"{cell.name}.lock"

    def has_weights(self, cell: Cell) -> bool:
        return (self.folder(cell) / "report.json").exists()

    def failure(self, cell: Cell) -> str:
        """Why the cell failed in this invocation, "" if it did not."""
        found = _failure(self.folder(cell))
        return str(found["why"]) if found and found["time"] >= self.began else ""


def schedule(plan: Plan) -> list[Cell]:
    """What is to be run, in order: cells that are not in the index, and before each what it needs.

    All of the first seed come before the second, so that an interrupted run leaves whole tables.
    """
    done = plan.finished()
    order: dict[Cell, None] = {}

    def want(cell: Cell) -> None:
        for needed in requirements(cell):
            if needed.name not in done or not plan.has_weights(needed):
                want(needed)
        order.setdefault(cell)

    for cell in sorted(plan.cells, key=lambda cell: cell.seed):
        if cell.name not in done:
            want(cell)
    return list(order)


def status(plan: Plan, cell: Cell, done: Collection[str]) -> Status:
    """Where a scheduled cell stands. done: names of the index's cells."""
    if plan.failure(cell):
        return "failed"
    if cell.name in done and (cell.look or plan.has_weights(cell)):
        return "done"
    if any(plan.failure(needed) for needed in requirements(cell)):
        return "blocked"
    half = not cell.look and (plan.folder(cell) / "config.json").exists()
    return "half done" if half else "to do"


def work(
    plan: Plan,
    run: Callable[[Cell], Record],
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs scheduled cells until none is left that could be; waits for those that others run.

    run: one cell, whose requirements are finished. What it raises is written down as the cell's
    failure and said, and the next one is run. stop: asked before each cell.
    """
    cells = schedule(plan)
    while not stop():
        done = plan.finished()
        left = [cell for cell in cells if status(plan, cell, done) in _OPEN]
        ready = [cell for cell in left if _met(plan, cell)]
        if any(_try(plan, cell, run, say) for cell in ready):
            continue
        if not left or (not ready and not _running(plan, cells)):
            return  # what is left needs something that failed
        time.sleep(_PAUSE)


def _met(plan: Plan, cell: Cell) -> bool:
    return all(plan.has_weights(needed) for needed in requirements(cell))


def _running(plan: Plan, cells: Sequence[Cell]) -> bool:
    """Whether any process holds one of the cells."""
    for cell in cells:
        with locked(plan.lock(cell), wait=False) as mine:
            if not mine:
                return True
    return False


def _try(plan: Plan, cell: Cell, run: Callable[[Cell], Record], say: Callable[[str], None]) -> bool:
    """Whether this process ran the cell, or found it run; False: another one is on it."""
    with locked(plan.lock(cell), wait=False) as mine:
        if not mine:
            return False
        if status(plan, cell, plan.finished()) not in _OPEN:
            return True
        folder = plan.folder(cell)
        (folder / _FAILURE).unlink(missing_ok=True)
        try:
            add(plan.index, run(cell))
        except Exception as error:
            folder.mkdir(parents=True, exist_ok=True)
            why = str(error) or type(error).__name__
            write_json(folder / _FAILURE, {"time": time.time(), "why": why})
            say(f"{cell.name}: failed: {why}")
        return True


def forget(plan: Plan) -> None:
    """Removes the asked cells' runs and figures, and what was seen in them, to run them anew.

    Raises CellError if one of them is running.
    """
    asked = set(plan.cells)
    for cell in plan.cells:
        with locked(plan.lock(cell), wait=False) as mine:
            if not mine:
                raise CellError(f"{cell.name} is running: stop that first, or leave out --again")
            shutil.rmtree(plan.folder(cell), ignore_errors=True)
    remove(plan.index, lambda cell: cell in asked or cell.trained in asked)


def failures(plan: Plan, cells: Sequence[Cell]) -> dict[Cell, str]:
    """Why cells failed the last time, for those that have no result."""
    found = {}
    for cell in cells:
        failure = _failure(plan.folder(cell))
        if failure is not None:
            found[cell] = str(failure["why"])
    return found


def _failure(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / _FAILURE).read_text())
        _ = found["time"], found["why"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found
