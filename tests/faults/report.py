"""The table, a line at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.faults.rows import Row

_COLUMNS = ("requests", "failed", "wrong", "refused", "unanswered", "slowest_ms", "balanced_ms",
            "lasted_s", "recovered_s")  # fmt: skip
_NAME = 31
_REASONS = 3
HEADING = " ".join([f"{'fault':{_NAME}}", *(name.replace("_", " ") for name in _COLUMNS)])


def line(row: Row) -> str:
    """One row for people."""
    if row.skipped:
        return f"{row.fault:{_NAME}} skipped: {row.skipped}"
    values = (f"{getattr(row, name)!s:>{len(name)}}" for name in _COLUMNS)
    text = " ".join([f"{row.fault:{_NAME}}", *values])
    if row.stalled_s:
        text += f"  (the machine stood still for {row.stalled_s} s)"
    if row.problem:
        text += f"\n    {row.problem}"
    return "\n".join([text, *(f"    {failure}" for failure in row.failures[:_REASONS])])


def verdict(rows: Sequence[Row], broken: Sequence[str]) -> str:
    """The last lines: the sums, and what is not as it should be."""
    made = [row for row in rows if not row.skipped]
    lines = [
        f"{len(made)} faults, {sum(row.requests for row in made)} requests: "
        f"{sum(row.failed for row in made)} failed, {sum(row.wrong for row in made)} wrong"
    ]
    for why, count in Counter(row.skipped for row in rows if row.skipped).items():
        lines.append(f"{count} skipped: {why}")
    lines += [f"defect: {row.fault}" for row in made if row.bad]
    return "\n".join([*lines, *(f"in the log of {text}" for text in broken)])
