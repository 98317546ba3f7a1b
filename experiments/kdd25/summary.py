"""From records to what a table shows: mean and deviation over seeds, or why there is nothing."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.kdd25.cells import Cell
from experiments.kdd25.recipes import Part
from experiments.kdd25.results import Record

METRICS = {
    "ndcg": "ndcg@10",
    "hit": "hit@10",
    "mflops": "paper_mflops",
    "true_mflops": "true_mflops",
    "mbit": "paper_mbit",
    "true_mbit": "true_mbit",
    "unseen": "unseen_ndcg@10",
    "funnel": "funnel_ndcg@10",
    "kept": "mean_kept_blocks",
}
"""A table's column -> the key of a record's figures."""
NOT_RUN = "not run"


@dataclass(frozen=True)
class Mean:
    """Over seeds. deviation: of the sample (n - 1), None for one seed."""

    value: float
    deviation: float | None
    seeds: int

    def text(self, digits: int = 4) -> str:
        if not self.deviation:  # one seed, or a figure that no seed changes
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Results:
    """records: by name. failures: cell -> why it failed the last time.

    epochs: the budget that is shown; None: the recipe's where there is one, else the largest.
    """

    records: Mapping[str, Record]
    failures: Mapping[Cell, str] = dataclasses.field(default_factory=dict)
    epochs: int | None = None

    def of(self, cell: Cell) -> list[Record]:
        """All seeds of one cell, all of one budget, by seed; [] if it was not run."""
        wanted = _row(cell)
        groups: dict[int | None, list[Record]] = {}
        for record in self.records.values():
            if _row(record.cell) == wanted:
                groups.setdefault(record.cell.epochs, []).append(record)
        if self.epochs is not None:
            chosen = self.epochs if self.epochs in groups else None
        else:
            chosen = None if None in groups else max(groups, key=lambda e: e or 0, default=None)
        return sorted(groups.get(chosen, []), key=lambda record: record.cell.seed)

    def mean(self, cell: Cell, column: str) -> Mean | None:
        """One column of one row; None if it was not run or the system has no such figure."""
        values = [
            float(record.figures[METRICS[column]])
            for record in self.of(cell)
            if METRICS[column] in record.figures
        ]
        if not values:
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Mean(statistics.fmean(values), deviation, len(values))

    def alike(self, part: Part) -> Results:
        """With the seeds alone that all rows of a part have which were run: a better seed is no
        better system."""
        ran = [{r.cell.seed for r in self.of(row.cell)} for row in part.rows]
        shared = set.intersection(*filter(None, ran)) if any(ran) else set()
        records = {n: r for n, r in self.records.items() if r.cell.seed in shared}
        return dataclasses.replace(self, records=records)

    def text(self, cell: Cell, column: str, digits: int = 4) -> str:
        """As `mean`, or why there is nothing: a figure is never guessed."""
        found, records = self.mean(cell, column), self.of(cell)
        if found is not None:
            if found.seeds == len(records):
                return found.text(digits)
            have = [str(r.cell.seed) for r in records if METRICS[column] in r.figures]
            return f"{found.text(digits)} (seed {', '.join(have)})"
        if records:
            return "-"
        return "failed" if self.failure(cell) else NOT_RUN

    def failure(self, cell: Cell) -> str:
        """Why this cell failed, "" if it did not, whatever the seed and the budget."""
        wanted = _row(cell)
        return next((why for failed, why in self.failures.items() if _row(failed) == wanted), "")

    def any(self, part: Part) -> bool:
        """Whether anything of this part was run, or at least tried."""
        return any(self.of(row.cell) or self.failure(row.cell) for row in part.rows)


def _row(cell: Cell) -> Cell:
    """What all seeds and budgets of a table's row have in common."""
    return dataclasses.replace(cell, seed=0, epochs=None)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def order(pairs: Sequence[tuple[str, float]]) -> list[str]:
    """Names from best to worst."""
    return [name for name, _ in sorted(pairs, key=lambda pair: -pair[1])]


def agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[int, int]:
    """(pairs of systems in the same order, pairs), over what both have. A pair
    that is equal on either side is left out."""
    names = [name for name in ours if name in theirs]
    same = total = 0
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            left = ours[first] - ours[second]
            right = theirs[first] - theirs[second]
            if left and right:
                total += 1
                same += (left > 0) == (right > 0)
    return same, total
