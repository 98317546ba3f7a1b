"""The runner: order, sharing, resuming, failures, and processes that die."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.kdd25 import runner
from experiments.kdd25.cells import Cell
from experiments.kdd25.console import Lines
from experiments.kdd25.datasets import Places
from experiments.kdd25.engine import Engine
from experiments.kdd25.recipes import table1, table3
from experiments.kdd25.results import Record, add, read_index
from experiments.kdd25.runner import CellError, Plan, failures, forget, schedule, status, work
from experiments.kdd25.settings import as_json, configure
from forward_ofa.locks import locked
from tests.support.paper_records import record

DENSE = Cell("ml-1m", "sasrec", "device-rec")
DUET = Cell("ml-1m", "sasrec", "duet")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(runner, "_PAUSE", 0.05)


def plan_of(folder: Path, cells: list[Cell]) -> Plan:
    return Plan(tuple(cells), folder / "runs", folder / "index.json", time.time())


class Trainer:
    """Stands where the engine does: leaves a folder as training does, and a line in a file."""

    def __init__(self, plan: Plan, seconds: float = 0.0, fail: str = "") -> None:
        self.plan, self.seconds, self.fail = plan, seconds, fail

    def __call__(self, cell: Cell) -> Record:
        for needed in runner.requirements(cell):
            assert self.plan.has_weights(needed), (cell, needed)
        if cell.system == self.fail:
            raise RuntimeError("the loss became nan")
        with (self.plan.runs / "made").open("a") as made:
            made.write(f"{cell.name}\n")
        if not cell.look:
            folder = self.plan.folder(cell)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text("{}")
            time.sleep(self.seconds)
            (folder / "report.json").write_text("{}")
        return record(cell)


def made(plan: Plan) -> list[str]:
    path = plan.runs / "made"
    return path.read_text().split() if path.exists() else []


def test_what_a_cell_needs_comes_before_it_and_once(tmp_path):
    cells = [row.cell for row in (*table3("ml-1m", "sasrec").rows, *table1("ml-1m", "sasrec").rows)]
    plan = plan_of(tmp_path, cells)
    order = schedule(plan)
    assert len(order) == len(set(order)) == len({*cells})
    for place, cell in enumerate(order):
        assert all(needed in order[:place] for needed in runner.requirements(cell))
    work(plan, Trainer(plan), print)
    assert made(plan) == [cell.name for cell in order]
    assert schedule(plan) == []


def test_the_first_seed_is_finished_before_the_second_begins(tmp_path):
    cells = [cell.with_seed(seed) for cell in (DUET, DENSE) for seed in (1, 0)]
    assert [cell.seed for cell in schedule(plan_of(tmp_path, cells))] == [0, 0, 1, 1]


def test_a_finished_cell_whose_weights_are_gone_is_trained_again_only_if_they_are_needed(tmp_path):
    plan = plan_of(tmp_path, [DENSE])
    work(plan, Trainer(plan), print)
    (plan.folder(DENSE) / "report.json").unlink()
    assert schedule(plan) == []
    assert schedule(plan_of(tmp_path, [DUET])) == [DENSE, DUET]


def test_a_failure_is_told_stops_what_needs_it_and_is_tried_again_next_time(tmp_path):
    other = replace(DENSE, backbone="nextitnet", blocks=12)
    plan = plan_of(tmp_path, [DUET, other])
    said: list[str] = []
    failing = Trainer(plan)
    failing.fail = "device-rec"
    work(plan, failing, said.append)
    assert len(said) == 2 and "the loss became nan" in said[0]
    assert failures(plan, [DENSE])[DENSE] == "the loss became nan"
    assert status(plan, DUET, read_index(plan.index)) == "blocked"
    time.sleep(0.01)
    again = plan_of(tmp_path, [DUET, other])
    work(again, Trainer(again), said.append)
    assert len(read_index(again.index)) == 3 and len(said) == 2
    assert failures(again, [DENSE]) == {}


def test_a_failed_cell_does_not_keep_others_from_running(tmp_path):
    plan = plan_of(tmp_path, [DUET, Cell("ml-1m", "sasrec", "gater")])
    work(plan, Trainer(plan, fail="duet"), print)
    assert {r.cell.system for r in read_index(plan.index).values()} == {"device-rec", "gater"}


def test_forgetting_removes_runs_figures_and_what_was_seen_in_them(tmp_path):
    rows = table3("ml-1m", "sasrec").rows
    plan = plan_of(tmp_path, [row.cell for row in rows])
    work(plan, Trainer(plan), print)
    forward_ofa = rows[-1].cell
    again = plan_of(tmp_path, [forward_ofa])
    with locked(again.lock(forward_ofa), wait=False), pytest.raises(CellError, match="running"):
        forget(again)
    forget(again)
    left = {r.cell for r in read_index(plan.index).values()}
    assert left == {rows[0].cell, rows[4].cell}
    assert not plan.folder(forward_ofa).exists()


def _rewritten(record: Record, name: str, value: float | None) -> Record:
    """With another value of a setting of the method; None: as if it had not existed then."""
    method = {**record.config["method"], name: value}
    if value is None:
        del method[name]
    return replace(record, config={**record.config, "method": method})


def test_cells_of_other_settings_than_todays_are_run_anew(tmp_path):
    plan = plan_of(tmp_path, [DENSE, DUET])
    work(plan, Trainer(plan), print)
    for cell in (DENSE, DUET):
        add(plan.index, _rewritten(plan.finished()[cell.name], "spread", 99.0))
    # DeviceRec has no mapper whose spread it could read.
    assert list(plan.finished()) == [DENSE.name]
    assert schedule(plan) == [DUET]
    add(plan.index, _rewritten(record(DUET), "bases", None))
    assert schedule(plan) == []


def test_a_run_folder_of_other_settings_is_not_taken_for_the_cell(tmp_path):
    cell = Cell("synthetic", "sasrec", "device-rec")
    plan = plan_of(tmp_path, [cell])
    folder = plan.folder(cell)
    folder.mkdir(parents=True)
    data = Places({}, None, tmp_path).read("synthetic")
    other = configure(replace(cell, epochs=3), data.num_interactions)
    (folder / "config.json").write_text(json.dumps(as_json(other)))
    (folder / "report.json").write_text("{}")
    engine = Engine(plan, Places({}, None, tmp_path), "cpu", Lines)
    with pytest.raises(CellError, match="--again"):
        engine.run(cell)


def test_backbones_share_a_foundation(tmp_path):
    """As it trains nothing twice, a record of it has the first one's seconds."""
    cells = [Cell("synthetic", name, "device-rec", recipe="default", blocks=2)
             for name in ("sasrec", "nextitnet")]  # fmt: skip
    plan = replace(plan_of(tmp_path, cells), quick=True)
    engine = Engine(plan, Places({}, None, tmp_path), "cpu", Lines)
    work(plan, engine.run, print)
    one, other = (plan.finished()[cell.name].budget["stages"] for cell in cells)
    assert one["foundation"] == other["foundation"]
    stages = [json.loads((plan.folder(cell) / "stages.json").read_text()) for cell in cells]
    assert stages[0]["foundation"] == stages[1]["foundation"]
    assert stages[0]["device-rec"] != stages[1]["device-rec"]


def test_a_run_that_is_there_is_entered_again_as_of_when_and_where_it_was_trained(tmp_path):
    cell = Cell("synthetic", "sasrec", "device-rec", recipe="default", blocks=2)
    plan = replace(plan_of(tmp_path, [cell]), quick=True)
    engine = Engine(plan, Places({}, None, tmp_path), "cpu", Lines)
    work(plan, engine.run, print)
    before = plan.finished()[cell.name]
    report, where = (plan.folder(cell) / name for name in ("report.json", "machine.json"))
    kept = json.loads(report.read_text())
    del kept["systems"]["device-rec"]["unseen_ndcg@10"]  # a figure that is younger than the run
    report.write_text(json.dumps(kept))
    os.utime(report, (0, 0))
    where.write_text(json.dumps({**before.machine, "cpu": "another", "revision": "f00"}))
    plan.index.unlink()
    work(plan, replace(engine, progress=lambda name: pytest.fail("it trains")).run, print)
    after = plan.finished()[cell.name]
    assert (after.figures, after.budget) == (before.figures, before.budget)
    assert (after.machine["cpu"], after.machine["revision"]) == ("another", "f00")
    assert after.finished == "1970-01-01T00:00:00+00:00"
    where.unlink()
    assert engine.run(cell).machine["cpu"] == "unknown"


def test_no_cell_is_started_after_the_stop(tmp_path):
    plan = plan_of(tmp_path, [DUET])
    work(plan, Trainer(plan), print, lambda: True)
    assert made(plan) == []
    work(plan, Trainer(plan), print, lambda: len(made(plan)) == 1)
    assert made(plan) == [DENSE.name]


def _in_process(plan: Plan, seconds: float) -> multiprocessing.Process:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=work, args=(plan, Trainer(plan, seconds), print))
    process.start()
    return process


def test_processes_share_the_cells_and_run_none_twice(tmp_path):
    cells = [row.cell.with_seed(s) for row in table1("ml-1m", "sasrec").rows for s in (0, 1)]
    plan = plan_of(tmp_path, cells)
    plan.runs.mkdir()
    workers = [_in_process(plan, 0.05) for _ in range(3)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(made(plan)) == sorted(cell.name for cell in set(cells))
    assert set(read_index(plan.index)) == {cell.name for cell in cells}


def test_a_cell_whose_process_was_killed_is_taken_over(tmp_path):
    plan = plan_of(tmp_path, [DENSE])
    plan.runs.mkdir()
    first = _in_process(plan, 60)
    deadline = time.time() + 30
    while not (plan.folder(DENSE) / "config.json").exists():
        assert time.time() < deadline
        time.sleep(0.01)
    second = _in_process(plan, 0)
    time.sleep(0.2)
    assert second.is_alive() and status(plan, DENSE, ()) == "half done"
    os.kill(first.pid or 0, signal.SIGKILL)
    second.join(30)
    assert second.exitcode == 0 and made(plan) == [DENSE.name] * 2
    assert list(read_index(plan.index)) == [DENSE.name]
