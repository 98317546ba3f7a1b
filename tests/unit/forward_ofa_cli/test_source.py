from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from forward_ofa_cli.errors import CommandError
from forward_ofa_cli.source import Source, remembered
from tests.support.logs import write_csv

QUIET = Console(quiet=True)


def test_a_run_remembers_its_log_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_csv(tmp_path / "log.csv", 30, 100, header="who,item_id,timestamp")
    chosen = Source("log.csv", user_column="who", min_user=10, min_item=3)
    data = chosen.load(QUIET)
    chosen.remember(tmp_path / "run", data.name)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    again = remembered(tmp_path / "run", None).load(QUIET)
    assert again.fingerprint() == data.fingerprint()
    assert (again.filter.min_user, again.filter.min_item) == (10, 3)


def test_a_log_that_moved_keeps_columns_and_filter(tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", 30, 100, header="who,item_id,timestamp")
    Source(str(log), user_column="who").remember(tmp_path / "run", "log")
    moved = log.rename(tmp_path / "moved.csv")
    assert remembered(tmp_path / "run", str(moved)) == Source(
        str(moved), user_column="who", cache=str(Path(".cache/data").resolve())
    )


def test_a_stand_in_is_remembered_as_what_it_is(tmp_path: Path):
    Source(None).remember(tmp_path, "synthetic")
    assert remembered(tmp_path, None).data == "synthetic"
    Source(None).remember(tmp_path, "ml-100k")
    assert remembered(tmp_path, None).data == "ml-100k"


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"datum": "x"})])
def test_a_damaged_source_says_what_to_do(tmp_path: Path, text: str):
    (tmp_path / "source.json").write_text(text)
    with pytest.raises(CommandError, match="--data"):
        remembered(tmp_path, None)


def test_without_a_source_data_must_be_given(tmp_path: Path):
    with pytest.raises(CommandError, match="--data"):
        remembered(tmp_path, None)
    assert remembered(tmp_path, "log.csv") == Source("log.csv")
