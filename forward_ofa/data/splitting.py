"""What is trained on, chosen on and tested on.

By position (leave one out, the paper's): of every user the last item is the test target, the
second last the validation target, all before are training. Other users' training may lie later in
time than a user's test item, as in most published figures.

By time: two moments cut the whole log, V before T. Training targets lie before V. A user's
validation target is the first interaction at or after V, if it comes before T; the test target is
the first one at or after T. A target is predicted from everything of that user before V, or before
T. What lies between a user's target and the next cut is history for the test target, and never a
training target. Thresholds of the filter are counted before V only: users and items that are too
rare there do not take part at all, before or after. So nothing that happens at or after V shapes
training, and nothing at or after T the choice of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from forward_ofa.data.log import ROWS_AT_ONCE, DataError, InteractionLog, LongArray, forget

_BINS = 1 << 16
_UNITS = ((1e11, 1), (1e14, 1_000), (1e17, 1_000_000), (math.inf, 1_000_000_000))
"""(times below this, units a second): seconds since 1970 until the year 5138, and so on."""


@dataclass(frozen=True)
class Split:
    """A split of one log.

    by:               "position" or "time".
    validation_from:  V, in the log's own unit; None by position.
    test_from:        T, likewise.
    """

    by: Literal["position", "time"] = "position"
    validation_from: int | None = None
    test_from: int | None = None

    def describe(self) -> str:
        """One line for the protocol card."""
        if self.validation_from is None or self.test_from is None:
            return "leave one out; last item test, second last validation"
        return (
            f"by time; training before {_told(self.validation_from)}, validation from there, test "
            f"from {_told(self.test_from)}; of a user the first interaction of each period is the "
            "target, all before the period its history; filter counted on training only"
        )


@dataclass(frozen=True)
class SplitConfig:
    """How a log is to be split; see the module for what is what.

    by:                "position" or "time".
    validation_share:  by time: share of all interactions between V and T.
    test_share:        by time: share of all interactions from T on.
    validation_from:   V itself, a number in the log's unit or an ISO 8601 time; then test_from
                       must be given too, and the shares are not used.
    test_from:         T itself.

    Raises ValueError for what makes no sense.
    """

    by: Literal["position", "time"] = "position"
    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: str | None = None
    test_from: str | None = None

    def __post_init__(self) -> None:
        if self.by not in ("position", "time"):
            raise ValueError(f"the split must be position or time, not {self.by!r}")
        shares = (self.validation_share, self.test_share)
        if not (min(shares) > 0 and sum(shares) < 1):
            raise ValueError("validation share and test share must be positive and below 1 in all")
        given = (self.validation_from is not None, self.test_from is not None)
        if any(given) and self.by != "time":
            raise ValueError("validation-from and test-from are for a split by time")
        if any(given) and not all(given):
            missing = "test-from" if given[0] else "validation-from"
            raise ValueError(f"validation-from and test-from belong together: {missing} is missing")

    def resolve(self, log: InteractionLog) -> Split:
        """The split of this log. Raises DataError when its times leave a part empty."""
        if self.by == "position":
            return Split()
        if self.validation_from is not None and self.test_from is not None:
            cuts = (_given(self.validation_from, log), _given(self.test_from, log))
        else:
            before_test = 1 - self.test_share
            shares = (before_test - self.validation_share, before_test)
            cuts = tuple(_at_rank(log.timestamps, int(s * len(log))) for s in shares)  # type: ignore[assignment]
        first, last = _range(log.timestamps)
        if not first < cuts[0] < cuts[1] <= last:
            raise DataError(
                f"{log.name}: a split by time at {_told(cuts[0])} and {_told(cuts[1])} leaves "
                f"training, validation or test empty: its times go from {_told(first)} to "
                f"{_told(last)}. Choose other shares or moments, or split by position."
            )
        return Split("time", *cuts)


def _given(text: str, log: InteractionLog) -> int:
    """A moment in the log's unit."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"{text!r} is no moment: give a number in the log's unit, or an ISO 8601 time such as "
            "2015-01-31 or 2015-01-31T18:00:00Z."
        ) from None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * _per_second(_range(log.timestamps)[1]))


def _per_second(time: int) -> int:
    return next(unit for limit, unit in _UNITS if abs(time) < limit)


def _told(time: int) -> str:
    """A time as the log has it, and as a date where it looks like one."""
    seconds = time / _per_second(time)
    if 0 < seconds < 2**33 and time > 10**8:
        return f"{time} ({datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC)"
    return str(time)


def _pieces(values: LongArray) -> Iterator[LongArray]:
    for start in range(0, len(values), ROWS_AT_ONCE):
        yield values[start : start + ROWS_AT_ONCE]
        forget(values)


def _range(times: LongArray) -> tuple[int, int]:
    ends = [(int(piece.min()), int(piece.max())) for piece in _pieces(times)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _at_rank(times: LongArray, rank: int) -> int:
    """The time of the interaction number `rank`, from 0, in the order of time.

    Histograms of an ever smaller range, so that nothing of the log's length is held.
    """
    low, high = _range(times)
    while low < high:
        width = -(-(high - low + 1) // _BINS)
        counts = np.zeros(_BINS, np.int64)
        for piece in _pieces(times):
            inside = piece[(piece >= low) & (piece <= high)]
            # Differences of int64 may need 64 bits without sign; unsigned arithmetic wraps to them.
            far = inside.astype(np.uint64) - np.uint64(low % 2**64)
            counts += np.bincount((far // np.uint64(width)).astype(np.int64), minlength=_BINS)
        bin_ = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        rank -= int(counts[:bin_].sum())
        low, high = low + bin_ * width, min(high, low + (bin_ + 1) * width - 1)
    return low
