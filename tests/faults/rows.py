"""One fault after the other, and a row for each: what clients noticed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.catalogue import Broken, Fault
from tests.support.clients import ALONE
from tests.support.load import PATIENCE, Answered, Load
from tests.support.stalls import Stalls

_CALM, _AFTER = 0.5, 0.3
_LIMIT = 300.0
"""Seconds in which everything must work again; on a busy machine a process starts slowly."""
SLOW = 1.0
"""Seconds from which a client is said to notice."""


@dataclass
class Row:
    """behind: the fault lies behind the controllers, so that a device's patience must be enough.
    skipped: why the fault was not made. problem: what went wrong beside the requests. Counts
    are of the requests that ended while it lasted, and until all that began meanwhile had ended.

    refused: attempts that were told when to come again; unanswered: attempts that met nobody, or
    nobody in time. slowest_ms: of whole requests with all their attempts; balanced_ms: of
    clients with a balancer (their own, or the gateway's) alone. lasted_s: from the fault's
    beginning to its end; recovered_s: from then until what was broken answers again and no
    request is refused or takes more than a second. stalled_s: the machine itself stood still.
    """

    fault: str
    behind: bool = False
    skipped: str = ""
    problem: str = ""
    requests: int = 0
    failed: int = 0
    wrong: int = 0
    refused: int = 0
    unanswered: int = 0
    slowest_ms: int = 0
    balanced_ms: int = 0
    lasted_s: float = 0.0
    recovered_s: float = 0.0
    stalled_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    by_client: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        """Whether it shows a defect."""
        return bool(self.failed or self.wrong or self.problem)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def make_row(fault: Fault, load: Load, stalls: Stalls) -> Row:
    """Makes a fault, waits until all is well again, and counts."""
    if fault.missing:
        return Row(fault.name, fault.behind, skipped=fault.missing)
    row = Row(fault.name, fault.behind)
    time.sleep(_CALM)
    start = time.monotonic()
    try:
        fault.begin()
        time.sleep(fault.seconds)
    except Broken as broken:
        row.problem = str(broken)
    fault.end()
    end = time.monotonic()
    fault.mark()
    well = _wait_until_well(fault, end, row)
    over = _wait_for_requests(load, well, row)
    load.check()
    answered = load.ended_between(start, over)
    noticed = [one.ended for one in answered if one.refused or one.seconds > SLOW]
    row.lasted_s = round(end - start, 1)
    row.recovered_s = round(max(0.0, well - end, *(moment - end for moment in noticed)), 1)
    row.stalled_s = round(stalls.seconds(start, over), 1)
    _count(row, answered)
    return row


def _wait_until_well(fault: Fault, since: float, row: Row) -> float:
    """The moment when what was broken worked again."""
    while not fault.recovered():
        if time.monotonic() - since > _LIMIT:
            row.problem = row.problem or f"not recovered after {_LIMIT:.0f} s"
            break
        time.sleep(0.05)
    return time.monotonic()


def _wait_for_requests(load: Load, well: float, row: Row) -> float:
    """The moment when every request that began before `well` has ended, and a bit more."""
    while load.under_way_since(well):
        if time.monotonic() - well > PATIENCE + 10:
            row.problem = row.problem or "a request does not end"
            break
        time.sleep(0.02)
    time.sleep(_AFTER)
    return time.monotonic()


def _count(row: Row, answered: Sequence[Answered]) -> None:
    refusals = [refusal for one in answered for refusal in one.refused]
    row.requests = len(answered)
    row.failed = sum(bool(one.failed) for one in answered)
    row.wrong = sum(bool(one.wrong) for one in answered)
    row.refused = sum(refusal.window for refusal in refusals)
    row.unanswered = len(refusals) - row.refused
    row.reasons = dict(Counter(refusal.reason for refusal in refusals).most_common())
    row.failures = [one.failed or one.wrong for one in answered if one.failed or one.wrong][:20]
    for kind in sorted({one.kind for one in answered}):
        of_kind = [one for one in answered if one.kind == kind]
        row.by_client[kind] = {
            "requests": len(of_kind),
            "attempts without answer": sum(len(one.refused) for one in of_kind),
            "slowest ms": _slowest(of_kind),
        }
    row.slowest_ms = _slowest(answered)
    row.balanced_ms = _slowest([one for one in answered if one.kind != ALONE])


def _slowest(answered: Sequence[Answered]) -> int:
    return round(1e3 * max((one.seconds for one in answered), default=0.0))
