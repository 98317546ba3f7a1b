"""The synthetic log has the structure that it promises, measured with simple count models."""

from __future__ import annotations

import time

import numpy as np
import pytest

from forward_ofa.data import FilterConfig, generate_log, prepare
from forward_ofa.data.synthetic import TYPES, _make_world
from tests.support.logs import training_targets


def test_equal_seed_equal_log_in_time() -> None:
    start = time.perf_counter()
    first = generate_log(seed=5)
    assert time.perf_counter() - start < 10  # 0.4 s alone; generous for a busy machine
    second, other = generate_log(seed=5), generate_log(seed=6)
    assert np.array_equal(first.items, second.items)
    assert not np.array_equal(first.items[:1000], other.items[:1000])
    assert len(first.user_ids) == 943
    assert 80 <= len(first) / 943 <= 120
    assert np.bincount(first.users).min() >= 20
    later = np.diff(first.timestamps) >= 0
    assert (later | (np.diff(first.users) > 0)).all()
    assert first.titles["item-17"].startswith("Synthetic Item 17 (genre ")
    assert "synthetic" in first.source


def test_no_item_repeats_within_a_user() -> None:
    log = generate_log(users=100, items=150, seed=1)
    assert len(np.unique(np.stack([log.users, log.items]), axis=1).T) == len(log)


@pytest.mark.parametrize(("users", "items"), [(1, 1200), (50, 99)])
def test_too_small(users: int, items: int) -> None:
    with pytest.raises(ValueError, match="at least 2 users and 100 items"):
        generate_log(users, items)


@pytest.mark.parametrize("seed", [0, 1])
def test_sequence_beats_popularity_and_type_beats_shared(seed: int) -> None:
    data = prepare(generate_log(seed=seed), FilterConfig(20, 20, strict_item=True, iterate=False))
    world = _make_world(943, 1200, np.random.default_rng(seed))
    kind = np.array([world.types[int(name.split("-")[1]) - 1] for name in data.user_ids])
    users, positions = training_targets(data)
    previous = data.windows(users, positions, 1)[:, 0]
    size = data.num_items + 1
    typed = np.zeros((TYPES, size, size))
    np.add.at(typed, (kind[users], previous, data.targets(users, positions)), 1)
    popularity = data.popularity() / data.popularity().sum()
    test_users, ends = data.held_out("test")
    last = data.windows(test_users, ends, 1)[:, 0]
    target = data.targets(test_users, ends)
    seen = np.zeros((data.num_users, size), dtype=bool)
    for user in range(data.num_users):
        seen[user, data.history(user)[:-1]] = True

    def ndcg(counts: np.ndarray) -> float:
        scores = counts / (counts.sum(axis=1, keepdims=True) + 1) + popularity
        scores[seen] = -1
        rank = (scores > scores[np.arange(len(target)), target][:, None]).sum(axis=1)
        return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())

    popular = ndcg(np.zeros((data.num_users, size)))
    shared = ndcg(typed.sum(axis=0)[last])
    personal = ndcg(typed[kind, last])
    assert shared > 2.5 * popular
    assert personal > 1.25 * shared
