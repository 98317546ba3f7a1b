"""Sorting in runs gives the log that sorting at once gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forward_ofa.data import DataError, InteractionLog, log_from_ids
from forward_ofa.data.sorting import LogSorter, Rows, encode
from forward_ofa.data.workspace import IdTable, Workspace

IDS = st.one_of(
    st.integers(0, 30).map(str), st.sampled_from(["007", "7", "é", "日本", "a b", "", "zz"])
)
Row = tuple[str, str, int]


def sort(rows: list[Row], workspace: Workspace, run_rows: int, part: int) -> InteractionLog:
    sorter = LogSorter(workspace, run_rows)
    for start in range(0, len(rows), part):
        users, items, times = zip(*rows[start : start + part], strict=True)
        sorter.add(Rows(pl.Series(users), pl.Series(items), np.array(times, np.int64)))
    return sorter.finish({}, "test", "a test")


def told(log: InteractionLog) -> list[Row]:
    return [
        (log.user_ids[u], log.item_ids[i], int(t))
        for u, i, t in zip(log.users, log.items, log.timestamps, strict=True)
    ]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.tuples(IDS, IDS, st.integers(0, 20)), min_size=1, max_size=120),
    run_rows=st.integers(1, 60),
    part=st.integers(1, 40),
    on_disk=st.booleans(),
)
def test_runs_give_what_one_sort_gives(
    tmp_path: Path, rows: list[Row], run_rows: int, part: int, on_disk: bool
) -> None:
    # A folder of its own for each example, or one would find what another has left.
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    workspace = Workspace(folder) if on_disk else Workspace()
    log = sort(rows, workspace, run_rows, part)
    expected = sorted(rows, key=lambda row: (len(row[0]), row[0], row[2]))
    assert told(log) == expected
    whole = log_from_ids([r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows]),
                         name="test", source="a test")  # fmt: skip
    assert np.array_equal(log.offsets, whole.offsets) and np.array_equal(log.items, whole.items)
    assert log.user_ids == whole.user_ids and log.item_ids == whole.item_ids
    assert not (folder / "runs").exists() or len(rows) <= run_rows + part


def test_one_user_with_more_rows_than_a_run(tmp_path: Path) -> None:
    rows = [("bot", str(n % 9), n % 50) for n in range(400)] + [("a", "1", 1), ("zzzz", "2", 2)]
    log = sort(rows, Workspace(tmp_path), 20, 7)
    assert told(log) == sorted(rows, key=lambda row: (len(row[0]), row[0], row[2]))


def test_fractions_anywhere_make_all_times_microseconds(tmp_path: Path) -> None:
    sorter = LogSorter(Workspace(tmp_path), 2)
    ids = pl.Series(["a", "b"])
    sorter.add(Rows(ids, ids, np.array([5, 6])))
    sorter.add(Rows(ids, ids, np.array([5_500_000, 1]), micros=True))
    log = sorter.finish({}, "test", "a test")
    assert log.timestamps.tolist() == [5_000_000, 5_500_000, 1, 6_000_000]
    sorter = LogSorter(Workspace(), 2)
    sorter.add(Rows(ids, ids, np.array([5, 2**60])))
    sorter.add(Rows(ids, ids, np.array([1, 2]), micros=True))
    with pytest.raises(DataError, match="one unit"):
        sorter.finish({}, "test", "a test")


@pytest.mark.parametrize("values", [["10", "9", "2"], ["07", "7"], ["b", "a", "aa"], ["-1", "1"]])
def test_codes_follow_the_order_of_ids(values: list[str]) -> None:
    codes, ids = encode(pl.Series(values))
    assert ids.to_list() == sorted(set(values), key=lambda text: (len(text), text))
    assert [ids[int(code)] for code in codes] == values


def test_sparse_numbers_are_not_spread_out_in_memory() -> None:
    codes, ids = encode(pl.Series(["9000000000000000000", "3", "9000000000000000000"]))
    assert codes.tolist() == [1, 0, 1] and ids.to_list() == ["3", "9000000000000000000"]


@given(ids=st.lists(IDS, max_size=20))
def test_an_id_table_is_a_sequence(ids: list[str]) -> None:
    table = IdTable.of(ids)
    assert list(table) == ids and table == ids and len(table) == len(ids)
    assert table[1:4] == ids[1:4] and table[::-1] == ids[::-1] and table[::2] == ids[::2]
    for row in range(-len(ids), len(ids)):
        assert table[row] == ids[row]
    with pytest.raises(IndexError):
        table[len(ids)]
