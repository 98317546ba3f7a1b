"""Which interactions of a log take part, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from forward_ofa.data.log import DataError, IntArray, InteractionLog, LongArray, user_ranges

BoolArray = NDArray[np.bool_]
HashArray = NDArray[np.uint64]

MIN_SEQUENCE = 3  # one item each for train, validation and test
MIN_TRAINING = 2  # by time: one to learn from, one to learn


@dataclass(frozen=True)
class FilterConfig:
    """The filter and order of a log; part of the protocol that a result is reported with.

    min_user:     a user needs at least so many interactions.
    min_item:     an item needs at least so many, or more than so many if `strict_item`.
    strict_item:  "more than" instead of "at least" for items (the paper's rule needs it).
    iterate:      repeat until every user and item left fulfils the rule (a k-core); otherwise
                  both are counted once, on the log before the filter.
    ties:         order of one user's interactions of the same time: "file" keeps the order of the
                  source; "hash" orders by a fixed hash of (user, item). Never by item id, which
                  leaks popularity in many logs.
    deduplicate:  "exact" drops rows that repeat user, item and time; "consecutive" also drops an
                  item that directly follows itself after the filter; "keep" drops nothing.
    """

    min_user: int = 5
    min_item: int = 5
    strict_item: bool = False
    iterate: bool = True
    ties: Literal["file", "hash"] = "file"
    deduplicate: Literal["keep", "consecutive", "exact"] = "exact"

    def __post_init__(self) -> None:
        if self.min_user < 0 or self.min_item < 0:
            raise ValueError("min_user and min_item must be 0 or more")
        if self.ties not in ("file", "hash"):
            raise ValueError(f"ties must be 'file' or 'hash', not {self.ties!r}")
        if self.deduplicate not in ("keep", "consecutive", "exact"):
            raise ValueError(f"deduplicate must be keep, consecutive or exact, not "
                             f"{self.deduplicate!r}")  # fmt: skip

    def describe(self) -> str:
        """One line for the protocol card."""
        return (
            f"users with at least {self.min_user} and items with {self._items()} interactions, "
            f"{'repeated until stable' if self.iterate else 'counted once on the raw log'}; "
            f"ties of time by {'order in the source' if self.ties == 'file' else 'fixed hash'}; "
            f"duplicates: {self.deduplicate}"
        )

    def _items(self) -> str:
        return f"{'more than' if self.strict_item else 'at least'} {self.min_item}"


# Reproduces Table 6 of the paper on MovieLens-1M: 6,040 users, 994,852 interactions.
PAPER_FILTER = FilterConfig(min_user=20, min_item=20, strict_item=True, iterate=False)
_PAPER_SHARE = 0.9


def default_filter(log: InteractionLog) -> FilterConfig:
    """The paper's rule where it loses no user and keeps 90 % of the rows, else a 5-core.

    MovieLens releases hold only users with 20 ratings or more, which is where the rule comes from.
    A log that repeats rows is none, and gets the 5-core: the rule counts rows as they stand.
    """
    if len(log) and int(np.diff(log.offsets).min()) >= PAPER_FILTER.min_user:
        _, items = survivors(log.offsets, log.items, len(log.item_ids), PAPER_FILTER)
        left = np.concatenate([
            sums(items[log.items[log.offsets[a] : log.offsets[b]]], np.diff(log.offsets[a : b + 1]))
            for a, b in user_ranges(log.offsets, log.items)
        ])  # fmt: skip
        enough = int(left.sum()) >= _PAPER_SHARE * len(log) and int(left.min()) >= MIN_SEQUENCE
        if enough and not _repeats(log):
            return PAPER_FILTER
    return FilterConfig()


def _repeats(log: InteractionLog) -> bool:
    """Whether a row repeats another one's user, item and time."""
    for first, last in user_ranges(log.offsets, log.items, log.timestamps):
        rows = slice(log.offsets[first], log.offsets[last])
        users = np.repeat(np.arange(last - first), np.diff(log.offsets[first : last + 1]))
        if repeated_rows(users, log.items[rows], log.timestamps[rows]).any():
            return True
    return False


@dataclass(frozen=True)
class FilterChoice:
    """What of a FilterConfig was asked for; None: not said.

    Thresholds of which nothing is said are chosen by the log (`default_filter`).
    """

    min_user: int | None = None
    min_item: int | None = None
    strict_item: bool | None = None
    iterate: bool | None = None
    ties: Literal["file", "hash"] | None = None
    deduplicate: Literal["keep", "consecutive", "exact"] | None = None

    def __post_init__(self) -> None:
        self._over(FilterConfig())

    def resolve(self, log: InteractionLog) -> FilterConfig:
        """The filter for this log."""
        thresholds = (self.min_user, self.min_item, self.strict_item, self.iterate)
        chosen = any(value is not None for value in thresholds)
        return self._over(FilterConfig() if chosen else default_filter(log))

    def _over(self, config: FilterConfig) -> FilterConfig:
        """Raises ValueError for what makes no sense."""
        return replace(config, **{k: v for k, v in asdict(self).items() if v is not None})


def survivors(
    offsets: LongArray,
    items: IntArray,
    num_items: int,
    config: FilterConfig,
    counted: LongArray | None = None,
) -> tuple[BoolArray, BoolArray]:
    """(users bool [U], items bool [I]) that the thresholds keep; a row stays if both its user and
    its item do.

    offsets, items: rows by user. counted: int64 [U], how many of a user's first rows count; all if
    left out, else an item must also be met once among these.
    """
    need_item = config.min_item + int(config.strict_item)
    if counted is not None:
        need_item = max(need_item, 1)
    user_ok = np.ones(len(offsets) - 1, np.bool_)
    item_ok = np.ones(num_items, np.bool_)
    while True:
        user_count, item_count = np.zeros(len(user_ok), np.int64), np.zeros(num_items, np.int64)
        for first, last in user_ranges(offsets, items):
            rows = items[offsets[first] : offsets[last]]
            keep = item_ok[rows]
            lengths = np.diff(offsets[first : last + 1])
            keep &= np.repeat(user_ok[first:last], lengths)
            if counted is not None:
                keep &= positions(lengths) < np.repeat(counted[first:last], lengths)
            user_count[first:last] = sums(keep, lengths)
            item_count += np.bincount(rows[keep], minlength=num_items)
        users = user_ok & (user_count >= config.min_user)
        things = item_ok & (item_count >= need_item)
        stable = bool((users == user_ok).all() and (things == item_ok).all())
        user_ok, item_ok = users, things
        if stable or not config.iterate:
            return user_ok, item_ok


def positions(lengths: LongArray) -> LongArray:
    """0 .. n - 1 for each of the lengths n, one after the other."""
    starts = np.cumsum(lengths) - lengths
    found: LongArray = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    return found


def sums(values: NDArray[np.bool_], lengths: LongArray) -> LongArray:
    """How many are true in each of consecutive pieces of these lengths, which may be 0."""
    total = np.concatenate(([0], np.cumsum(values)))
    ends = np.cumsum(lengths)
    found: LongArray = total[ends] - total[ends - lengths]
    return found


def repeated_rows(users: LongArray, items: IntArray, times: LongArray) -> BoolArray:
    """bool [n]: rows, by user and time, that repeat an earlier row's user, item and time."""
    repeated = np.zeros(len(users), dtype=np.bool_)
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    tied = np.flatnonzero(np.concatenate((same, [False])) | np.concatenate(([False], same)))
    if len(tied):
        # Few rows share user and time with another; only these are looked at.
        order = tied[np.lexsort((items[tied], times[tied], users[tied]))]
        again = np.logical_and.reduce(
            [column[order[1:]] == column[order[:-1]] for column in (users, items, times)]
        )
        repeated[order[1:][again]] = True
    return repeated


def hashed_order(
    users: LongArray, times: LongArray, user_hash: HashArray, item_hash: HashArray
) -> LongArray:
    """int64 [n]: row numbers by user, time, then a fixed hash of (user, item).

    user_hash, item_hash: `id_hashes` of each row's user and item.
    """
    return np.lexsort((_mix(user_hash ^ _mix(item_hash)), times, users))


def id_hashes(ids: Iterable[str]) -> HashArray:
    """A fixed 64-bit hash of each id."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _mix(values: HashArray) -> HashArray:
    """The finaliser of splitmix64; wraps around by design."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def explain_empty(
    log: InteractionLog,
    offsets: LongArray,
    items: IntArray,
    config: FilterConfig,
    left: tuple[int, int],
) -> DataError:
    """The error for a filter that leaves fewer than two users or two items: what to lower.

    offsets, items: its rows by user, without duplicates. left: users and items.
    """
    user_count, item_count = np.diff(offsets), np.zeros(len(log.item_ids), np.int64)
    for first, last in user_ranges(offsets, items):
        rows = items[offsets[first] : offsets[last]]
        item_count += np.bincount(rows, minlength=len(item_count))
    enough_users = int((user_count >= max(config.min_user, MIN_SEQUENCE)).sum())
    enough_items = int((item_count >= config.min_item + int(config.strict_item)).sum())
    if len(log.item_ids) < 2:
        advice = "check that the item column is the right one (--item-column)"
    elif enough_users < 2:
        advice = "lower --min-user"
        if int(np.sort(user_count)[-2:][0]) < MIN_SEQUENCE:
            advice = f"give a longer log: users need at least {MIN_SEQUENCE} interactions each"
    elif enough_items < 2:
        advice = "lower --min-item"
    else:
        advice = "lower --min-item first, then --min-user"
    return DataError(
        f"{log.name}: the filter leaves {left[0]:,} of {len(log.user_ids):,} users and {left[1]:,} "
        f"of {len(log.item_ids):,} items, too few to train on (two of each are needed). Before it, "
        f"{len(items):,} interactions; {enough_users:,} users have at least "
        f"{max(config.min_user, MIN_SEQUENCE)}, {enough_items:,} of {len(log.item_ids):,} items "
        f"have {config._items()}. Please {advice}."
    )
