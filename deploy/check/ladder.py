"""Rungs and their results."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class Absent(Exception):
    """A tool that a rung needs is not on this machine; the text names it."""


@dataclass(frozen=True)
class Outcome:
    """What a rung found. what: one line, what was looked at; problems: none if all is well."""

    what: str
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Rung:
    """One step. climb: does the work; raises Absent where it cannot."""

    name: str
    climb: Callable[[], Outcome]


@dataclass
class Tally:
    """How many rungs ended how."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.ok} ok, {self.failed} failed, {self.skipped} skipped"


_SHOWN = 12


def climb(rungs: Sequence[Rung], say: Callable[[str], None] = print) -> Tally:
    """All of them, one after the other; a failed one stops nobody. Prints the table as it grows."""
    tally = Tally()
    width = max((len(rung.name) for rung in rungs), default=0)

    def line(text: str) -> None:
        tally.lines.append(text)
        say(text)

    for rung in rungs:
        begun = time.monotonic()
        try:
            outcome = rung.climb()
        except Absent as absent:
            tally.skipped += 1
            line(f"{rung.name:{width}}  skipped: {absent}")
            continue
        except Exception:
            # A check that broke has not found that all is well.
            outcome = Outcome("", ["the check itself broke:\n" + traceback.format_exc()])
        seconds = time.monotonic() - begun
        if not outcome.problems:
            tally.ok += 1
            line(f"{rung.name:{width}}  ok       {outcome.what} ({seconds:.1f} s)")
            continue
        tally.failed += 1
        line(f"{rung.name:{width}}  FAILED   {outcome.what} ({seconds:.1f} s)")
        for problem in outcome.problems[:_SHOWN]:
            line("    " + problem.replace("\n", "\n    "))
        if len(outcome.problems) > _SHOWN:
            line(f"    ... and {len(outcome.problems) - _SHOWN} more")
    line(str(tally))
    return tally
