from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from forward_ofa.data import FilterConfig
from forward_ofa_cli import demo, train
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.main import app
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


def test_every_field_is_an_option_of_the_commands_that_take_a_log():
    for command in (train.train, demo.demo):
        given = inspect.signature(command).parameters
        assert {field.name for field in fields(Source)} <= set(given)
        assert "log" not in given


def test_all_rules_reach_the_data_and_come_back(tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", 60, 100, header="who,item_id,timestamp")
    chosen = Source(
        str(log), user_column="who", min_user=4, min_item=2, strict_item=True, iterate=False,
        ties="hash", deduplicate="consecutive", split="time", test_share=0.2,
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    data = chosen.load(QUIET)
    assert data.filter == FilterConfig(4, 2, True, False, "hash", "consecutive")
    assert data.split.by == "time"
    chosen.remember(tmp_path / "run", data.name)
    assert remembered(tmp_path / "run", None).rules() == chosen.rules()
    again = remembered(tmp_path / "run", None).load(QUIET)
    assert again.fingerprint() == data.fingerprint()


def test_a_csv_without_a_header_line(tmp_path: Path):
    log = write_csv(tmp_path / "log.csv", 30, 100)
    log.write_text(log.read_text().partition("\n")[2])
    names = "user_id,item_id,timestamp"
    data = Source(str(log), header=names, cache=str(tmp_path / "cache")).load(QUIET)
    assert data.num_users == 30


@pytest.mark.parametrize(
    "wrong",
    [{"ties": "item"}, {"deduplicate": "all"}, {"split": "user"}, {"test_from": "5"},
     {"split": "time", "test_share": 1.5}],
)  # fmt: skip
def test_rules_that_make_no_sense_are_wrong_usage(wrong: dict):
    with pytest.raises(CommandError) as caught:
        Source("log.csv", **wrong).load(QUIET)
    assert caught.value.code == Exit.USAGE


def test_public_data_sets_are_listed():
    done = CliRunner().invoke(app, ["data", "5core-video", "--json"])
    assert done.exit_code == 0
    assert list(json.loads(done.stdout)) == ["amazon-2023-5core-Video_Games"]
    assert "ml-32m" in CliRunner().invoke(app, ["data", "ml-"]).stdout


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"datum": "x"})])
def test_a_damaged_source_says_what_to_do(tmp_path: Path, text: str):
    (tmp_path / "source.json").write_text(text)
    with pytest.raises(CommandError, match="--data"):
        remembered(tmp_path, None)


def test_without_a_source_data_must_be_given(tmp_path: Path):
    with pytest.raises(CommandError, match="--data"):
        remembered(tmp_path, None)
    assert remembered(tmp_path, "log.csv") == Source("log.csv")
