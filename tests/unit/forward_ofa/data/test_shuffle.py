from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa.data.shuffle import bijection, shuffled


@settings(deadline=None)
@given(count=st.integers(1, 3000), size=st.integers(5, 500), seed=st.integers(0, 99))
@pytest.mark.parametrize("drawn_up_to", [0, 1 << 24])
def test_each_number_once(count: int, size: int, seed: int, drawn_up_to: int) -> None:
    parts = list(shuffled(count, size, np.random.default_rng(seed), drawn_up_to))
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    again = list(shuffled(count, size, np.random.default_rng(seed), drawn_up_to))
    assert np.array_equal(np.concatenate(parts), np.concatenate(again))


def test_without_a_generator_they_stay_in_order() -> None:
    assert np.concatenate(list(shuffled(10, 4, None))).tolist() == list(range(10))
    assert list(shuffled(0, 4, np.random.default_rng(0), 0)) == []


def test_a_computed_order_looks_drawn() -> None:
    """Neighbours end up anywhere: correlation and mean distance as of a drawn permutation."""
    count = 1 << 20
    keys = np.random.default_rng(1).integers(0, 2**63, 6, dtype=np.uint64)
    order = bijection(np.arange(count), count, keys)
    assert abs(np.corrcoef(np.arange(count), order)[0, 1]) < 0.005
    steps = np.abs(np.diff(order)) / count
    assert steps.mean() == pytest.approx(1 / 3, abs=0.003)
    assert np.bincount(order[: count // 16] * 16 // count, minlength=16).min() > 3800
    other = np.random.default_rng(2).integers(0, 2**63, 6, dtype=np.uint64)
    assert (order == bijection(np.arange(count), count, other)).sum() < 20
