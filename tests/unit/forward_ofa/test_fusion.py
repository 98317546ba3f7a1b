"""The weight of the cloud's query in what devices rank with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from forward_ofa.ablations import MapperOnly
from forward_ofa.config import MethodConfig, TrainingConfig
from forward_ofa.cost import device_modules_cost, query_cost
from forward_ofa.data import FilterConfig, generate_log, prepare
from forward_ofa.evaluation import evaluate
from forward_ofa.fusion import WEIGHTS, choose_fusion
from forward_ofa.model import ForwardOFA
from forward_ofa.recipes import recipe
from forward_ofa.tasks import ForwardOFATask
from forward_ofa_device.backbones.contract import BackboneConfig

BACKBONE = BackboneConfig(blocks=2, hidden=8, heads=2)


@pytest.fixture(scope="module")
def data():
    return prepare(generate_log(users=60, items=100), FilterConfig(min_user=5, min_item=2))


@pytest.mark.parametrize("kind", [ForwardOFA, MapperOnly])
def test_the_weight_is_the_one_that_ranks_validation_best(data, kind: type[ForwardOFA]) -> None:
    chosen = set()
    for seed in range(4):
        torch.manual_seed(seed)
        system = kind(data.num_items, MethodConfig(BACKBONE, extractor_history=9))
        with torch.no_grad():
            system.items.weight.mul_(50)
            system.query.weight.mul_(9)
        quality = {}
        for weight in WEIGHTS:
            system.fusion.fill_(weight)
            quality[weight] = evaluate(system, data, "validation").ndcg
        choose_fusion(system, data)
        best = max(quality.values())
        assert float(system.fusion) == next(w for w in WEIGHTS if quality[w] == best)
        chosen.add(float(system.fusion))
    assert len(chosen) > 1


def test_of_equal_weights_the_least_is_taken_and_costs_nothing(data) -> None:
    system = ForwardOFA(data.num_items, MethodConfig(BACKBONE, extractor_history=9))
    bare = device_modules_cost(BACKBONE, 9)
    with torch.no_grad():
        system.query.weight.zero_()
        system.query.bias.zero_()
    system.fusion.fill_(0.5)
    assert system.device_modules() == bare + query_cost(BACKBONE)
    choose_fusion(system, data)
    assert float(system.fusion) == 0.0 and system.device_modules() == bare


@pytest.mark.parametrize("fusion", [False, True])
def test_training_is_the_same_and_validation_chooses(data, fusion: bool) -> None:
    method = MethodConfig(BACKBONE, extractor_history=9, fusion=fusion)
    task = ForwardOFATask(data, method, TrainingConfig(epochs=1, batch_size=16))
    with torch.no_grad():
        task.system.items.weight.mul_(50)
        task.system.query.weight.mul_(9)
    task.system.fusion.fill_(0.25)  # as an epoch before may have left it
    _, stream = task.epoch(np.random.default_rng(0))
    batch = next(iter(stream))
    torch.manual_seed(0)
    loss = task.loss(batch, 0.5)
    task.system.fusion.fill_(3.0)
    torch.manual_seed(0)
    assert torch.equal(loss, task.loss(batch, 0.5))
    figures = task.validate()
    assert figures["fusion"] == float(task.system.fusion)
    assert (figures["fusion"] in WEIGHTS) is fusion, "3 is left where nothing is chosen"
    assert figures["ndcg@10"] == evaluate(task.system, data, "validation").ndcg


@pytest.mark.parametrize(
    ("interactions", "users", "added"),
    [(75_000, 9_827, True), (94_728, 943, False), (994_852, 6_040, False), (0, 0, False)],
)
def test_the_default_recipe_adds_the_query_where_histories_are_short(
    interactions: int, users: int, added: bool
) -> None:
    assert recipe("default", "sasrec", interactions, users=users).method.fusion is added
    assert not recipe("paper", "sasrec", interactions, users=users).method.fusion


def test_weights_and_runs_from_before_there_was_fusion_are_read(data) -> None:
    method = MethodConfig(BACKBONE, extractor_history=9)
    system = ForwardOFA(data.num_items, method)
    before = {name: value for name, value in system.state_dict().items() if name != "fusion"}
    system.fusion.fill_(0.5)
    system.load_state_dict(before)
    assert float(system.fusion) == 0.0
    training = TrainingConfig(epochs=1)
    known = ForwardOFATask(data, method, training).settings()["method"]
    assert "fusion" not in known and "retrieval_apart" not in known
    with_it = replace(method, fusion=True)
    assert ForwardOFATask(data, with_it, training).settings()["method"]["fusion"]
    with pytest.raises(ValueError, match="retrieval_weight"):
        replace(with_it, retrieval_weight=0.0)
