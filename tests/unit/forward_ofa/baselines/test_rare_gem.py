"""Rare Gem: what is frozen, what is removed, and that it stays away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from forward_ofa.baselines.rare_gem import (
    GemSearchTask,
    PruningPlan,
    RareGemOptions,
    RareGemTask,
    kept_costs,
    sparse_costs,
)
from forward_ofa.evaluation import evaluate
from forward_ofa_device.backbones.contract import BackboneConfig

FULL = {"sasrec": BackboneConfig("sasrec"), "nextitnet": BackboneConfig("nextitnet", blocks=12)}


@pytest.mark.parametrize(
    ("backbone", "kept", "mbit"),
    [
        ("sasrec", 1.0, 3.9936), ("sasrec", 3.7696 / 3.9936, 3.7696),
        ("sasrec", 3.6364 / 3.9936, 3.6364), ("nextitnet", 5.4784 / 9.5846, 5.4784),
    ],
)  # fmt: skip
def test_param_is_the_papers_and_flops_are_the_dense_networks(
    backbone: str, kept: float, mbit: float
) -> None:
    plan = PruningPlan.of(FULL[backbone], RareGemOptions(kept=kept))
    means = sparse_costs(FULL[backbone], plan.entries - plan.kept, 1).means()
    assert means["paper_mbit"] == pytest.approx(mbit, abs=1e-4)
    assert round(means["paper_mflops"], 4) == {"sasrec": 0.6244, "nextitnet": 1.5053}[backbone]
    extra_bits = plan.entries if kept < 1 else 0
    shared = 320 * 32 if backbone == "sasrec" else 0  # positions, which the paper does not count
    difference = (means["true_mbit"] - means["paper_mbit"]) * 1e6
    assert difference == pytest.approx(extra_bits + shared)


@pytest.mark.parametrize(("backbone", "mbit"), [("sasrec", 3.6384), ("nextitnet", 5.4784)])
def test_the_default_size_is_the_papers(backbone: str, mbit: float) -> None:
    means = kept_costs(FULL[backbone], RareGemOptions()).means()
    assert means["paper_mbit"] == pytest.approx(mbit, abs=5e-5)


def test_pruning_goes_in_equal_factors_and_leaves_time_to_settle() -> None:
    plan = PruningPlan(entries=1000, kept=125, steps=3)
    assert [plan.due(done) for done in (0.0, 0.24, 0.26, 0.51, 0.76, 1.0)] == [
        1000, 1000, 500, 250, 125, 125,
    ]  # fmt: skip


def test_the_search_moves_scores_and_embeddings_only(
    data, method, config, batch, gradients
) -> None:
    task = GemSearchTask(data, method, config, RareGemOptions())
    found = gradients(task, batch, 0.0)
    shared = {"sasrec": {"shared.0"}, "nextitnet": set()}[method.backbone.name]
    assert set(found) == {"raw_scores", "items.weight"} | shared
    assert (found["raw_scores"].abs().sum(1) > 0).all()
    for spec, value in zip(
        task.system.backbone.block_parameters(), task.system.block(0), strict=True
    ):
        if spec.kind == "matrix":
            expected = torch.full_like(value, spec.shape[0] ** -0.5)
            torch.testing.assert_close(value.abs(), expected)
            assert 0.4 < (value > 0).float().mean() < 0.6
            masked = task.system.block_parameters(0)[spec.name]
            assert 0.3 < (masked == 0).float().mean() < 0.7


def test_the_straight_through_gradient_is_weight_times_its_own(
    data, method, config, batch, gradients
) -> None:
    """d loss / d p = w * d loss / d (w * mask), wherever p lies; none where w was removed."""
    task = GemSearchTask(data, method, config, RareGemOptions(score_weight=0.0, score_speed=4.0))
    system = task.system
    system.prune(int(0.7 * system.flags.numel()))
    seen: list[torch.Tensor] = []
    original = system.masked

    def watched(values, mask):
        mask.retain_grad()
        seen.append(mask)
        return original(values, mask)

    system.masked = watched
    found = gradients(task, batch, 0.0)["raw_scores"]
    expected = torch.stack([mask.grad for mask in seen]) * system.flags * system.speed
    torch.testing.assert_close(found, expected)
    assert (found[~system.flags] == 0).all()


def test_pruning_takes_the_lowest_scores_of_all_blocks_and_only_ever_removes(
    data, method, config
) -> None:
    system = GemSearchTask(data, method, config, RareGemOptions()).system
    count = system.flags.numel()
    system.prune(count // 2)
    first = system.flags.clone()
    scores = system.scores().detach()
    assert first.sum() == count // 2
    assert scores[first].min() >= scores[~first].max()
    with torch.no_grad():
        system.raw_scores.copy_(torch.rand_like(system.raw_scores) / system.speed)
    system.prune(count // 2)  # as after a resume: nothing changes
    assert torch.equal(system.flags, first)
    system.prune(count // 4)
    assert system.flags.sum() == count // 4
    assert not (system.flags & ~first).any()


def test_a_gem_is_found_and_trained(data, method, config, trained) -> None:
    options = RareGemOptions(kept=0.5, search_epochs=4, prune_steps=3)
    search = GemSearchTask(data, method, config, options)
    records = trained(search)
    plan = search.plan
    assert [record["ndcg@10"] > 0 for record in records] == [
        record["kept_entries"] * plan.entries < plan.kept + 0.5 for record in records
    ]
    assert int(search.system.flags.sum()) == plan.kept
    scores = search.system.scores()
    assert scores.min() >= 0 and scores.max() <= 1
    task = RareGemTask(data, method, config, options, search.system)
    before = {name: value.clone() for name, value in task.system.named_parameters()}
    trained(task)
    assert torch.equal(task.system.flags, search.system.flags)
    for index in range(method.backbone.blocks):
        parts = task.system.flags[index].split([spec.size for spec in task.system.specs])
        names = [spec.name for spec in task.system.backbone.block_parameters()]
        for spec, there in zip(task.system.specs, parts, strict=True):
            name = f"blocks.{index}.{names.index(spec.name)}"
            moved = task.system.get_parameter(name) != before[name]
            assert torch.equal(moved.flatten() & ~there, torch.zeros_like(there)), name
            assert moved.flatten()[there].float().mean() > 0.9 or not there.any(), name
    zeros = sum(
        int((task.system.block_parameters(index)[spec.name] == 0).sum())
        for index in range(method.backbone.blocks)
        for spec in task.system.specs
    )
    assert zeros == plan.entries - plan.kept
    means = evaluate(task.system, data, "validation").costs.means()
    dense = sparse_costs(method.backbone, 0, 1).means()
    assert means["paper_mbit"] / dense["paper_mbit"] == pytest.approx(0.5, abs=1e-4)
    assert means["paper_mflops"] == dense["paper_mflops"]


def test_a_search_that_was_too_short_to_prune_still_gives_the_size_asked_for(
    data, method, config
) -> None:
    options = RareGemOptions(kept=0.6, prune_steps=100)
    search = GemSearchTask(data, method, dataclasses.replace(config, epochs=1), options)
    task = RareGemTask(data, method, config, options, search.system)
    assert int(task.system.flags.sum()) == search.plan.kept


def test_more_than_there_is_to_remove_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Use at least 0\.0\d"):
        PruningPlan.of(FULL["sasrec"], RareGemOptions(kept=0.01))


@pytest.mark.parametrize(
    "wrong", [{"kept": 1.1}, {"prune_steps": 0}, {"score_speed": 0.0}, {"score_weight": -0.1}]
)
def test_bad_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        RareGemOptions(**wrong)


def test_costs_have_a_row_a_device() -> None:
    costs = sparse_costs(FULL["sasrec"], 100, 4)
    assert np.unique(costs.paper_bits).tolist() == [6 * 20_800 * 32 - 100 * 32]
    assert len(costs.paper_flops) == 4
