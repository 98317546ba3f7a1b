"""One item sequence a user, and where its training, validation and test lie.

Shapes: U users, I items, N interactions after the filter, T window length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from forward_ofa.data.filtering import FilterConfig, positions
from forward_ofa.data.log import ROWS_AT_ONCE, IntArray, LongArray, forget, user_ranges
from forward_ofa.data.splitting import Split

PADDING = 0


@dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Users' item sequences in time order. Arrays may be memory-mapped: they are never written to.

    offsets:      int64 [U + 1]; user u's items are items[offsets[u]:offsets[u + 1]].
    items:        int32 [N], dense item index 1..I; 0 is padding and never occurs here.
    train_ends:   int32 [U]; positions before it are training, and the validation target is the
                  item at it, if it lies before test_starts.
    test_starts:  int32 [U]; the test target is the item at it, if the user has so many.
    user_ids:     external id of user u.
    item_ids:     external id of item index i is item_ids[i - 1].
    titles:       external item id -> title; may be empty or partial.
    filter, split: the rules that made it; `notes` says in plain words what was dropped,
                  and what a person should know of the log.
    """

    offsets: LongArray
    items: IntArray
    train_ends: IntArray
    test_starts: IntArray
    user_ids: Sequence[str]
    item_ids: list[str]
    titles: dict[str, str]
    filter: FilterConfig
    split: Split
    name: str
    source: str
    notes: list[str] = field(default_factory=list)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """I, without the padding index."""
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        """N."""
        return len(self.items)

    def lengths(self) -> LongArray:
        """int64 [U]: number of interactions of each user."""
        return np.diff(self.offsets)

    def history(self, user: int) -> IntArray:
        """int32 [n_u]: all items of a user, oldest first (a view: do not write to it)."""
        if not 0 <= user < self.num_users:
            raise IndexError(f"user {user} is not in 0..{self.num_users - 1}")
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def target_counts(self) -> LongArray:
        """int64 [U]: training targets of each user, at positions 1 .. count.

        Position 0 has no history to predict it from.
        """
        return np.maximum(self.train_ends.astype(np.int64) - 1, 0)

    def held_out(self, part: str) -> tuple[LongArray, LongArray]:
        """(users, positions), each int64 [n]: the targets of "validation" or "test", one a user.

        Raises ValueError for another part.
        """
        if part == "validation":
            at, there = self.train_ends, self.train_ends < self.test_starts
        elif part == "test":
            at, there = self.test_starts, self.test_starts < self.lengths()
        else:
            raise ValueError(f"there is no part {part!r}: validation and test are held out")
        users = np.flatnonzero(there)
        return users, at[users].astype(np.int64)

    def before(
        self, users: NDArray[np.integer], ends: NDArray[np.integer]
    ) -> tuple[LongArray, IntArray]:
        """(rows int64 [m], items int32 [m]): all items before position `ends` of each of the
        users, oldest first; rows says which of the users."""
        self._check(users, ends, last=0)
        rows = np.repeat(np.arange(len(users)), ends)
        at = np.repeat(self.offsets[users], ends) + positions(ends.astype(np.int64))
        return rows, self.items[at]

    def targets(self, users: NDArray[np.integer], positions: NDArray[np.integer]) -> IntArray:
        """int32 [n]: the items at these positions. Raises ValueError outside a sequence."""
        self._check(users, positions, last=-1)
        found: IntArray = self.items[self.offsets[users] + positions]
        return found

    def windows(
        self, users: NDArray[np.integer], ends: NDArray[np.integer], length: int
    ) -> IntArray:
        """int32 [n, length]: the last `length` items before position `ends`, left-padded with 0.

        users, ends: integers [n]; the item at `ends` itself is not in the window.
        Raises ValueError for an end outside 0..n_u or a length below 1.
        """
        if length < 1:
            raise ValueError(f"length must be 1 or more, not {length}")
        self._check(users, ends, last=0)
        begin = self.offsets[users]
        index = (begin + ends)[:, None] + np.arange(-length, 0)
        inside = index >= begin[:, None]
        return np.where(inside, self.items[np.maximum(index, 0)], np.int32(PADDING))

    def _check(self, users: NDArray[np.integer], positions: NDArray[np.integer], last: int) -> None:
        if len(users) != len(positions):
            raise ValueError("users and positions must have the same length")
        if len(users) == 0:
            return
        if int(users.min()) < 0 or int(users.max()) >= self.num_users:
            raise ValueError(f"a user is not in 0..{self.num_users - 1}")
        if int(positions.min()) < 0 or bool(
            (positions > self.offsets[users + 1] - self.offsets[users] + last).any()
        ):
            raise ValueError("a position lies outside its user's sequence")

    def popularity(self) -> LongArray:
        """int64 [I + 1]: how often each item is a training target; entry 0 (padding) is 0."""
        counts = np.zeros(self.num_items + 1, np.int64)
        for first, last in user_ranges(self.offsets, self.items):
            lengths = np.diff(self.offsets[first : last + 1])
            place = positions(lengths)
            target = (place > 0) & (place < np.repeat(self.train_ends[first:last], lengths))
            items = self.items[self.offsets[first] : self.offsets[last]]
            counts += np.bincount(items[target], minlength=len(counts))
        return counts

    def fingerprint(self) -> str:
        """SHA-256, in hex, of sequences, ids and split: equal on every machine for equal content.

        Titles, name and source are left out: they do not change what is learnt. Computed once.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(b"[[")
        for ids, end in ((self.user_ids, b"], ["), (self.item_ids, b"]]")):
            for text in _json_list(ids):
                digest.update(text)
            digest.update(end)
        digest.update(np.ascontiguousarray(self.offsets, "<i8").data)
        for start in range(0, len(self.items), ROWS_AT_ONCE):
            digest.update(
                np.ascontiguousarray(self.items[start : start + ROWS_AT_ONCE], "<i4").data
            )
            forget(self.items)
        if self.split.by == "time":
            digest.update(np.ascontiguousarray(self.train_ends, "<i4").data)
            digest.update(np.ascontiguousarray(self.test_starts, "<i4").data)
        return digest.hexdigest()


def _json_list(ids: Sequence[str]) -> Iterator[bytes]:
    """The inside of the ids' JSON list, some at a time."""
    stream, first = iter(ids), True
    while part := list(islice(stream, 1 << 16)):
        text = json.dumps(part)[1:-1].encode()
        yield text if first else b", " + text
        first = False
