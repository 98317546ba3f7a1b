"""Filter, order, split and windows, checked against slow plain Python."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa.data import (
    PAPER_FILTER,
    DataError,
    FilterConfig,
    InteractionLog,
    SequenceDataset,
    Split,
    default_filter,
    generate_log,
    log_from_ids,
    prepare,
)

Row = tuple[str, str, int]
NO_FILTER = FilterConfig(min_user=0, min_item=0)


def make_log(rows: list[Row]) -> InteractionLog:
    users, items, times = ([row[k] for row in rows] for k in range(3))
    return log_from_ids(users, items, np.array(times), name="test", source="a test")


def sequences(data: SequenceDataset) -> dict[str, list[str]]:
    return {
        name: [data.item_ids[item - 1] for item in data.history(user)]
        for user, name in enumerate(data.user_ids)
    }


ROWS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("pqrstuv"), st.integers(0, 12)),
    min_size=1, max_size=80,
)  # fmt: skip
CONFIGS = st.builds(
    FilterConfig,
    min_user=st.integers(0, 6),
    min_item=st.integers(0, 6),
    strict_item=st.booleans(),
    iterate=st.booleans(),
    ties=st.sampled_from(["file", "hash"]),
    deduplicate=st.sampled_from(["keep", "consecutive", "exact"]),
)


def slow_prepare(rows: list[Row], config: FilterConfig) -> dict[str, list[tuple[str, int]]]:
    """The rule of the documentation, row by row."""
    if config.deduplicate != "keep":
        rows = list(dict.fromkeys(rows))
    need_item = config.min_item + config.strict_item
    while True:
        users, items = [r[0] for r in rows], [r[1] for r in rows]
        kept = [
            r for r in rows
            if users.count(r[0]) >= config.min_user and items.count(r[1]) >= need_item
        ]  # fmt: skip
        done = len(kept) == len(rows) or not config.iterate
        rows = kept
        if done:
            break
    result: dict[str, list[tuple[str, int]]] = {}
    for user, item, time in sorted(rows, key=lambda r: r[2]):  # stable: ties in file order
        result.setdefault(user, []).append((item, time))
    return result


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, config=CONFIGS)
def test_prepare_equals_the_slow_rule(rows: list[Row], config: FilterConfig) -> None:
    expected = slow_prepare(rows, config)
    if config.ties == "hash" or config.deduplicate == "consecutive":
        expected = {}  # checked by the tests below
    expected = {user: pairs for user, pairs in expected.items() if len(pairs) >= 3}
    try:
        data = prepare(make_log(rows), config)
    except DataError:
        assert len(expected) < 2 or len({i for pairs in expected.values() for i, _ in pairs}) < 2
        return
    assert data.offsets[0] == 0 and data.offsets[-1] == len(data.items)
    assert data.lengths().min() >= 3
    assert sorted(set(data.items.tolist())) == list(range(1, data.num_items + 1))
    if config.ties == "file" and config.deduplicate != "consecutive":
        assert sequences(data) == {u: [item for item, _ in pairs] for u, pairs in expected.items()}


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_hash_ties_do_not_depend_on_the_order_of_rows(rows: list[Row], seed: int) -> None:
    rows = rows + [(user, item, 5) for user in "ab" for item in "pqrs"]  # enough to be a data set
    shuffled = [rows[k] for k in np.random.default_rng(seed).permutation(len(rows))]
    config = FilterConfig(min_user=0, min_item=0, ties="hash")
    first = prepare(make_log(rows), config)
    assert first.fingerprint() == prepare(make_log(shuffled), config).fingerprint()


def test_tie_rules_do_not_sort_by_item_id() -> None:
    order = ["i3", "i1", "i2", "i5", "i4", "i0", "i7", "i6"]
    rows = [(user, item, 7) for user in "ab" for item in order]
    by_file = sequences(prepare(make_log(rows), NO_FILTER))
    assert by_file == {"a": order, "b": order}
    by_hash = sequences(prepare(make_log(rows), FilterConfig(0, 0, ties="hash")))
    assert sorted(by_hash["a"]) == sorted(order)
    assert by_hash["a"] != sorted(order) and by_hash["a"] != by_hash["b"]
    assert by_hash["a"] == ["i3", "i7", "i6", "i5", "i1", "i4", "i0", "i2"]  # fixed for ever


def test_duplicates() -> None:
    rows = [("a", "x", 1), ("a", "x", 1), ("a", "x", 2), ("a", "y", 3), ("a", "x", 4)]
    rows += [("b", item, time) for time, item in enumerate("xyz")]
    got = {
        rule: sequences(prepare(make_log(rows), FilterConfig(0, 0, deduplicate=rule)))["a"]
        for rule in ("keep", "exact", "consecutive")
    }
    assert got == {"keep": list("xxxyx"), "exact": list("xxyx"), "consecutive": list("xyx")}
    notes = prepare(make_log(rows), NO_FILTER).notes
    assert "dropped 1 exact duplicates (same user, item and time)" in notes


def test_users_with_fewer_than_three_are_dropped_and_counted() -> None:
    rows = [(user, item, t) for user in "ab" for t, item in enumerate("xyz")] + [("c", "x", 1)]
    data = prepare(make_log(rows), NO_FILTER)
    assert data.user_ids == ["a", "b"]
    assert "dropped 1 users with fewer than 3 interactions left" in data.notes
    assert data.notes[-1] == "kept 2 of 3 users, 3 of 3 items, 6 of 7 interactions"


def test_errors_say_what_to_lower() -> None:
    one = [("a", str(t), t) for t in range(9)]
    with pytest.raises(DataError, match=r"9 interactions of 1 user.*--user-column"):
        prepare(make_log(one), NO_FILTER)
    rare_items = one + [("b", f"b{t}", t) for t in range(9)]
    with pytest.raises(DataError, match=r"0 of 2 users.*0 of 18 items have at least 5.*--min-item"):
        prepare(make_log(rare_items), FilterConfig())
    short = [(f"u{u}", f"i{t}", t) for u in range(9) for t in range(4)]
    with pytest.raises(DataError, match=r"0 users have at least 5.*lower --min-user"):
        prepare(make_log(short), FilterConfig())
    tiny = [(f"u{u}", f"i{t}", t) for u in range(9) for t in range(2)]
    with pytest.raises(DataError, match="longer log: users need at least 3"):
        prepare(make_log(tiny), NO_FILTER)
    same_item = [(user, "x", t) for user in "ab" for t in range(5)]
    with pytest.raises(DataError, match="of 1 items"):
        prepare(make_log(same_item), NO_FILTER)


def histories(data: SequenceDataset) -> list[list[int]]:
    return [data.history(user).tolist() for user in range(data.num_users)]


def test_filter_config_is_checked() -> None:
    for wrong in ({"min_user": -1}, {"ties": "item"}, {"deduplicate": "all"}):
        with pytest.raises(ValueError):
            FilterConfig(**wrong)


def test_default_filter() -> None:
    assert default_filter(generate_log(users=300, items=300)) == PAPER_FILTER
    rows = [(f"u{u}", f"i{t}", t) for u in range(50) for t in range(19)]
    assert default_filter(make_log(rows)) == FilterConfig(5, 5)
    spread = [(f"u{u}", f"i{(u * 7 + t) % 500}", t) for u in range(60) for t in range(25)]
    assert default_filter(make_log(spread)) == FilterConfig(5, 5)  # too many items would go


def test_a_log_that_repeats_its_rows_is_as_the_log_without() -> None:
    once = [(f"u{u}", f"i{(u + t) % 15}", t) for u in range(40) for t in range(12)]
    log = make_log(once * 3)
    assert default_filter(log) == FilterConfig()
    data, plain = (prepare(each, FilterConfig()) for each in (log, make_log(once)))
    assert histories(data) == histories(plain)
    with pytest.raises(DataError, match=r"480 interactions; 0 users have at least 20"):
        prepare(log, PAPER_FILTER)


def test_one_item_is_no_catalogue() -> None:
    rows = [(f"u{u}", "i", t) for u in range(9) for t in range(9)]
    with pytest.raises(DataError, match=r"1 of 1 items.*--item-column"):
        prepare(make_log(rows), FilterConfig(1, 1))


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return prepare(generate_log(users=60, items=200, seed=3), FilterConfig(3, 1))


def test_split_positions(data: SequenceDataset) -> None:
    assert data.target_counts().tolist() == [len(h) - 3 for h in histories(data)]
    valid = data.targets(*data.held_out("validation"))
    test = data.targets(*data.held_out("test"))
    with pytest.raises(ValueError, match="no part"):
        data.held_out("train")
    for user in range(data.num_users):
        assert data.history(user)[-2:].tolist() == [valid[user], test[user]]


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 130), seed=st.integers(0, 99))
def test_windows(data: SequenceDataset, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    users = rng.integers(data.num_users, size=20)
    ends = rng.integers(data.lengths()[users] + 1)
    windows = data.windows(users, ends, length)
    assert windows.shape == (20, length) and windows.dtype == np.int32
    for user, end, window in zip(users, ends, windows, strict=True):
        before = data.history(int(user))[:end][-length:].tolist()
        assert window.tolist() == [0] * (length - len(before)) + before


def test_windows_refuse_what_is_outside(data: SequenceDataset) -> None:
    user, n = np.array([0]), int(data.lengths()[0])
    for users, ends, length in (
        (user, np.array([n + 1]), 5), (user, np.array([-1]), 5), (np.array([999]), user, 5),
        (np.array([-1]), user, 5), (user, user, 0), (user, np.array([0, 1]), 5),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            data.windows(users, ends, length)
    with pytest.raises(ValueError):
        data.targets(user, np.array([n]))
    with pytest.raises(IndexError):
        data.history(-1)
    assert data.windows(user[:0], user[:0], 5).shape == (0, 5)


def test_popularity_counts_training_targets_only(data: SequenceDataset) -> None:
    expected = np.zeros(data.num_items + 1, dtype=np.int64)
    for user in range(data.num_users):
        for item in data.history(user)[1:-2]:
            expected[item] += 1
    assert data.popularity().tolist() == expected.tolist()


def test_fingerprint_sees_content_only(data: SequenceDataset) -> None:
    again = prepare(generate_log(users=60, items=200, seed=3), FilterConfig(3, 1))
    other = prepare(generate_log(users=60, items=200, seed=4), FilterConfig(3, 1))
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    swapped = again.items.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert data.fingerprint() != replace(again, items=swapped).fingerprint()
    renamed = replace(again, item_ids=[*again.item_ids[:-1], "other"])
    assert data.fingerprint() != renamed.fingerprint()
    by_time = Split("time", 1, 2)
    assert data.fingerprint() != replace(again, split=by_time).fingerprint()
    assert data.fingerprint() == replace(again, name="x", source="y", titles={}).fingerprint()


def test_log_is_checked() -> None:
    good = make_log([("a", "x", 1), ("b", "y", 2)])
    with pytest.raises(ValueError, match="same length"):
        replace(good, items=good.items[:1])
    with pytest.raises(ValueError, match="one offset more"):
        replace(good, user_ids=["a"])
    with pytest.raises(ValueError, match="outside"):
        replace(good, item_ids=["x"])
