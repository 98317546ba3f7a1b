"""Rules of asking: what a walk says of them, and the whole command."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from experiments import ageing
from forward_ofa.batches import collate, last_item_sessions
from forward_ofa.config import MethodConfig
from forward_ofa.data import FilterConfig, SequenceDataset, generate_log, prepare
from forward_ofa.evaluation import evaluate, ndcg
from forward_ofa.model import ForwardOFA
from forward_ofa_cli.main import app
from forward_ofa_device.backbones.contract import BackboneConfig
from tests.support.logs import write_csv


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return prepare(generate_log(users=50, items=100, seed=1), FilterConfig())


@pytest.fixture(scope="module")
def system(data: SequenceDataset) -> ForwardOFA:
    torch.manual_seed(0)
    system = ForwardOFA(data.num_items, MethodConfig(BackboneConfig(blocks=2, hidden=16), 10))
    with torch.no_grad():
        system.items.weight.mul_(40)  # or h would hardly move
    return system.eval()


def test_an_aged_network_is_made_from_what_was_there_and_reads_what_is_now(data) -> None:
    sessions = last_item_sessions(data, "test")
    ages = np.arange(len(sessions)) % 7
    fresh, aged = (collate(data, sessions, 10, 5, age) for age in (0, ages))
    assert torch.equal(fresh.windows, aged.windows) and torch.equal(fresh.targets, aged.targets)
    for user, age in enumerate(ages):
        read = data.history(user)[: len(data.history(user)) - 1 - age][-10:]
        assert aged.history[user, : aged.lengths[user]].tolist() == read.tolist()
    oldest = collate(data, sessions, 10, 5, 10**6)
    assert oldest.lengths.tolist() == [1] * len(sessions)
    with pytest.raises(ValueError, match="negative"):
        collate(data, sessions, 10, 5, -1)


def test_a_walk_counts_requests_and_ages(data, system) -> None:
    always, some, never = ageing.walk(system, data, (-1, 0.5, 2), 12)
    assert always[1] == 1 and not always[0].any()
    assert never[1] == 0 and set(never[0]) == {12}
    assert 0 < some[1] < 1 and 0 < some[0].mean() < 12


def test_items_that_a_user_has_not_got_are_no_chances_to_ask(data, system) -> None:
    """The walk is longer than any history: from the second item on each is a chance."""
    always, never = ageing.walk(system, data, (-1, 2), 80)
    assert always[1] == 1 and not always[0].any()
    assert never[0].tolist() == [len(data.history(user)) - 2 for user in range(data.num_users)]


def test_what_a_rule_has_is_the_mean_over_its_ages(data, system) -> None:
    told = {name: (asks, own) for name, asks, _, own in ageing.rules(system, data, 5)}
    fresh, older = (ndcg(evaluate(system, data, "test", age=age).ranks) for age in (0, 1))
    asks, own = told["after 2 items"]
    assert asks == 0.5 and np.allclose(own[0], (fresh + older) / 2)
    assert np.array_equal(told["after 1 items"][1][0], fresh)


def test_age_changes_what_is_generated_only(data, system) -> None:
    fresh, old = (evaluate(system, data, "test", 20, age=age) for age in (0, 15))
    assert not np.array_equal(fresh.funnel.ranks, old.funnel.ranks)
    ages = np.where(np.arange(data.num_users) % 2, 15, 0)
    mixed = evaluate(system, data, "test", 20, age=ages)
    assert np.array_equal(mixed.ranks, np.where(ages, old.ranks, fresh.ranks))


def test_the_command(tmp_path, capsys, monkeypatch) -> None:
    run, log = tmp_path / "run", write_csv(tmp_path / "log.csv", users=40, items=100)
    trained = ["train", "--data", str(log), "--recipe", "quick", "--run-dir", str(run)]
    assert CliRunner().invoke(app, trained).exit_code == 0
    monkeypatch.setattr(sys, "argv", ["ageing", "--run-dir", str(run), "--walk", "3"])
    assert ageing.main() == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert len(rows) == 2 + len(ageing.COUNTS) + len(ageing.SHIFTS) + 1
    other = write_csv(tmp_path / "other.csv", users=30, items=100)
    for words, said in (
        (["--run-dir", str(run), "--data", str(other)], "not the one that"),
        (["--run-dir", str(tmp_path)], "no complete run"),
    ):
        monkeypatch.setattr(sys, "argv", ["ageing", *words])
        assert ageing.main() == 1 and said in capsys.readouterr().err
    told = CliRunner().invoke(app, ["evaluate", "--run-dir", str(run), "--age", "5"])
    assert told.exit_code == 0 and "made 5 items before" in told.output
    assert (
        CliRunner().invoke(app, ["evaluate", "--run-dir", str(run), "--age", "-1"]).exit_code == 2
    )
