"""The interaction log: who interacted with what, and when, as read and before any filtering."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]

ROWS_AT_ONCE = 1 << 21
"""Rows that a step over a log holds in memory at once; more only for a user who has more."""


class DataError(Exception):
    """An interaction log cannot be used. The message is public and says what to do about it."""


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """All interactions, by user, then time; those of one user and time in the order of the source.

    Codes index the sorted external ids (numbers in numeric order), so the same interactions get
    the same codes from any file format and any order of rows. Arrays may be memory-mapped.

    offsets:     int64 [U + 1]; user u's rows are offsets[u] .. offsets[u + 1].
    items:       int32 [n], indices into `item_ids`.
    timestamps:  int64 [n], in the unit of the source.
    user_ids:    external id of user u.
    titles:      external item id -> title; may be empty or partial.
    name:        short name of the data set, for reports.
    source:      one line saying where the log comes from.
    notes:       what a person should know of it, in plain words.

    Raises ValueError when arrays and ids do not fit together.
    """

    offsets: LongArray
    items: IntArray
    timestamps: LongArray
    user_ids: Sequence[str]
    item_ids: list[str]
    titles: dict[str, str]
    name: str
    source: str
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.items) != len(self.timestamps) or int(self.offsets[-1]) != len(self.items):
            raise ValueError("offsets, items and timestamps must have the same length")
        if len(self.offsets) != len(self.user_ids) + 1:
            raise ValueError("there must be one offset more than users")
        if any(len(part) and not 0 <= part.min() <= part.max() < len(self.item_ids)
               for part in (self.items[a:b] for a, b in self._rows())):  # fmt: skip
            raise ValueError("an item points outside its list of ids")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def users(self) -> IntArray:
        """int32 [n]: the user of each row. For small logs: it is made anew at each call."""
        return np.repeat(np.arange(len(self.user_ids), dtype=np.int32), np.diff(self.offsets))

    def _rows(self) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield start, start + ROWS_AT_ONCE
            forget(self.items)


def user_ranges(offsets: LongArray, *rows: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of consecutive users with about ROWS_AT_ONCE rows together, one at least.

    rows: arrays that are read on the way; what of them is mapped leaves memory after each range.
    """
    users, first = len(offsets) - 1, 0
    while first < users:
        last = int(np.searchsorted(offsets, offsets[first] + ROWS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), users)
        yield first, last
        forget(*rows)
        first = last


def forget(*arrays: NDArray[Any]) -> None:
    """Lets go of the pages of memory-mapped arrays that were read; others are left alone.

    They stay in the kernel's cache, but no longer count as this process's memory, which would
    otherwise grow to the size of all files that it passes over.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
