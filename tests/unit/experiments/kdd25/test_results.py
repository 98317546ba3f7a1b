"""The index: nothing is lost when many write, a damaged one is refused."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from experiments.kdd25.cells import Cell
from experiments.kdd25.results import DamagedIndex, add, read_index, remove
from forward_ofa.locks import locked
from tests.support.paper_records import record

CELL = Cell("ml-1m", "sasrec", "duet")


def _add_seeds(path: str, first: int) -> None:
    for seed in range(first, first + 10):
        add(Path(path), record(CELL.with_seed(seed)))


def test_a_record_comes_back_as_it_was(tmp_path):
    path = tmp_path / "results" / "index.json"
    assert read_index(path) == {}
    add(path, record(CELL, 0.25))
    assert read_index(path) == {CELL.name: record(CELL, 0.25)}


def test_the_index_has_a_line_a_cell_by_name(tmp_path):
    path = tmp_path / "index.json"
    _add_seeds(str(path), 0)
    lines = path.read_text().splitlines()
    assert len(lines) == 12 and lines[1:-1] == sorted(lines[1:-1])


def test_processes_that_add_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "index.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_seeds, args=(str(path), 10 * n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {r.cell.seed for r in read_index(path).values()} == set(range(40))


def test_removed_entries_are_gone_and_the_others_stay(tmp_path):
    path = tmp_path / "index.json"
    remove(path, lambda cell: True)
    assert not path.exists()
    _add_seeds(str(path), 0)
    remove(path, lambda cell: cell.seed < 9)
    assert list(read_index(path)) == [CELL.with_seed(9).name]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": "other/1", "cells": []}',
        '{"format": "forward-ofa-paper-index/1", "cells": [{"a": 1}]}',
    ],
)
def test_a_damaged_index_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "index.json"
    path.write_text(text)
    with pytest.raises(DamagedIndex, match="damaged"):
        read_index(path)
    with pytest.raises(DamagedIndex):
        add(path, record(CELL))
    assert path.read_text() == text


def test_a_lock_is_one_processs_at_a_time(tmp_path):
    path = tmp_path / "locks" / "a.lock"
    with locked(path, wait=False) as mine:
        assert mine
        with locked(path, wait=False) as other:
            assert not other
    with locked(path, wait=False) as again:
        assert again
