"""Which interactions of a log take part, and in which order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from forward_ofa.data.log import DataError, InteractionLog, LongArray

MIN_SEQUENCE = 3  # one item each for train, validation and test


@dataclass(frozen=True)
class FilterConfig:
    """The filter and order of a log; part of the protocol that a result is reported with.

    min_user:     a user needs at least so many interactions.
    min_item:     an item needs at least so many, or more than so many if `strict_item`.
    strict_item:  "more than" instead of "at least" for items.
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
    """
    if len(log) and int(np.bincount(log.users).min()) >= PAPER_FILTER.min_user:
        kept = keep_mask(log.users, log.items, PAPER_FILTER)
        left = np.bincount(log.users[kept], minlength=len(log.user_ids))
        if kept.mean() >= _PAPER_SHARE and int(left.min()) >= MIN_SEQUENCE:
            return PAPER_FILTER
    return FilterConfig()


def keep_mask(
    users: NDArray[np.int32], items: NDArray[np.int32], config: FilterConfig
) -> NDArray[np.bool_]:
    """bool [n]: the rows that the thresholds of `config` keep."""
    keep = np.ones(len(users), dtype=np.bool_)
    need_item = config.min_item + int(config.strict_item)
    while keep.any():
        user_count = np.bincount(users[keep], minlength=int(users.max()) + 1)
        item_count = np.bincount(items[keep], minlength=int(items.max()) + 1)
        again = keep & (user_count[users] >= config.min_user) & (item_count[items] >= need_item)
        stable = int(again.sum()) == int(keep.sum())
        keep = again
        if stable or not config.iterate:
            break
    return keep


def exact_duplicates(log: InteractionLog) -> NDArray[np.bool_]:
    """bool [n]: rows that repeat an earlier row's user, item and time."""
    order = np.lexsort((log.timestamps, log.items, log.users))
    repeated = np.zeros(len(log), dtype=np.bool_)
    columns = (log.users[order], log.items[order], log.timestamps[order])
    same = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    repeated[order[1:][same]] = True
    return repeated


def chronological(log: InteractionLog, ties: Literal["file", "hash"]) -> LongArray:
    """int64 [n]: row numbers sorted by user, then time, then the tie rule."""
    if ties == "file":  # lexsort is stable
        return np.lexsort((log.timestamps, log.users))
    user_hash, item_hash = _hashes(log.user_ids), _hashes(log.item_ids)
    mixed = _mix(user_hash[log.users] ^ _mix(item_hash[log.items]))
    return np.lexsort((mixed, log.timestamps, log.users))


def _hashes(ids: list[str]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64; wraps around by design."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def explain_empty(log: InteractionLog, config: FilterConfig, users_left: int) -> DataError:
    """The error for a filter that leaves fewer than two users or two items: what to lower."""
    user_count = np.bincount(log.users, minlength=1)
    item_count = np.bincount(log.items, minlength=1)
    enough_users = int((user_count >= max(config.min_user, MIN_SEQUENCE)).sum())
    enough_items = int((item_count >= config.min_item + int(config.strict_item)).sum())
    if enough_users < 2:
        advice = "lower --min-user"
        if int(np.sort(user_count)[-2:][0]) < MIN_SEQUENCE:
            advice = f"give a longer log: users need at least {MIN_SEQUENCE} interactions each"
    elif enough_items < 2:
        advice = "lower --min-item"
    else:
        advice = "lower --min-item first, then --min-user"
    return DataError(
        f"{log.name}: the filter leaves {users_left} of {len(log.user_ids):,} users, too few to "
        f"train on. Before it, {len(log):,} interactions; {enough_users:,} users have at least "
        f"{max(config.min_user, MIN_SEQUENCE)}, {enough_items:,} of {len(log.item_ids):,} items "
        f"have {config._items()}. Please {advice}."
    )
