"""Numbers 0 .. n - 1 in random order, a batch at a time.

Up to 2^24 numbers the order is drawn as one permutation. Beyond, it is computed number by number by
a keyed bijection, so that an epoch over a billion sessions holds nothing but its key: a Feistel
network of six rounds over the smallest even number of bits that holds n, walked on while it leads
outside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Every number is
met exactly once, and any two are independent for all that training can tell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

DRAWN_UP_TO = 1 << 24
_ROUNDS = 6
Unsigned = NDArray[np.uint64]


def shuffled(
    count: int, size: int, rng: np.random.Generator | None, drawn_up_to: int = DRAWN_UP_TO
) -> Iterator[NDArray[np.int64]]:
    """0 .. count - 1 in batches of `size`, in order if `rng` is None."""
    if rng is None:
        for start in range(0, count, size):
            yield np.arange(start, min(start + size, count))
    elif count <= drawn_up_to:
        order = rng.permutation(np.arange(count, dtype=np.uint32))
        for start in range(0, count, size):
            yield order[start : start + size].astype(np.int64)
    else:
        keys = rng.integers(0, 2**63, _ROUNDS, dtype=np.uint64)
        for start in range(0, count, size):
            yield bijection(np.arange(start, min(start + size, count)), count, keys)


def bijection(numbers: NDArray[np.int64], count: int, keys: Unsigned) -> NDArray[np.int64]:
    """int64 [n]: where a keyed permutation of 0 .. count - 1 sends these numbers."""
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    found = _feistel(numbers.astype(np.uint64), half, keys)
    while True:  # each walk ends: the network is a bijection, so it comes back inside
        outside = np.flatnonzero(found >= np.uint64(count))
        if not len(outside):
            return found.astype(np.int64)
        found[outside] = _feistel(found[outside], half, keys)


def _feistel(values: Unsigned, half: np.uint64, keys: Unsigned) -> Unsigned:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    joined: Unsigned = (left << half) | right
    return joined


def _mix(values: Unsigned) -> Unsigned:
    """The finaliser of splitmix64; wraps around by design."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
