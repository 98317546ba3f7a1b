"""The table, a line at a time; `python -m tests.faults.report FILE` makes Markdown of what
`python -m tests.faults --json FILE` wrote."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def as_table(report: Mapping[str, Any]) -> str:
    """Markdown of what `--json` has written."""
    rows = [Row(**row) for row in report["rows"]]
    heading = ("fault", *(name.replace("_", " ") for name in _COLUMNS))
    lines = [f"| {' | '.join(heading)} |", f"|---|{'---:|' * len(_COLUMNS)}"]
    for row in rows:
        cells = [str(getattr(row, name)) for name in _COLUMNS]
        if row.skipped:
            cells = [f"skipped: {row.skipped}", *[""] * (len(_COLUMNS) - 1)]
        lines.append(f"| {row.fault} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_table(json.loads(Path(sys.argv[1]).read_text())))
