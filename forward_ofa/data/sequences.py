"""From a log to one item sequence a user, split leave-one-out: last test, second-last validation.

Shapes: U users, I items, N interactions after the filter, T window length.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forward_ofa.data.filtering import (
    MIN_SEQUENCE,
    FilterConfig,
    chronological,
    exact_duplicates,
    explain_empty,
    keep_mask,
)
from forward_ofa.data.log import DataError, IntArray, InteractionLog, LongArray

PADDING = 0


@dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Users' item sequences in time order.

    offsets:   int64 [U + 1]; user u's items are items[offsets[u]:offsets[u + 1]], three or more.
    items:     int32 [N], dense item index 1..I; 0 is padding and never occurs here.
    user_ids:  external id of user u.
    item_ids:  external id of item index i is item_ids[i - 1].
    titles:    external item id -> title; may be empty or partial.
    filter:    the rule that made it; `notes` says in plain words what was dropped.
    """

    offsets: LongArray
    items: IntArray
    user_ids: list[str]
    item_ids: list[str]
    titles: dict[str, str]
    filter: FilterConfig
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

    def train_positions(self) -> tuple[LongArray, LongArray]:
        """(users, positions), each int64 [n]: training targets, positions 1..n_u - 3.

        Position 0 has no history to predict it from.
        """
        counts = self.lengths() - MIN_SEQUENCE
        users = np.repeat(np.arange(self.num_users), counts)
        first = np.cumsum(counts) - counts
        return users, np.arange(len(users)) - np.repeat(first, counts) + 1

    def validation_positions(self) -> tuple[LongArray, LongArray]:
        """(users, positions), each int64 [U]: the second-last item of every user."""
        return np.arange(self.num_users), self.lengths() - 2

    def test_positions(self) -> tuple[LongArray, LongArray]:
        """(users, positions), each int64 [U]: the last item of every user."""
        return np.arange(self.num_users), self.lengths() - 1

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

    def _check(
        self, users: NDArray[np.integer], positions: NDArray[np.integer], last: int
    ) -> None:  # fmt: skip
        if len(users) != len(positions):
            raise ValueError("users and positions must have the same length")
        if len(users) == 0:
            return
        if int(users.min()) < 0 or int(users.max()) >= self.num_users:
            raise ValueError(f"a user is not in 0..{self.num_users - 1}")
        if int(positions.min()) < 0 or bool((positions > self.lengths()[users] + last).any()):
            raise ValueError("a position lies outside its user's sequence")

    def popularity(self) -> LongArray:
        """int64 [I + 1]: how often each item is a training target; entry 0 (padding) is 0."""
        return np.bincount(self.targets(*self.train_positions()), minlength=self.num_items + 1)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of sequences and ids: equal on every machine for equal content.

        Titles, name and source are left out: they do not change what is learnt.
        """
        digest = hashlib.sha256(json.dumps([self.user_ids, self.item_ids]).encode())
        digest.update(self.offsets.astype("<i8").tobytes())
        digest.update(self.items.astype("<i4").tobytes())
        return digest.hexdigest()


def prepare(log: InteractionLog, config: FilterConfig) -> SequenceDataset:
    """Order, deduplicate and filter a log, then number its users and items densely.

    Raises DataError when the log has one user only or the filter leaves fewer than two users or
    two items; the message has the counts and which threshold to lower.
    """
    if len(log) == 0 or len(np.unique(log.users)) < 2:
        raise DataError(
            f"{log.name}: {len(log):,} interactions of {len(np.unique(log.users))} user(s). "
            "At least two users are needed; check that the user column is the right one "
            "(--user-column)."
        )
    notes = [f"source: {log.source}", f"filter: {config.describe()}"]
    rows = chronological(log, config.ties)
    if config.deduplicate != "keep":
        repeated = exact_duplicates(log)
        rows = _drop(rows, ~repeated[rows], "exact duplicates (same user, item and time)", notes)
    users, items = log.users[rows], log.items[rows]
    keep = keep_mask(users, items, config)
    rows = _drop(rows, keep, "interactions of too rare users or items", notes)
    if config.deduplicate == "consecutive":
        users, items = log.users[rows], log.items[rows]
        again = np.zeros(len(rows), dtype=np.bool_)
        again[1:] = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
        rows = _drop(rows, ~again, "repeats of the item directly before", notes)
    count = np.bincount(log.users[rows], minlength=len(log.user_ids))
    few = int(((count > 0) & (count < MIN_SEQUENCE)).sum())
    rows = rows[count[log.users[rows]] >= MIN_SEQUENCE]
    if few:
        notes.append(f"dropped {few:,} users with fewer than {MIN_SEQUENCE} interactions left")
    return _number(log, config, rows, notes)


def _drop(rows: LongArray, keep: NDArray[np.bool_], what: str, notes: list[str]) -> LongArray:
    left = rows[keep]
    if len(left) < len(rows):
        notes.append(f"dropped {len(rows) - len(left):,} {what}")
    return left


def _number(
    log: InteractionLog, config: FilterConfig, rows: LongArray, notes: list[str]
) -> SequenceDataset:
    users, counts = np.unique(log.users[rows], return_counts=True)
    catalogue, dense = np.unique(log.items[rows], return_inverse=True)
    if len(users) < 2 or len(catalogue) < 2:
        raise explain_empty(log, config, len(users))
    item_ids = [log.item_ids[code] for code in catalogue]
    notes.append(
        f"kept {len(users):,} of {len(log.user_ids):,} users, {len(item_ids):,} of "
        f"{len(log.item_ids):,} items, {len(rows):,} of {len(log):,} interactions"
    )
    return SequenceDataset(
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        items=(dense + 1).astype(np.int32),
        user_ids=[log.user_ids[code] for code in users],
        item_ids=item_ids,
        titles={item: log.titles[item] for item in item_ids if item in log.titles},
        filter=config,
        name=log.name,
        source=log.source,
        notes=notes,
    )
