"""The interaction log: who interacted with what, and when, as read and before any filtering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]


class DataError(Exception):
    """An interaction log cannot be used. The message is public and says what to do about it."""


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """One row an interaction, in the order of the source, which is what breaks ties of time.

    Codes index the sorted external ids (numbers in numeric order), so the same interactions get
    the same codes from any file format and any order of rows.

    users:       int32 [n], indices into `user_ids`.
    items:       int32 [n], indices into `item_ids`.
    timestamps:  int64 [n], in the unit of the source; only their order is used.
    titles:      external item id -> title; may be empty or partial.
    name:        short name of the data set, for reports.
    source:      one line saying where the log comes from.

    Raises ValueError when the arrays differ in length or a code has no id.
    """

    users: IntArray
    items: IntArray
    timestamps: LongArray
    user_ids: list[str]
    item_ids: list[str]
    titles: dict[str, str]
    name: str
    source: str

    def __post_init__(self) -> None:
        if not len(self.users) == len(self.items) == len(self.timestamps):
            raise ValueError("users, items and timestamps must have the same length")
        for codes, ids in ((self.users, self.user_ids), (self.items, self.item_ids)):
            if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= len(ids)):
                raise ValueError("a code points outside its list of ids")

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def from_ids(
        cls,
        users: pl.Series | list[str],
        items: pl.Series | list[str],
        timestamps: NDArray[Any],
        *,
        titles: dict[str, str] | None = None,
        name: str,
        source: str,
    ) -> InteractionLog:
        """Build a log from external ids; titles of items that do not occur are left out."""
        user_codes, user_ids = _encode(users)
        item_codes, item_ids = _encode(items)
        known = titles or {}
        return cls(
            users=user_codes,
            items=item_codes,
            timestamps=np.ascontiguousarray(timestamps, dtype=np.int64),
            user_ids=user_ids,
            item_ids=item_ids,
            titles={item: known[item] for item in item_ids if item in known},
            name=name,
            source=source,
        )


def _encode(values: pl.Series | list[str]) -> tuple[IntArray, list[str]]:
    series = values if isinstance(values, pl.Series) else pl.Series(values, dtype=pl.String)
    # Shorter first, then alphabetical: numeric order for plain integers, total for anything else.
    ids: list[str] = sorted(series.unique().to_list(), key=lambda text: (len(text), text))
    codes = series.cast(pl.Enum(ids)).to_physical().to_numpy()
    return np.ascontiguousarray(codes, dtype=np.int32), ids
