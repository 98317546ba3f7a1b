"""From rows in any order to an InteractionLog, in bounded memory: an external merge sort.

Rows are collected into runs. Each run is sorted by user, time and place in the source, and written
out with its sorted table of users. When all have been read, the users are cut into ranges of about
one run's size; a range lies contiguously in each run, so it is read from all of them, merged and
appended to the log. A log of one run takes no detour.

In memory at any time: one run, and the catalogue (ids of all items), which is far smaller than the
embeddings that a model of it needs.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from forward_ofa.data.log import (
    ROWS_AT_ONCE,
    DataError,
    IntArray,
    InteractionLog,
    LongArray,
    forget,
)
from forward_ofa.data.workspace import IdColumn, IdTable, Workspace

_MICROS = 1_000_000


@dataclass(frozen=True)
class Rows:
    """Some rows of a log, in the order of the source.

    users, items: strings [n]. times: int64 [n]. micros: whether times are in microseconds because
    they have fractions; else they are in the source's own unit.
    """

    users: pl.Series
    items: pl.Series
    times: LongArray
    micros: bool = False


@dataclass(frozen=True)
class _Run:
    """users: sorted ids [u]. offsets: int64 [u + 1]. items: codes by first appearance."""

    users: IdTable
    offsets: LongArray
    items: IntArray
    times: LongArray
    micros: bool


def order_key(text: str) -> tuple[int, str]:
    """Ids are sorted by this: shorter first, then alphabetical, so plain numbers by value."""
    return len(text), text


def sorted_ids(ids: pl.Series) -> pl.Series:
    """Distinct ids in the order of `order_key`."""
    frame = pl.DataFrame({"id": ids.unique()})
    return frame.with_columns(size=pl.col("id").str.len_chars()).sort("size", "id")["id"]


def encode(values: pl.Series) -> tuple[IntArray, pl.Series]:
    """(codes int32 [n], distinct ids in the order of `order_key`) of strings [n]."""
    numbers = values.cast(pl.Int64, strict=False)
    plain = numbers.null_count() == 0 and bool((numbers >= 0).all())
    if plain and bool((numbers.cast(pl.String) == values).all()):  # "007" is not 7
        distinct, codes = _distinct(numbers.to_numpy())
        return codes, pl.Series(distinct).cast(pl.String)
    ids = sorted_ids(values)
    table = pl.DataFrame({"id": ids, "code": np.arange(len(ids), dtype=np.int32)})
    joined = pl.DataFrame({"id": values}).join(table, on="id", how="left", maintain_order="left")
    return joined["code"].to_numpy(), ids


def _distinct(values: LongArray) -> tuple[LongArray, IntArray]:
    """(distinct values in order, codes int32 [n]) of values of 0 or more."""
    largest = int(values.max(initial=0))
    if largest > 4 * len(values):
        distinct, codes = np.unique(values, return_inverse=True)
        return distinct, codes.astype(np.int32)
    there = np.zeros(largest + 1, np.bool_)  # ids are mostly dense: no need to sort
    there[values] = True
    return np.flatnonzero(there), (np.cumsum(there, dtype=np.int32) - 1)[values]


def chronological(users: IntArray, times: LongArray) -> LongArray:
    """int64 [n]: row numbers by user, then time, then row."""
    if bool((times[1:] >= times[:-1]).all()):
        return np.argsort(users, kind="stable")
    by_time = np.argsort(times, kind="stable")
    order: LongArray = by_time[np.argsort(users[by_time], kind="stable")]
    return order


class LogSorter:
    """Takes the rows of a log, in the order of the source, and gives the log.

    workspace: where runs and the log go. run_rows: rows of a run, which memory is bounded by.
    """

    def __init__(self, workspace: Workspace, run_rows: int | None = None) -> None:
        self._workspace = workspace
        self._scratch = workspace.inside("runs")
        self._run_rows = run_rows or ROWS_AT_ONCE
        self._pending: list[Rows] = []
        self._waiting = 0
        self._runs: list[_Run] = []
        self._catalogue: dict[str, int] = {}

    def add(self, rows: Rows) -> None:
        """Takes some rows. Raises OSError when the disk is full."""
        self._pending.append(rows)
        self._waiting += len(rows.times)
        if self._waiting >= self._run_rows:
            self._write_run()

    def finish(
        self, titles: dict[str, str], name: str, source: str, notes: Sequence[str] = ()
    ) -> InteractionLog:
        """The log; titles of items that do not occur are left out. Raises OSError, DataError."""
        if self._waiting or not self._runs:
            self._write_run()
        item_ids = sorted_ids(pl.Series(list(self._catalogue), dtype=pl.String)).to_list()
        rank = np.empty(len(item_ids), np.int32)
        rank[[self._catalogue[item] for item in item_ids]] = np.arange(len(item_ids))
        self._catalogue.clear()
        if len(self._runs) == 1:
            run = self._runs[0]
            users, offsets, times = run.users, run.offsets, run.times
            items = self._workspace.column("items", np.int32)
            for start in range(0, len(times), ROWS_AT_ONCE):
                items.append(rank[run.items[start : start + ROWS_AT_ONCE]])
            merged = items.finish()
        else:
            users, offsets, merged, times = self._merge(rank)
            self._scratch.discard()
        self._runs = []
        known = {item: titles[item] for item in item_ids if item in titles} if titles else {}
        return InteractionLog(offsets, merged, times, users, item_ids, known, name, source, notes)

    def _write_run(self) -> None:
        pending, self._pending, self._waiting = self._pending, [], 0
        micros = any(rows.micros for rows in pending)
        times = [_in_micros(rows.times) if micros and not rows.micros else rows.times
                 for rows in pending]  # fmt: skip
        moments = np.concatenate(times) if times else np.empty(0, np.int64)
        codes, ids = encode(_joined([rows.users for rows in pending]))
        order = chronological(codes, moments)
        items = self._item_codes(_joined([rows.items for rows in pending]))
        # A log of one run stays in memory however it is asked for: it is small.
        small = not self._runs and len(moments) < self._run_rows
        place = Workspace() if small else self._scratch.inside(str(len(self._runs)))
        counts = np.bincount(codes, minlength=len(ids))
        self._runs.append(
            _Run(
                users=_stored_ids(place, ids),
                offsets=_stored(place, "offsets", np.append(0, np.cumsum(counts)), np.int64),
                items=_stored(place, "items", items[order], np.int32),
                times=_stored(place, "times", moments[order], np.int64),
                micros=micros,
            )
        )

    def _item_codes(self, items: pl.Series) -> IntArray:
        """Codes by first appearance in the whole log."""
        local, ids = encode(items)
        catalogue = self._catalogue
        table = [catalogue.setdefault(item, len(catalogue)) for item in ids.to_list()]
        return np.array(table, np.int32)[local]

    def _merge(self, rank: IntArray) -> tuple[IdTable, LongArray, IntArray, LongArray]:
        column = self._workspace.column
        offsets, items = column("offsets", np.int64), column("items", np.int32)
        times, total = column("times", np.int64), 0
        ids = IdColumn(self._workspace, "users")
        offsets.append(np.zeros(1, np.int64))
        micros = any(run.micros for run in self._runs)
        starts = [0] * len(self._runs)
        for boundary in [*self._boundaries(), None]:
            stops = [_position(run.users, boundary) for run in self._runs]
            part = [_slice(run, a, b) for run, a, b in zip(self._runs, starts, stops, strict=True)]
            starts = stops
            users, found = encode(_joined([piece[0] for piece in part]))
            codes = np.repeat(users, np.concatenate([piece[1] for piece in part]))
            moments = np.concatenate(
                [_in_micros(piece[3]) if micros and not run.micros else piece[3]
                 for run, piece in zip(self._runs, part, strict=True)]
            )  # fmt: skip
            order = chronological(codes, moments)
            ids.append(found)
            offsets.append(total + np.cumsum(np.bincount(codes, minlength=len(found))))
            items.append(rank[np.concatenate([piece[2] for piece in part])[order]])
            times.append(moments[order])
            total += len(codes)
            for run in self._runs:
                forget(run.offsets, run.items, run.times, run.users.offsets, run.users.blob)
        return ids.finish(), offsets.finish(), items.finish(), times.finish()

    def _boundaries(self) -> list[str]:
        """Users at which ranges of about `run_rows` rows begin, without the first range.

        Each run tells every so manieth row's user; together these are quantiles of the log.
        """
        every = max(1, self._run_rows // (4 * len(self._runs)))
        told: list[str] = []
        for run in self._runs:
            rows = np.arange(every, len(run.times), every)
            users = np.searchsorted(run.offsets, rows, side="right") - 1
            told += [run.users[user] for user in users.tolist()]
        told.sort(key=order_key)
        return list(dict.fromkeys(told[self._run_rows // every :: self._run_rows // every]))


def _position(users: IdTable, boundary: str | None) -> int:
    if boundary is None:
        return len(users)
    return bisect.bisect_left(users, order_key(boundary), key=order_key)


def _slice(run: _Run, start: int, stop: int) -> tuple[pl.Series, LongArray, IntArray, LongArray]:
    """(user ids, rows of each, items, times) of the run's users start .. stop."""
    bounds = run.offsets[start : stop + 1]
    rows = slice(int(bounds[0]), int(bounds[-1]))
    ids = pl.Series(run.users[start:stop], dtype=pl.String)
    return ids, np.diff(bounds), run.items[rows], run.times[rows]


def _stored(place: Workspace, name: str, values: NDArray, dtype: type) -> NDArray:
    column = place.column(name, dtype)
    column.append(values)
    return column.finish()


def _stored_ids(place: Workspace, ids: pl.Series) -> IdTable:
    column = IdColumn(place, "users")
    column.append(ids)
    return column.finish()


def _joined(parts: list[pl.Series]) -> pl.Series:
    return pl.concat(parts) if parts else pl.Series([], dtype=pl.String)


def _in_micros(times: LongArray) -> LongArray:
    if len(times) and int(np.abs(times).max()) >= 2**62 // _MICROS:
        raise DataError(
            "some times have fractions and others are too large to be seconds: "
            "give all of them in one unit"
        )
    return times * _MICROS


def log_from_ids(
    users: list[str] | pl.Series,
    items: list[str] | pl.Series,
    timestamps: NDArray,
    *,
    titles: dict[str, str] | None = None,
    name: str,
    source: str,
) -> InteractionLog:
    """A log in memory from one external id of a user and an item, and one time, a row."""
    people, things = (
        values if isinstance(values, pl.Series) else pl.Series(values, dtype=pl.String)
        for values in (users, items)
    )
    sorter = LogSorter(Workspace())
    sorter.add(Rows(people, things, np.ascontiguousarray(timestamps, dtype=np.int64)))
    return sorter.finish(titles or {}, name, source)
