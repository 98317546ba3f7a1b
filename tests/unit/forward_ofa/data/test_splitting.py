"""The split by time, against a slow reading of its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa.batches import last_item_sessions, training_sessions
from forward_ofa.data import (
    DataError,
    FilterConfig,
    SplitConfig,
    generate_log,
    log_from_ids,
    prepare,
)
from forward_ofa.data.splitting import _at_rank

ROWS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from("pqrst"), st.integers(0, 30)),
    min_size=20, max_size=90, unique=True,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, v=st.integers(5, 20), gap=st.integers(1, 8), least=st.integers(0, 3))
def test_by_time_equals_its_definition(rows, v: int, gap: int, least: int) -> None:
    t = v + gap
    log = log_from_ids([r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows]),
                       name="test", source="a test")  # fmt: skip
    config = FilterConfig(min_user=least, min_item=least, iterate=False)
    split = SplitConfig("time", validation_from=str(v), test_from=str(t))
    before = [r for r in rows if r[2] < v]
    users = {u for u in "abcde" if [r[0] for r in before].count(u) >= least}
    items = {i for i in "pqrst" if [r[1] for r in before].count(i) >= max(least, 1)}
    expected = {}
    for user in sorted(users):
        own = sorted((r for r in rows if r[0] == user and r[1] in items), key=lambda r: r[2])
        if sum(r[2] < v for r in own) >= 2:
            expected[user] = own
    try:
        data = prepare(log, config, split)
    except DataError:
        times = [r[2] for r in rows]
        empty = not min(times) < v < t <= max(times)
        left = {r[1] for own in expected.values() for r in own}
        assert empty or len(expected) < 2 or len(left) < 2
        return
    assert data.user_ids == list(expected)
    held = {part: dict(zip(*data.held_out(part), strict=True)) for part in ("validation", "test")}
    for row, own in enumerate(expected.values()):
        assert [data.item_ids[i - 1] for i in data.history(row)] == [r[1] for r in own]
        assert data.target_counts()[row] == sum(r[2] < v for r in own) - 1
        for part, first, end in (("validation", v, t), ("test", t, 99)):
            targets = [k for k, r in enumerate(own) if first <= r[2] < end]
            assert held[part].get(row) == (targets[0] if targets else None)


def test_no_training_target_and_no_history_lies_after_the_cut() -> None:
    rng = np.random.default_rng(2)
    people = rng.integers(0, 120, 4000).astype(str).tolist()
    things = rng.integers(0, 90, 4000).astype(str).tolist()
    times = rng.integers(0, 10**6, 4000)
    log = log_from_ids(people, things, times, name="test", source="a test")
    data = prepare(log, FilterConfig(3, 3), SplitConfig("time", 0.2, 0.1))
    split, catalogue = data.split, set(data.item_ids)
    moments = {}  # the time of each user's k-th kept item, from the log itself
    for row, name in enumerate(data.user_ids):
        code = list(log.user_ids).index(name)
        rows = slice(log.offsets[code], log.offsets[code + 1])
        known = [log.item_ids[i] in catalogue for i in log.items[rows]]
        moments[row] = log.timestamps[rows][known]
        assert len(moments[row]) == len(data.history(row))
    sessions = training_sessions(data, 1, np.random.default_rng(0))
    for user, start in zip(*_arrays(sessions.take(np.arange(len(sessions)))), strict=True):
        assert moments[user][start] < split.validation_from
    for part, low, high in (
        ("validation", split.validation_from, split.test_from),
        ("test", split.test_from, np.inf),
    ):
        held = last_item_sessions(data, part)
        assert 10 < len(held) <= data.num_users
        for user, start in zip(*_arrays(held), strict=True):
            assert low <= moments[user][start] < high
            assert (moments[user][:start] < low).all()
    share = (log.timestamps >= split.test_from).mean()
    assert share == pytest.approx(0.1, abs=0.01)


def _arrays(sessions):
    return sessions.users.tolist(), sessions.starts.tolist()


@given(
    values=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=50),
    rank=st.integers(0, 49),
)
def test_a_rank_among_times(values: list[int], rank: int) -> None:
    rank %= len(values)
    assert _at_rank(np.array(values, np.int64), rank) == sorted(values)[rank]


def test_moments_may_be_dates_and_are_told() -> None:
    log = generate_log(users=60, items=120, seed=1)  # seconds
    split = SplitConfig("time", validation_from="2021-01-01", test_from="2021-03-01T00:00:00Z")
    found = split.resolve(log)
    assert (found.validation_from, found.test_from) == (1609459200, 1614556800)
    assert "training before 1609459200 (2021-01-01 00:00 UTC)" in found.describe()
    assert SplitConfig().resolve(log).describe().startswith("leave one out; last item test")


def test_splits_that_make_no_sense() -> None:
    for wrong in (
        {"by": "user"}, {"validation_share": 0}, {"validation_share": 0.6, "test_share": 0.5},
        {"by": "time", "test_from": "5"}, {"validation_from": "1", "test_from": "2"},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            SplitConfig(**wrong)
    log = generate_log(users=60, items=120, seed=1)
    for first, last in (("5", "6"), ("2021-03-01", "2021-01-01"), ("2021-01-01", "2031-01-01")):
        with pytest.raises(DataError, match="leaves training, validation or test empty"):
            SplitConfig("time", validation_from=first, test_from=last).resolve(log)
    with pytest.raises(DataError, match="'soon' is no moment"):
        SplitConfig("time", validation_from="soon", test_from="later").resolve(log)
