"""A list of candidates as what is new in it: the items that both sides have go as positions.

Shape legend: m items of the list that is held (the base), n of the new one, k of them new.
"""

from __future__ import annotations

import numpy as np

from forward_ofa_device.errors import CorruptFile

_SHORT_LIMIT = 0xFFFF


def position_type(held: int) -> np.dtype[np.unsignedinteger]:
    """How positions in a list of `held` items are written; the highest value says "new"."""
    return np.dtype("<u2" if held <= _SHORT_LIMIT else "<u4")


def held_positions(base: np.ndarray, rows: np.ndarray) -> tuple[bytes, np.ndarray]:
    """What of a list is held, and what is not.

    base: integers [m], rows: integers [n], each without doubles. The bytes of
    `Candidates.held_positions` [n], and which of `rows` are new, booleans [n].
    """
    kind = position_type(len(base))
    if not len(base):
        return np.full(len(rows), np.iinfo(kind).max, kind).tobytes(), np.ones(len(rows), bool)
    order = np.argsort(base)
    at = np.searchsorted(base, rows, sorter=order).clip(max=len(base) - 1)
    positions = order[at]
    new = base[positions] != rows
    return np.where(new, np.iinfo(kind).max, positions).astype(kind).tobytes(), new


def read_positions(payload: bytes, held: int, new: int) -> np.ndarray:
    """Positions in the held list, -1 for a new item: int64 [n].

    held: m. new: k, how many new items came along. Raises CorruptFile unless each position
    is one of the held list and comes once, and as many say "new" as there are.
    """
    kind = position_type(held)
    if len(payload) % kind.itemsize:
        raise CorruptFile("the positions of held candidates are cut short")
    raw = np.frombuffer(payload, kind)
    is_new = raw == np.iinfo(kind).max
    known = raw[~is_new].astype(np.int64)
    if known.size and known.max() >= held:
        raise CorruptFile(f"position {known.max()} is said to be held, but {held} items are")
    if np.unique(known).size != known.size:
        raise CorruptFile("the candidates name a held item twice")
    if np.count_nonzero(is_new) != new:
        raise CorruptFile(f"{np.count_nonzero(is_new)} candidates are new, but {new} were sent")
    return np.where(is_new, -1, raw.astype(np.int64))
