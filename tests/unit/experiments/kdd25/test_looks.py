"""What is looked at in trained systems: Figure 6, Table 8, and configurations of cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.kdd25.adaptation import adaptation_times, generate
from experiments.kdd25.case import all_users, case_study, users_of
from experiments.kdd25.cells import Cell
from experiments.kdd25.recipes import BACKBONES, RECIPES
from experiments.kdd25.runner import CellError
from experiments.kdd25.settings import configure
from forward_ofa.cost import network_cost
from forward_ofa.data import FilterConfig, generate_log, prepare
from forward_ofa.evaluation import evaluate
from forward_ofa.runs import Run, data_card
from forward_ofa.systems import SYSTEMS


@pytest.fixture(scope="module")
def data():
    return prepare(generate_log(users=40, items=100), FilterConfig())


def untrained(data, system: str, seed: int = 0) -> Run:
    """A run with weights as drawn: structures and networks differ between users all the same."""
    config = configure(Cell("synthetic", "sasrec", system), data.num_interactions)
    torch.manual_seed(seed)
    made = SYSTEMS[system].build(config, data.num_items).eval()
    dense = SYSTEMS["device-rec"].build(config, data.num_items).eval()
    return Run(Path("nowhere"), config, data_card(data), made, dense, {"protocol": []})


@pytest.fixture(scope="module")
def run(data):
    found = untrained(data, "forward-ofa")
    with torch.no_grad():
        # Embeddings of any size, and logits around zero, so that paths differ.
        found.system.items.weight[1:].normal_()
        found.system.controller.head.weight.normal_()
        found.system.controller.head.bias.zero_()
    return found


def test_all_users_are_counted_as_the_evaluation_counts_them(data, run):
    counted = case_study(run, data, seed=0)["all_users"]
    for name, system in (("own", run.system), ("dense", run.device_rec)):
        found = evaluate(system, data, "test")
        assert counted[name] == pytest.approx({"ndcg@10": found.ndcg, "hit@10": found.hit})
    assert counted["other"] != counted["own"]


def test_four_users_with_different_paths_are_shown_with_titles(data, run):
    case = case_study(run, data, seed=0)
    paths = [tuple(user["path"]) for user in case["users"]]
    assert len(set(paths)) == 4 and all(any(path) for path in paths)
    assert sorted(user["letter"] for user in case["users"])[0] == "P"
    assert [user["letter"] for user in case["users"]].count("Y") == 1
    differing = {
        user["letter"]: sum(a != b for a, b in zip(user["path"], paths[0], strict=True))
        for user in case["users"]
    }
    assert differing["Y"] == max(differing.values()) > 0
    titles = set(data.titles.values())
    assert case["target"] in titles
    assert all(set(found["titles"]) <= titles for found in case["lists"].values())
    assert all(set(user["history"]) <= titles for user in case["users"])


def test_the_three_lists_are_of_three_networks(data, run):
    case = case_study(run, data, seed=0)
    lists = case["lists"]
    users = {user["letter"]: user for user in case["users"]}
    assert lists["own"]["blocks"] == sum(users["P"]["path"])
    assert lists["other"]["blocks"] == sum(users["Y"]["path"])
    assert lists["dense"]["blocks"] == 6
    assert len({tuple(found["titles"]) for found in lists.values()}) == 3
    for found in lists.values():
        place = found["rank"] - 1
        assert (case["target"] in found["titles"]) == (place < 10)
        if place < 10:
            assert found["titles"][place] == case["target"]


def test_the_same_seed_shows_the_same_users(data, run):
    assert case_study(run, data, seed=1) == case_study(run, data, seed=1)


def test_users_without_different_paths_are_shown_all_the_same(data):
    plain = untrained(data, "forward-ofa")
    assert len(case_study(plain, data, seed=0)["users"]) == 4


def test_generating_is_faster_than_finetuning_and_threads_are_put_back(data, run):
    tuned = untrained(data, "finetune")
    threads = torch.get_num_threads()
    seconds = adaptation_times(run, tuned, data, seed=0, users=20, tuned_users=2)
    assert torch.get_num_threads() == threads
    assert 0 < seconds["forward-ofa"] < seconds["finetune"]
    assert seconds["finetune-steps"] == int(tuned.system.steps)
    with pytest.raises(CellError, match="no run of Finetune"):
        adaptation_times(run, run, data, seed=0)


def test_what_is_timed_makes_every_parameter_of_the_kept_blocks(data, run):
    system = run.forward_ofa
    batch = users_of(all_users(system, data), np.array([3]), system)
    made = generate(system, batch)
    blocks = int((system.adapt(batch).gates > 0).sum())
    sent = network_cost(system.config.backbone, blocks).payload_bytes["float32"]
    assert 4 * sum(tensor.numel() for tensor in made) == sent


def test_every_cell_of_every_table_has_a_configuration():
    cells = {
        row.cell
        for recipe in RECIPES.values()
        for dataset in ("ml-1m", "amazon-food")
        for backbone in BACKBONES
        for row in recipe(dataset, backbone).rows
    }
    for cell in cells:
        config = configure(cell.with_seed(5), 994_852)
        assert config.system == cell.system and config.method.backbone.blocks == cell.blocks
        assert config.training.seed == config.device_rec.seed == 5 and config.compare


def test_settings_of_a_cell_reach_its_configuration():
    cell = Cell("ml-1m", "sasrec", "forward-ofa", epochs=3, overrides=(("compact_weight", 0.05),))
    config = configure(cell, 1000)
    assert config.method.compact_weight == 0.05 and config.training.epochs == 3
    gem = Cell("ml-1m", "sasrec", "rare-gem", overrides=(("options.kept", 0.5),))
    assert configure(gem, 1000).options.kept == 0.5
    assert configure(cell, 1000, quick=True).training.epochs == 1
    with pytest.raises(ValueError, match="'nonsense' is none of kept"):
        configure(Cell("ml-1m", "sasrec", "rare-gem", overrides=(("options.nonsense", 1),)), 1000)
