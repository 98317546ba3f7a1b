"""LitePred: the paths there are, the predictor, and which path a device gets."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from forward_ofa.baselines.litepred import (
    LitePred,
    LitePredOptions,
    LitePredTask,
    Predictor,
    SupernetTask,
    candidate_paths,
    fit_predictor,
    learn,
    measure,
)
from forward_ofa.cost import network_cost
from forward_ofa.evaluation import evaluate, user_batches
from forward_ofa_device.backbones.contract import BackboneConfig


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (BackboneConfig("sasrec"), 5), (BackboneConfig("nextitnet", blocks=12), 4),
        (BackboneConfig("sasrec", blocks=1), 1), (BackboneConfig("nextitnet", blocks=20), 7),
    ],
)  # fmt: skip
def test_candidates_are_different_and_under_the_cap(config: BackboneConfig, most: int) -> None:
    options = LitePredOptions()
    assert options.most_blocks(config) == most
    paths = candidate_paths(config, options, seed=3)
    counts = paths.sum(1)
    there_are = sum(math.comb(config.blocks, size) for size in range(1, most + 1))
    assert len(torch.unique(paths, dim=0)) == len(paths) == min(options.paths, there_are)
    by_size = torch.bincount(counts, minlength=most + 1)[1:]
    assert (
        by_size
        >= torch.tensor(
            [min(math.comb(config.blocks, k), options.paths // most) for k in range(1, most + 1)]
        )
    ).all()
    assert by_size.sum() == len(paths)
    assert torch.equal(paths, candidate_paths(config, options, seed=3))
    if most < config.blocks:
        share = {"sasrec": 0.5699 / 0.6244, "nextitnet": 0.6167 / 1.5053}[config.name]
        dense = network_cost(config, config.blocks).flops.paper
        assert network_cost(config, most).flops.paper <= share * dense
        assert network_cost(config, most + 1).flops.paper > share * dense


def test_all_paths_are_candidates_where_they_are_few() -> None:
    paths = candidate_paths(BackboneConfig("sasrec", blocks=4), LitePredOptions(cap=1.0), seed=0)
    assert len(paths) == 15


def test_the_sandwich_has_whole_networks_and_single_blocks(data, method, config) -> None:
    options = LitePredOptions(full_share=0.5, single_share=0.3)
    task = SupernetTask(data, method, config, options)
    kept = task.draw(4000).sum(1)
    blocks = method.backbone.blocks
    shares = [float((kept == count).float().mean()) for count in range(1, blocks + 1)]
    assert shares[-1] == pytest.approx(0.5 + 0.2 / blocks, abs=0.03)
    assert shares[0] == pytest.approx(0.3 + 0.2 / blocks, abs=0.03)


def test_supernet_predictor_matching_tuning(
    data, method, config, batch, trained, gradients
) -> None:
    options = LitePredOptions(cap=0.8, predictor_steps=50, tune_epochs=2)
    first = SupernetTask(data, method, config, options)
    assert set(gradients(first, batch)) == {name for name, _ in first.system.named_parameters()}
    trained(first)
    task = LitePredTask(data, method, config, options, first.system)
    items = task.system.items.weight.detach().clone()
    assert not task.system.fitted
    records = trained(task, falls=False)
    assert task.system.fitted and len(records) == 2
    assert all(-1 <= record["predictor_correlation"] <= 1 for record in records)
    assert torch.equal(task.system.items.weight, items)
    assert not torch.equal(task.system.blocks[0][0], first.system.blocks[0][0])
    figures = evaluate(task.system, data, "validation")
    pool = {tuple(path) for path in task.system.pool.tolist()}
    assert {tuple(path) for path in figures.kept.tolist()} <= pool
    most = network_cost(method.backbone, options.most_blocks(method.backbone)).flops.paper
    assert figures.costs.paper_flops.max() <= most
    expected = [network_cost(method.backbone, int(k)).flops.paper for k in figures.kept_blocks]
    assert figures.costs.paper_flops.tolist() == expected


def test_measured_losses_are_the_systems_own_on_validation_items(data, method) -> None:
    torch.manual_seed(0)
    system = LitePred(data.num_items, method.backbone, 0.0, LitePredOptions(cap=1.0)).eval()
    with torch.no_grad():
        system.items.weight[1:].normal_()
    features, paths, losses = measure(system, data, np.random.default_rng(5))
    torch.testing.assert_close(losses.mean(1), torch.zeros(data.num_users), atol=1e-5, rtol=0)
    assert losses.abs().max() > 0.01
    batch = next(iter(user_batches(data, "validation", 1, method.backbone.history)))
    torch.testing.assert_close(features, system.features(batch))
    user = 7
    vectors = [system.vectors(batch, path.expand(len(paths), -1))[user, 0] for path in paths[user]]
    scores = torch.stack(vectors) @ system.items.weight[1:].T
    found = -torch.log_softmax(scores, 1)[:, batch.targets[user, 0] - 1].detach()
    torch.testing.assert_close(losses[user], found - found.mean(), atol=1e-4, rtol=1e-4)


def test_the_predictor_learns_which_path_suits_which_device() -> None:
    """Block 0 helps devices with a positive first feature and harms the others; block 1 costs."""
    torch.manual_seed(0)
    features = torch.randn(400, 8) * 0.05 + 3.0
    paths = (torch.rand(400, 6, 3) < 0.5).float()
    side = torch.sign(features[:, :1] - 3.0)
    losses = -side * paths[..., 0] + 0.3 * paths[..., 1] + torch.randn(400, 6) * 0.3
    losses -= losses.mean(1, keepdim=True)
    predictor = Predictor(8, 3, 32)
    assert learn(predictor, LitePredOptions(), features, paths, losses) > 0.7
    every = torch.tensor([[a, b, 0.0] for a in (0.0, 1.0) for b in (0.0, 1.0)])
    best = every[predictor(features, every).argmin(1)]
    assert (best[:, 1] == 0).float().mean() > 0.95
    assert (best[:, 0] == (side[:, 0] > 0)).float().mean() > 0.85


def test_no_more_users_are_measured_than_asked_for(data, method, monkeypatch) -> None:
    monkeypatch.setattr("forward_ofa.evaluation._BATCH", 16)
    system = LitePred(data.num_items, method.backbone, 0.0, LitePredOptions(measured_users=20))
    features, paths, losses = measure(system, data, np.random.default_rng(0))
    assert (len(features), paths.shape[:2], losses.shape) == (32, (32, 8), (32, 8))


def test_few_users_have_nobody_held_out() -> None:
    predictor = Predictor(4, 2, 8)
    features, paths = torch.randn(3, 4), (torch.rand(3, 4, 2) < 0.5).float()
    losses = torch.zeros(3, 4)
    assert learn(predictor, LitePredOptions(predictor_steps=2), features, paths, losses) == 0.0


def test_fitting_draws_nothing_from_the_global_generator(data, method) -> None:
    options = LitePredOptions(predictor_steps=3)
    systems = []
    for noise in (1, 2):
        torch.manual_seed(0)
        system = LitePred(data.num_items, method.backbone, 0.0, options)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fit_predictor(system, data, seed=0)
        assert torch.equal(torch.get_rng_state(), before)
        systems.append(system.state_dict())
    for name, value in systems[0].items():
        assert torch.equal(value, systems[1][name]), name


def test_a_path_is_the_devices_own_for_all_of_its_windows(data, method, batch) -> None:
    system = LitePred(data.num_items, method.backbone, 0.0, LitePredOptions(cap=1.0)).eval()
    with torch.no_grad():
        system.predictor.feature.weight.normal_()
        system.items.weight[1:].normal_()
    chosen = system.choose(batch)
    assert chosen.shape == (len(batch.targets), method.backbone.blocks)
    first = dataclasses.replace(batch, windows=batch.windows[:, :1])
    assert torch.equal(system.choose(first), chosen)
    whole = system.vectors(batch)
    torch.testing.assert_close(whole, system.vectors(batch, chosen.float()))


@pytest.mark.parametrize(
    "wrong", [{"cap": 1.5}, {"paths": 0}, {"measured_paths": 1}, {"full_share": 0.8,
              "single_share": 0.3}, {"predictor_rate": 0.0}, {"tune_epochs": -1}],
)  # fmt: skip
def test_bad_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        LitePredOptions(**wrong)
