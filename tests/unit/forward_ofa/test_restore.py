"""A published version, loaded again, ranks as the network that was published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forward_ofa.config import MethodConfig, RunConfig, TrainingConfig
from forward_ofa.data import FilterConfig, generate_log, prepare
from forward_ofa.evaluation import evaluate
from forward_ofa.restore import restore_system, validation_ranks
from forward_ofa.runs import train_run
from forward_ofa_device.backbones.contract import BackboneConfig
from services.ports import Verdict
from services.publishing import publish_run
from services.registry.files import FileRegistry
from services.trainer.gate import judge, parse_gate


class Silent:
    def begin(self, stage: str, steps: int, done: int) -> None: ...
    def step(self, loss: float) -> None: ...
    def epoch(self, record: dict) -> None: ...


@pytest.fixture(scope="module", params=["sasrec", "nextitnet"])
def published(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    data = prepare(generate_log(users=30, items=100), FilterConfig(min_user=5, min_item=2))
    backbone = BackboneConfig(name=request.param, blocks=3, hidden=16)
    training = TrainingConfig(epochs=1)
    config = RunConfig(
        MethodConfig(backbone=backbone, extractor_history=9), training, training, warm_start=False,
        candidates=10,
    )  # fmt: skip
    run = train_run(data, config, folder / "run", Silent())
    run.forward_ofa.fusion.fill_(0.75)
    registry = FileRegistry(folder / "registry")
    version = publish_run(run, data, registry, version="job-1")
    return run, data, registry, version


def test_its_ranks_are_the_same(published):
    run, data, registry, version = published
    assert version == "job-1"
    system, item_ids = restore_system(registry.open(version).root)
    ours = evaluate(run.forward_ofa, data, "validation", 10)
    theirs = evaluate(system, data, "validation", 10)
    assert (ours.ranks == theirs.ranks).all()
    assert ours.metrics() == theirs.metrics()
    assert item_ids == data.item_ids


def test_publishing_again_under_the_same_id_does_nothing(published):
    run, data, registry, version = published
    manifest = registry.open(version).manifest
    assert publish_run(run, data, registry, version=version) == version
    assert registry.open(version).manifest == manifest
    assert len(registry.versions()) == 1


def test_another_catalogue_of_the_same_items_changes_nothing(published):
    """A log that has grown numbers its items anew; ranks hang on the items, not on numbers."""
    run, data, registry, version = published
    order = np.random.default_rng(0).permutation(data.num_items)
    number = np.empty(data.num_items + 1, dtype=np.int32)
    number[0] = 0
    number[order + 1] = np.arange(1, data.num_items + 1)
    renamed = replace(
        data, items=number[data.items], item_ids=[data.item_ids[index] for index in order]
    )
    system, item_ids = restore_system(registry.open(version).root)
    expected = evaluate(run.forward_ofa, data, "validation", 10).ranks
    assert (validation_ranks(system, item_ids, renamed) == expected).all()


def test_a_target_that_a_version_does_not_know_is_a_miss(published):
    _, data, registry, version = published
    target = int(data.history(0)[-2])
    ids = list(data.item_ids)
    ids[target - 1] = "a new item"
    system, item_ids = restore_system(registry.open(version).root)
    ranks = validation_ranks(system, item_ids, replace(data, item_ids=ids))
    missed = [user for user in range(data.num_users) if data.history(user)[-2] == target]
    assert 0 in missed
    assert (ranks[missed] == 0).all() and (np.delete(ranks, missed) > 0).all()


def test_the_gate_measures_both_on_the_same_log(published, tmp_path: Path):
    run, data, registry, version = published
    other = FileRegistry(tmp_path / "registry")
    first = judge(parse_gate("+2%"), run.forward_ofa, data, other)
    assert first.passed and first.stable_version == "" and "no version is labelled" in first.reason
    registry.label("stable", version)

    def verdict(rule: str) -> Verdict:
        return judge(parse_gate(rule), run.forward_ofa, data, registry)

    same = verdict("-1%")
    assert same.passed and same.candidate == same.stable > 0
    assert (same.low, same.high, same.stable_version) == (0.0, 0.0, version)
    refused = verdict("+2%")
    assert not refused.passed and refused.required == pytest.approx(1.02 * refused.stable)
    assert "refused" in refused.reason
    assert verdict("off").passed
    assert verdict("hit@10 -1%").metric == "hit@10"
