"""The command line: what is chosen, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.kdd25.__main__ import main
from experiments.kdd25.datasets import Places
from experiments.kdd25.options import chosen_cells, chosen_parts, parse
from forward_ofa.data import DataError
from tests.support.paper_records import record


def cells(*words: str):
    arguments = parse(words)
    return chosen_cells(arguments, chosen_parts(arguments))


def test_a_table_of_one_data_set_and_backbone():
    chosen = cells("--only", "table2:ml-100k:nextitnet", "--seeds", "3,4")
    assert {(c.dataset, c.backbone) for c in chosen} == {("ml-100k", "nextitnet")}
    assert {c.system for c in chosen} == {"device-rec", "plus-controller", "duet"}
    assert {c.seed for c in chosen} == {3, 4}


def test_one_system_of_a_table_by_its_row_or_its_name():
    assert {c.system for c in cells("--only", "table2:ml-1m:sasrec:plus-mapper")} == {"duet"}
    assert {c.look for c in cells("--only", "table3:::random")} == {"random"}


def test_without_options_all_of_ml_1m_is_meant_and_cells_are_shared():
    chosen = cells()
    assert {c.dataset for c in chosen} == {"ml-1m"} and len(chosen) == len(set(chosen))
    assert {c.seed for c in chosen if c.overrides and not c.look} == {0, 1, 2}
    assert {c.seed for c in chosen if c.look in ("case", "time")} == {0}
    assert {c.epochs for c in cells("--epochs", "3")} == {3}


def test_a_recipe_of_training_is_asked_for_by_name():
    assert {c.recipe for c in cells("--only", "table1:ml-1m:sasrec")} == {"paper"}
    chosen = cells("--only", "table1:ml-1m:sasrec", "--recipe", "default", "--seeds", "0")
    assert {c.recipe for c in chosen} == {"default"} and len(chosen) == 7


def test_a_smoke_run_has_folders_of_its_own():
    arguments = parse(["--quick"])
    assert arguments.runs != parse([]).runs
    assert arguments.results.is_relative_to(arguments.runs)
    assert arguments.data_sets == ["synthetic"] and arguments.seeds == [0]
    assert parse(["--quick", "--only", "table1:ml-100k"]).data_sets is None


@pytest.mark.parametrize("words", [
    ["--only", "table9"], ["--only", "table1:ml-2m"], ["--only", "table1:ml-1m:gru"],
    ["--only", "a:b:c:d:e"], ["--seeds", "0,0"], ["--seeds", "x"], ["--epochs", "0"],
    ["--data", "ml-1m"], ["--data", "ml-1m=/nowhere/at/all"],
    ["--data", "ml-1m=~nobody-of-this-name/ml-1m"], ["--backbones", "gru"],
    ["--recipe", "quick"],
])  # fmt: skip
def test_nonsense_is_refused_before_anything_is_run(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_data_set_is_where_it_was_said_else_below_the_root_else_downloaded(tmp_path):
    (tmp_path / "online-retail").mkdir()
    places = Places({"ml-10m": "/data/ten"}, tmp_path, tmp_path)
    assert places.spec("ml-10m") == "/data/ten"
    assert places.spec("online-retail") == str(tmp_path / "online-retail")
    assert places.spec("ml-1m") == "ml-1m"
    assert places.spec("amazon-food") is None
    with pytest.raises(DataError):
        places.read("online-retail")


def run(folder: Path, *words: str) -> int:
    return main(["--runs", str(folder / "runs"), "--results", str(folder / "results"), *words])


def test_list_runs_nothing_and_tells_cells_and_missing_data(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORWARD_OFA_DATA", raising=False)
    assert run(tmp_path, "--list", "--only", "table2:amazon-food:sasrec", "--seeds", "0") == 0
    out = capsys.readouterr().out
    assert "amazon-food_sasrec6_duet_paper_s0  (no data: --data KEY=PATH)" in out
    assert "0 cells are finished, 3 to run" in out
    assert not list(tmp_path.iterdir())


def test_a_report_is_made_from_the_index_alone_and_the_exit_status_says_what_is_missing(
    tmp_path, capsys
):
    from experiments.kdd25.results import add

    words = ("--report-only", "--only", "table2:ml-1m:sasrec", "--seeds", "0")
    (dense, controller, duet) = cells(*words[1:])
    for cell in (dense, duet):
        add(tmp_path / "results" / "index.json", record(cell))
    assert run(tmp_path, *words) == 1
    assert f"{controller.name}: not run" in capsys.readouterr().err
    add(tmp_path / "results" / "index.json", record(controller))
    assert run(tmp_path, *words) == 0
    text = (tmp_path / "results" / "REPORT.md").read_text().split("## Table 2")[1]
    table = text.split("### MovieLens-1M, SASRec")[1].split("Order by")[0]
    assert "| +controller | 0.0946 | 0.1000 |" in table and "not run" not in table


def test_the_committed_report_is_that_of_the_committed_index_and_todays_recipes(tmp_path, capsys):
    committed = parse([]).results
    (tmp_path / "results").mkdir()
    shutil.copy(committed / "index.json", tmp_path / "results")
    run(tmp_path, "--report-only")
    assert "Left out" not in capsys.readouterr().out
    made, there = (folder / "REPORT.md" for folder in (tmp_path / "results", committed))
    assert made.read_text() == there.read_text(), 'make paper ARGS="--report-only"'


def test_data_that_nobody_can_find_fails_that_cell_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORWARD_OFA_DATA", raising=False)
    words = ("--only", "table2:amazon-food:sasrec:device-rec", "--seeds", "0", "--device", "cpu")
    assert run(tmp_path, *words) == 1
    assert "give --data amazon-food=PATH" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_and_a_damaged_index_are_told(tmp_path, capsys):
    only = ("--only", "table2:ml-1m:sasrec")
    assert run(tmp_path, *only, "--device", "cuda:7") == 1
    assert "no CUDA device" in capsys.readouterr().err
    (tmp_path / "results").mkdir(exist_ok=True)
    (tmp_path / "results" / "index.json").write_text("{")
    assert run(tmp_path, *only, "--list") == 1
    assert "damaged" in capsys.readouterr().err
