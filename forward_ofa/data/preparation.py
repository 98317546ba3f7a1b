"""From a log to sequences: order, drop duplicates, filter, split, number densely.

Each step goes over the log some millions of rows at a time. What is kept in memory between the
steps has an entry a user or an item, never one an interaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from forward_ofa.data.filtering import (
    MIN_SEQUENCE,
    MIN_TRAINING,
    BoolArray,
    FilterConfig,
    explain_empty,
    hashed_order,
    id_hashes,
    positions,
    repeated_rows,
    sums,
    survivors,
)
from forward_ofa.data.log import DataError, IntArray, InteractionLog, LongArray, user_ranges
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.data.splitting import Split, SplitConfig
from forward_ofa.data.workspace import IdColumn, Workspace


@dataclass(frozen=True)
class _Ordered:
    """Rows in their final order, before the filter; int64 [U]: how many of each user's rows lie
    before V and before T, if the split is by time."""

    offsets: LongArray
    items: IntArray
    before_validation: LongArray | None
    before_test: LongArray | None


@dataclass(frozen=True)
class _Kept:
    """What the filter leaves of the users first .. last; all int64 [last - first] but `items`."""

    first: int
    last: int
    items: IntArray
    lengths: LongArray
    train: LongArray
    before_test: LongArray
    repeats: int


def prepare(
    log: InteractionLog,
    config: FilterConfig,
    split: SplitConfig | None = None,
    workspace: Workspace | None = None,
) -> SequenceDataset:
    """Order, deduplicate, filter and split a log, then number its users and items densely.

    workspace: where the arrays go; left out: in memory.
    Raises DataError when the log has one user only or the filter leaves fewer than two users or
    two items (the message has the counts and which threshold to lower), or when a part of the
    split would be empty; OSError when the workspace cannot be written.
    """
    if len(log.user_ids) < 2:
        raise DataError(
            f"{log.name}: {len(log):,} interactions of {len(log.user_ids)} user(s). "
            "At least two users are needed; check that the user column is the right one "
            "(--user-column)."
        )
    place = workspace or Workspace()
    scratch = place.inside("ordered")
    chosen = (split or SplitConfig()).resolve(log)
    notes = list(log.notes)
    rows = _ordered(log, config, chosen, scratch, notes)
    found = _Filtered(log, config, chosen, rows, notes).written(place)
    scratch.discard()
    return found


def _ordered(
    log: InteractionLog, config: FilterConfig, split: Split, place: Workspace, notes: list[str]
) -> _Ordered:
    """Tie rule and exact duplicates, and where each user's history is cut by a split by time."""
    items = place.column("items", np.int32)
    lengths = np.diff(log.offsets)
    cuts = [np.zeros(len(lengths), np.int64) for _ in range(2)]
    item_hash = id_hashes(log.item_ids) if config.ties == "hash" else None
    for first, last in user_ranges(log.offsets, log.items, log.timestamps):
        rows = slice(log.offsets[first], log.offsets[last])
        what, when = log.items[rows], log.timestamps[rows]
        users = np.repeat(np.arange(last - first), lengths[first:last])
        if item_hash is not None:
            user_hash = id_hashes(log.user_ids[first:last])
            order = hashed_order(users, when, user_hash[users], item_hash[what])
            what, when = what[order], when[order]
        if config.deduplicate != "keep":
            fresh = ~repeated_rows(users, what, when)
            users, what, when = users[fresh], what[fresh], when[fresh]
            lengths[first:last] = np.bincount(users, minlength=last - first)
        for cut, moment in zip(cuts, (split.validation_from, split.test_from), strict=True):
            if moment is not None:
                cut[first:last] = np.bincount(users[when < moment], minlength=last - first)
        items.append(what)
    kept = int(lengths.sum())
    _note_drop(notes, len(log) - kept, "exact duplicates (same user, item and time)")
    by_time = split.by == "time"
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return _Ordered(offsets, items.finish(), *(cuts if by_time else (None, None)))


class _Filtered:
    """The rows that stay, and the data set that they make."""

    def __init__(
        self, log: InteractionLog, config: FilterConfig, split: Split, rows: _Ordered,
        notes: list[str],
    ) -> None:  # fmt: skip
        self._log, self._config, self._split = log, config, split
        self._rows, self._notes = rows, notes
        self._users, self._items = survivors(
            rows.offsets, rows.items, len(log.item_ids), config, rows.before_validation
        )

    def written(self, place: Workspace) -> SequenceDataset:
        """The data set, its arrays in a workspace."""
        catalogue = self._choose()
        number = np.cumsum(catalogue, dtype=np.int32)  # dense index of each item, from 1
        items = place.column("items.int32", np.int32)
        ids = IdColumn(place, "users")
        columns = [np.zeros(int(self._users.sum()), np.int64) for _ in range(3)]
        done = 0
        for kept in self._ranges():
            stay = self._users[kept.first : kept.last]
            items.append(number[kept.items])
            size = int(stay.sum())
            for column, values in zip(
                columns, (kept.lengths, kept.train, kept.before_test), strict=True
            ):
                column[done : done + size] = values[stay]
            done += size
            names = pl.Series(list(self._log.user_ids[kept.first : kept.last]), dtype=pl.String)
            ids.append(names.filter(pl.Series(stay)))
        log = self._log
        item_ids = [log.item_ids[code] for code in np.flatnonzero(catalogue)]
        return SequenceDataset(
            offsets=np.concatenate(([0], np.cumsum(columns[0]))),
            items=items.finish(),
            train_ends=columns[1].astype(np.int32),
            test_starts=columns[2].astype(np.int32),
            user_ids=ids.finish(),
            item_ids=item_ids,
            titles={item: log.titles[item] for item in item_ids if item in log.titles},
            filter=self._config,
            split=self._split,
            name=log.name,
            source=log.source,
            notes=self._notes,
        )

    def _choose(self) -> BoolArray:
        """Settles which users stay, tells what was dropped, and returns which items are left."""
        log, short, repeats, passed = self._log, 0, 0, 0
        seen = np.zeros(len(log.item_ids), np.bool_)
        users = np.zeros(len(self._users), np.bool_)
        left = 0
        for kept in self._ranges():
            enough = kept.lengths >= MIN_SEQUENCE
            if self._split.by == "time":
                enough = kept.train >= MIN_TRAINING
            users[kept.first : kept.last] = enough
            short += int(((kept.lengths > 0) & ~enough).sum())
            repeats += kept.repeats
            passed += int(kept.lengths.sum()) + kept.repeats
            seen[kept.items[np.repeat(enough, kept.lengths)]] = True
            left += int(kept.lengths[enough].sum())
        self._users = users
        notes = self._notes
        rare = len(self._rows.items) - passed
        _note_drop(notes, rare, "interactions of too rare users or items")
        _note_drop(notes, repeats, "repeats of the item directly before")
        least = f"{MIN_SEQUENCE} interactions left"
        if self._split.by == "time":
            least = f"{MIN_TRAINING} training interactions"
        _note_drop(notes, short, f"users with fewer than {least}")
        if int(users.sum()) < 2 or int(seen.sum()) < 2:
            counts = int(users.sum()), int(seen.sum())
            rows = self._rows
            raise explain_empty(log, rows.offsets, rows.items, self._config, counts)
        notes.append(
            f"kept {int(users.sum()):,} of {len(users):,} users, {int(seen.sum()):,} of "
            f"{len(seen):,} items, {left:,} of {len(log):,} interactions"
        )
        return seen

    def _ranges(self) -> Iterator[_Kept]:
        rows = self._rows
        for first, last in user_ranges(rows.offsets, rows.items):
            lengths = np.diff(rows.offsets[first : last + 1])
            items = rows.items[rows.offsets[first] : rows.offsets[last]]
            keep = self._items[items] & np.repeat(self._users[first:last], lengths)
            before = int(keep.sum())
            if self._config.deduplicate == "consecutive":
                users = np.repeat(np.arange(last - first), lengths)
                keep[keep] = _changes(users[keep], items[keep])
            counts = sums(keep, lengths)
            train, test = counts - 2, counts - 1
            if rows.before_validation is not None and rows.before_test is not None:
                place = positions(lengths)
                train, test = (
                    sums(keep & (place < np.repeat(cut[first:last], lengths)), lengths)
                    for cut in (rows.before_validation, rows.before_test)
                )
            repeats = before - int(counts.sum())
            yield _Kept(first, last, items[keep], counts, train, test, repeats)


def _changes(users: LongArray, items: IntArray) -> BoolArray:
    """bool [n]: rows that do not repeat the row before."""
    changes = np.ones(len(users), np.bool_)
    changes[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return changes


def _note_drop(notes: list[str], dropped: int, what: str) -> None:
    if dropped:
        notes.append(f"dropped {dropped:,} {what}")
