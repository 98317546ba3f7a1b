"""The report: nothing is guessed, slips are footnoted, what was run is beside the paper's."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.kdd25 import paper
from experiments.kdd25.cells import Cell
from experiments.kdd25.recipes import RECIPES, TRAINING, Part, table1, table2, table3
from experiments.kdd25.report import covered, write_report
from experiments.kdd25.results import Records
from experiments.kdd25.summary import Results, agreement
from experiments.kdd25.transmission import update_bytes, update_milliseconds
from tests.support.paper_records import record

SIX = {"block_usage": [1, 0.9, 0.8, 0.7, 0.6, 1], "kept_blocks_histogram": [0, 0, 0, 1, 3, 2, 0],
       "mean_kept_blocks": 5.0}  # fmt: skip


def records(*found) -> Records:
    return {one.cell.name: one for one in found}


def rendered(folder, parts: list[Part], results: Results) -> str:
    return write_report(folder, parts, results, quick=False).read_text()


def line(text: str, start: str) -> list[str]:
    """The cells of the first table row that begins so."""
    row = next(row for row in text.splitlines() if row.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_mean_and_sample_deviation_over_seeds():
    cell = Cell("ml-1m", "sasrec", "duet")
    results = Results(
        records(*(record(cell.with_seed(s), v) for s, v in enumerate((0.1, 0.2, 0.3))))
    )
    mean = results.mean(cell, "ndcg")
    assert (mean.value, mean.deviation, mean.seeds) == pytest.approx((0.2, 0.1, 3))
    assert mean.text() == "0.2000 ± 0.1000"
    assert Results(records(record(cell, 0.1))).text(cell, "ndcg") == "0.1000"


def test_a_figure_that_some_seeds_lack_says_which_have_it():
    cell = Cell("ml-1m", "sasrec", "duet")
    old, new = record(cell, 0.1), record(cell.with_seed(1), 0.2)
    new.figures["unseen_ndcg@10"] = 0.3
    assert Results(records(old, new)).text(cell, "unseen") == "0.3000 (seed 1)"
    assert Results(records(old)).text(cell, "unseen") == "-"


def test_budgets_are_never_mixed():
    cell = Cell("ml-1m", "sasrec", "duet")
    short = dataclasses.replace(cell, epochs=2)
    longer = dataclasses.replace(cell, epochs=5, seed=1)
    both = records(record(short, 0.1), record(longer, 0.2))
    assert Results(both).text(cell, "ndcg") == "0.2000"
    assert Results(both, epochs=2).text(cell, "ndcg") == "0.1000"
    assert Results(both, epochs=3).text(cell, "ndcg") == "not run"
    assert Results(both | records(record(cell, 0.3))).text(cell, "ndcg") == "0.3000"


def test_with_nothing_run_every_part_says_so_and_shows_the_papers_figures(tmp_path):
    parts = [recipe("ml-1m", "sasrec") for recipe in RECIPES.values()]
    text = rendered(tmp_path, parts, Results({}))
    assert not list(tmp_path.glob("*.png"))
    assert line(text, "Forward-OFA |")[1:6] == ["0.1182", "not run", "0.2081", "not run", "0.5699"]
    for figure in ("Figure 4", "Figure 6"):
        section = text.split(f"## {figure}")[1].split("\n## ")[0]
        assert "not run" in section
    # Tables 1, 2, 3, 4 and 7, and the variants, are folded
    assert text.count("<details>") == 6


def test_a_cell_that_was_run_is_beside_the_paper_and_the_best_is_bold(tmp_path):
    part = table2("ml-1m", "sasrec")
    dense, controller, mapper = (row.cell for row in part.rows)
    results = Results(records(record(dense, 0.09), record(mapper, 0.11)))
    text = rendered(tmp_path, [part], results)
    assert line(text, "DeviceRec") == ["DeviceRec", "0.0969", "0.0900", "0.1816", "0.1800", "0"]
    assert line(text, "+mapper")[1:3] == ["0.1142", "**0.1100**"]
    assert line(text, "+controller")[1:3] == ["0.0946", "not run"]
    assert controller not in [one.cell for one in results.records.values()]


def test_the_order_of_systems_is_compared_with_the_papers(tmp_path):
    part = table2("ml-1m", "sasrec")
    values = (0.09, 0.10, 0.11)  # the paper has +controller below DeviceRec
    found = records(*(record(r.cell, v) for r, v in zip(part.rows, values, strict=True)))
    text = rendered(tmp_path, [part], Results(found))
    assert "ours: +mapper > +controller > DeviceRec; the paper's: +mapper > DeviceRec" in text
    assert "2 of 3 pairs" in text
    # A seed that the others have not been run with says nothing of the order.
    further = found | records(record(part.rows[0].cell.with_seed(1), 0.5))
    text = rendered(tmp_path, [part], Results(further))
    assert "with seed 0, ours: +mapper > +controller > DeviceRec;" in text
    part = table2("ml-100k", "sasrec")  # not the paper's: compared with MovieLens-1M's order
    found = records(*(record(r.cell, v) for r, v in zip(part.rows, values, strict=True)))
    text = rendered(tmp_path, [part], Results(found))
    assert "the paper's on MovieLens-1M: +mapper > DeviceRec > +controller. 2 of 3 pairs" in text
    assert agreement({"a": 1, "b": 2, "c": 2}, {"a": 1, "b": 3, "c": 4}) == (2, 2)


def test_a_row_that_was_trained_beside_another_device_rec_says_so(tmp_path):
    part = table2("ml-1m", "sasrec")
    dense, _, mapper = (row.cell for row in part.rows)
    for mean, mark in ((0.02, ""), (0.015, " [a]")):
        compared = {"ndcg@10": {"mean": mean, "low": 0.01, "high": 0.03}}
        found = records(record(dense, 0.09), record(mapper, 0.11, difference=compared))
        text = rendered(tmp_path, [part], Results(found))
        assert line(text, "+mapper")[0] == "+mapper" + mark
        assert ("its NDCG@10 is 0.0950, not 0.0900" in text) is bool(mark)


def test_a_row_of_another_budget_than_the_recipes_says_so(tmp_path):
    part = table2("ml-1m", "sasrec")
    short = dataclasses.replace(part.rows[0].cell, epochs=3)
    text = rendered(tmp_path, [part], Results(records(record(short, 0.09))))
    assert (
        line(text, "DeviceRec")[0] == "DeviceRec [a]"
        and "[a] 3 epochs in place of the recipe's." in text
    )


def test_both_recipes_of_training_are_beside_the_papers_figures_and_never_mixed(tmp_path):
    parts = [table2("ml-1m", "sasrec", recipe) for recipe in TRAINING]
    found = records(record(parts[1].rows[0].cell, 0.2))
    text = rendered(tmp_path, parts, Results(found))
    # What was run comes first.
    ours, theirs = text.split("<summary>MovieLens-1M, SASRec: not run")
    assert "### MovieLens-1M, SASRec, default recipe" in ours
    assert "0.2000" not in theirs.partition("</details>")[0]
    assert line(ours, "DeviceRec")[1:3] == ["0.0969", "0.2000"]
    assert line(ours, "+controller")[1:3] == ["0.0946", "not run"]
    assert parts[0].slug == "ml-1m-sasrec" and parts[1].slug == "ml-1m-sasrec-default"


def test_a_slip_of_the_paper_is_settled_and_footnoted(tmp_path):
    text = rendered(tmp_path, [table2("ml-10m", "nextitnet")], Results({}))
    assert line(text, "+controller")[1] == "0.0611 [a]"
    assert "[a] printed 0.6114" in text
    text = rendered(tmp_path, [table1("amazon-game", "sasrec")], Results({}))
    assert "0.5826 [a]" in text and "printed 0.5720" in text


def test_a_failed_cell_says_why(tmp_path):
    part = table2("ml-1m", "sasrec")
    results = Results({}, {part.rows[1].cell.with_seed(2): "the loss became nan"})
    text = rendered(tmp_path, [part], results)
    assert line(text, "+controller")[0] == "+controller [a]"
    assert line(text, "+controller")[2] == "failed" and "[a] the loss became nan" in text


def test_a_data_set_that_the_paper_does_not_have_gets_rows_without_its_columns(tmp_path):
    part = table1("online-retail", "sasrec")
    text = rendered(tmp_path, [part], Results(records(record(part.rows[0].cell))))
    assert line(text, "Method") == ["Method", "NDCG@10", "Hit@10", "MFLOPs", "MFLOPs, true",
                                    "Mbit", "Mbit, true", "seeds"]  # fmt: skip
    assert "Online Retail (not the paper's)" in text


def test_figures_are_drawn_small_and_alike_each_time(tmp_path):
    parts = [RECIPES[name]("ml-1m", "sasrec") for name in ("figure4", "figure5", "figure7")]
    cells = [row.cell for part in parts for row in part.rows]
    found = Results(records(*(record(cell, 0.1, **SIX) for cell in cells)))
    text = rendered(tmp_path / "a", parts, found)
    rendered(tmp_path / "b", parts, found)
    drawn = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
    assert drawn == [f"figure{n}-ml-1m-sasrec.png" for n in (4, 5, 7)]
    for name in drawn:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in "ab")
        assert first == second and 3_000 < len(first) < 60_000 and name in text


def test_figure_7_is_bytes_over_the_link_and_the_papers_from_its_param(tmp_path):
    part = RECIPES["figure7"]("ml-1m", "sasrec")
    text = rendered(tmp_path, [part], Results(records(record(part.rows[0].cell, **SIX))))
    assert line(text, "float32, paper")[1:] == ["99.8 ms", "91.0 ms"]
    whole, five = (update_bytes("sasrec", 6, "float32")[k] for k in (6, 5))
    assert 499_200 < whole < 499_200 + 1_000  # six blocks and the artefact's header
    assert line(text, "float32 |")[2] == f"{update_milliseconds(five, 40):.1f} ms ({five:,} bytes)"


def test_tables_5_and_6_need_no_runs(tmp_path):
    text = rendered(tmp_path, [], Results({}))
    assert line(text, "SASRec, Forward-device")[1] == "0.2544 [a]"
    assert line(text, "NextItNet, Forward-cloud")[3] == "18.9727"
    assert line(text, "MovieLens-1M")[1:5] == ["6,040", "not run", "3,012", "not run"]


def test_how_each_cell_was_run_and_its_protocol_are_told(tmp_path):
    part = table3("ml-1m", "sasrec")
    difference = {"ndcg@10": {"mean": 0.01, "low": -0.002, "high": 0.02}}
    found = records(*(record(row.cell, difference=difference) for row in part.rows))
    text = rendered(tmp_path, [part], Results(found))
    row = line(text, f"`{part.rows[-1].cell.name}`")
    assert row[1:4] == ["forward-ofa 20 (best 12)", "60 s", "A processor, threads: 2"]
    assert row[-1] == "+0.0100 (-0.0020 to +0.0200)"
    card = text.split("## Protocol cards")[1]
    assert card.count("- data: ml-1m") == 1  # what all share stands once
    assert "- system: no-structural-vector" in card


def test_a_report_covers_what_was_run_before_and_what_the_paper_has():
    earlier = table1("online-retail", "sasrec").rows[0].cell
    asked = [table3("ml-1m", "sasrec")]
    parts = covered(asked, Results(records(record(earlier))))
    named = {(part.table, part.dataset, part.backbone) for part in parts}
    assert ("table3", "ml-1m", "sasrec") in named
    assert ("table1", "online-retail", "sasrec") in named
    assert ("table1", "online-retail", "nextitnet") not in named
    assert ("table1", "amazon-food", "nextitnet") in named
    assert ("table2", "amazon-food", "sasrec") not in named
    assert len(named) == len(parts)


def test_every_note_of_the_paper_is_printed(tmp_path):
    parts = [RECIPES[name]("ml-1m", b) for name in RECIPES for b in ("sasrec", "nextitnet")]
    text = rendered(tmp_path, parts, Results({}))
    for name in ("protocol", *RECIPES, "table5", "table6"):
        assert all(note in text for note in paper.notes(name)), name
