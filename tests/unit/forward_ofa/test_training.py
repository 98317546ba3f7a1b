"""Training: deterministic, resumable to the digit, and careful with what it is given."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forward_ofa.checkpoint import CheckpointError, save_tensors
from forward_ofa.config import (
    MOST_SEED,
    FoundationConfig,
    MethodConfig,
    RunConfig,
    TrainingConfig,
)
from forward_ofa.data import FilterConfig, SequenceDataset, generate_log, prepare
from forward_ofa.evaluation import hit, ndcg, paired_interval, rank_of
from forward_ofa.export import export_version, item_shards
from forward_ofa.foundation import sequence_batches
from forward_ofa.recipes import RECIPES, recipe
from forward_ofa.runs import (
    RunError,
    estimate_seconds,
    evaluate_run,
    load_run,
    run_config_from_json,
    train_run,
)
from forward_ofa.systems import SYSTEMS
from forward_ofa.tasks import ForwardOFATask
from forward_ofa.training import TrainingError, fit, learning_rate
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.bundle import read_bundle, read_shard
from tests.support.logs import training_targets

TINY = RunConfig(
    method=MethodConfig(BackboneConfig("sasrec", blocks=2, hidden=8, heads=1), extractor_history=6),
    device_rec=TrainingConfig(epochs=2, batch_size=128),
    training=TrainingConfig(epochs=3, batch_size=64, targets_per_network=8),
    warm_start=True,
    foundation=FoundationConfig(TrainingConfig(epochs=2, batch_size=16), length=20),
    candidates=20,
)


class Recorder:
    """Keeps what it is told; stops training where it is asked to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.steps = self.promised = 0
        self.stop_after = stop_after

    def begin(self, stage: str, steps: int, done: int) -> None:
        self.promised += steps - done

    def step(self, loss: float) -> None:
        self.steps += 1

    def epoch(self, record: dict[str, Any]) -> None:
        self.epochs.append(record)
        if len(self.epochs) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return prepare(generate_log(users=50, items=110, seed=1), FilterConfig())


@pytest.fixture(scope="module")
def finished(data: SequenceDataset, tmp_path_factory: pytest.TempPathFactory):
    return train_run(data, TINY, tmp_path_factory.mktemp("run"), Recorder())


def figures(run: Any) -> Any:
    return {k: v for k, v in run.report.items() if k in ("systems", "difference")}


def test_equal_seeds_give_equal_figures(data, finished, tmp_path: Path) -> None:
    again = train_run(data, TINY, tmp_path / "again", Recorder())
    assert figures(again) == figures(finished)
    for name, value in finished.forward_ofa.state_dict().items():
        assert torch.equal(value, again.forward_ofa.state_dict()[name]), name


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_stopped_run_goes_on_to_the_same_figures(
    data, finished, tmp_path: Path, stop_after: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(data, TINY, folder, Recorder(stop_after))
    with pytest.raises(RunError, match="no complete run"):
        load_run(folder)
    with pytest.raises(RunError, match="--resume"):
        train_run(data, TINY, folder, Recorder())
    rest = Recorder()
    resumed = train_run(data, TINY, folder, rest, resume=True)
    assert len(rest.epochs) == 7 - stop_after
    assert figures(resumed) == figures(finished)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(data, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_run(data, TINY, folder, Recorder(1))
    other = dataclasses.replace(TINY, foundation=dataclasses.replace(TINY.foundation, dropout=0.3))
    with pytest.raises(CheckpointError, match="other data or settings"):
        train_run(data, other, folder, Recorder(), resume=True)
    # It can still be resumed: what it was begun with is not overwritten.
    stored = json.loads((folder / "config.json").read_text())
    assert run_config_from_json(stored) == TINY
    checkpoint = folder / "foundation.checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        train_run(data, TINY, folder, Recorder(), resume=True)


def test_a_run_is_read_back_as_it_was(data, finished) -> None:
    run = load_run(finished.folder)
    assert (run.config, run.report) == (TINY, finished.report)
    assert evaluate_run(run, data, "test")["systems"] == finished.report["systems"]
    other = prepare(generate_log(users=60, items=110, seed=2), FilterConfig())
    with pytest.raises(RunError, match="not the one"):
        evaluate_run(run, other, "test")


def test_progress_is_told_everything(data, tmp_path: Path) -> None:
    recorder = Recorder()
    train_run(data, TINY, tmp_path / "run", recorder)
    assert len(recorder.epochs) == 7
    assert abs(recorder.steps - recorder.promised) <= 0.05 * recorder.promised
    assert estimate_seconds(data, TINY) > 0


def test_a_loss_that_explodes_stops_the_run(data, tmp_path: Path) -> None:
    wild = TrainingConfig(epochs=2, learning_rate=1e30, warmup_steps=0)
    config = dataclasses.replace(TINY, foundation=None, device_rec=wild)
    with pytest.raises(TrainingError, match="learning-rate"):
        train_run(data, config, tmp_path / "run", Recorder())
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_step(data, monkeypatch) -> None:
    """Also after the last step of all, when no loss follows that would tell."""
    config = dataclasses.replace(TINY.training, epochs=1)
    task = ForwardOFATask(data, TINY.method, config)
    steps, _ = task.epoch(np.random.default_rng(0))
    before = {}
    made = 0

    def loss(batch: Any, done: float) -> torch.Tensor:
        nonlocal made
        made += 1
        found = ForwardOFATask.loss(task, batch, done)
        if made < steps:
            return found
        before.update({name: value.clone() for name, value in task.system.state_dict().items()})
        # Finite, with a gradient that is not: the root's slope at 0, times 0.
        return found + 0 * torch.sqrt(0 * task.system.items.weight.sum())

    monkeypatch.setattr(task, "loss", loss)
    with pytest.raises(TrainingError, match="gradient's norm became nan in epoch 1"):
        fit(task, Recorder())
    assert made == steps
    for name, value in task.system.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_setting_takes_what_is_not_finite(value: float) -> None:
    kinds = [system.options for system in SYSTEMS.values() if system.options is not None]
    configs = [TINY.method, TINY.training, TINY.foundation, *(kind() for kind in kinds)]
    for config in configs:
        for field in dataclasses.fields(config):
            now = getattr(config, field.name)
            if isinstance(now, float):
                with pytest.raises(ValueError, match=f"{field.name} must be a finite number"):
                    dataclasses.replace(config, **{field.name: value})
            elif isinstance(now, tuple) and isinstance(now[0], float):
                with pytest.raises(ValueError, match=f"{field.name} must be a finite number"):
                    dataclasses.replace(config, **{field.name: (now[0], value)})


@pytest.mark.parametrize("seed", [0, MOST_SEED])
def test_every_allowed_seed_is_taken_by_numpy_and_torch(data, seed: int) -> None:
    config = dataclasses.replace(TINY.training, epochs=1, batch_size=1000, seed=seed)
    assert fit(ForwardOFATask(data, TINY.method, config), Recorder()).records


def test_damaged_weights_are_refused(data, tmp_path: Path) -> None:
    run = train_run(data, TINY, tmp_path / "run", Recorder())
    weights = run.folder / "forward-ofa.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(RunError, match="damaged"):
        load_run(run.folder)


@pytest.mark.parametrize("text", ["", "[1]", "{}"])
def test_a_damaged_report_is_refused(finished, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    (folder / "report.json").write_text(text)
    with pytest.raises(RunError, match="damaged"):
        load_run(folder)


def test_the_foundation_meets_every_training_target_once(data) -> None:
    config = FoundationConfig(TrainingConfig(epochs=1, batch_size=7), length=9)
    met: list[int] = []
    for batch in sequence_batches(data, config, np.random.default_rng(0)):
        assert batch.shape[1] <= 10
        met += batch[:, 1:][batch[:, 1:] > 0].tolist()
        assert (batch[:, 0] > 0).all()
    assert sorted(met) == sorted(data.targets(*training_targets(data)).tolist())


def test_an_export_holds_what_devices_and_services_need(data, finished, tmp_path: Path) -> None:
    version = export_version(finished, data, tmp_path)
    bundle = read_bundle((tmp_path / "bundle" / "tensors.safetensors").read_bytes())
    assert bundle.manifest.version == version
    assert bundle.manifest.extractor_history == 6
    shards = [
        read_shard(path.read_bytes())
        for path in sorted((tmp_path / "bundle").glob("items-*.safetensors"))
    ]
    assert sorted(i for _, ids, _ in shards for i in ids) == sorted(data.item_ids)
    table = finished.forward_ofa.items.weight.detach()[1:].numpy()
    for found_version, ids, rows in shards:
        assert found_version == version
        expected = table[[data.item_ids.index(i) for i in ids]]
        np.testing.assert_allclose(rows, expected, atol=1e-3)
    card = json.loads((tmp_path / "version.json").read_text())
    assert card["metrics"]["ndcg@10"] == finished.report["systems"]["forward-ofa"]["ndcg@10"]


def test_shard_0_is_the_popular_items_and_the_rest_is_sorted(data, monkeypatch) -> None:
    monkeypatch.setattr("forward_ofa.export.POPULAR_ITEMS", 30)
    monkeypatch.setattr("forward_ofa.export.SHARD_ITEMS", 25)
    shards = item_shards(data)
    popularity = data.popularity()[1:]
    least = popularity[shards[0][1]].min()
    rest = [i for ids, _ in shards[1:] for i in ids]
    assert rest == sorted(rest)
    assert all(popularity[rows].max() <= least for _, rows in shards[1:])
    assert len(shards[0][0]) == 30
    assert all(len(ids) >= 25 for ids, _ in shards)  # a small shard would say which item is meant
    monkeypatch.setattr("forward_ofa.export.SHARD_ITEMS", 1000)
    assert [len(ids) for ids, _ in item_shards(data)] == [data.num_items]


def test_ranks_and_metrics() -> None:
    scores = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 5.0, 5.0, 5.0], [9.0, 0.0, 1.0, 2.0]])
    ranks = rank_of(scores, torch.tensor([2, 1, 1])).numpy()
    assert ranks.tolist() == [1, 3, 3]  # ties count against the target
    np.testing.assert_allclose(ndcg(np.array([1, 2, 10, 11, 0])), [1, 0.63093, 0.28906, 0, 0], 1e-4)
    assert hit(np.array([1, 10, 11, 0])).tolist() == [1, 1, 0, 0]
    low, high = paired_interval(np.ones(50), np.zeros(50))
    assert (low, high) == (1, 1)
    rng = np.random.default_rng(0)
    low, high = paired_interval(rng.random(400), rng.random(400))
    assert low < 0 < high


def test_the_learning_rate_warms_up_and_comes_down() -> None:
    config = TrainingConfig(epochs=1, learning_rate=1.0, warmup_steps=10, decay_from=0.5)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 50, 0.5) == 1
    assert learning_rate(config, 75, 0.75) == pytest.approx(0.5)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.05)


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("backbone", ["sasrec", "nextitnet"])
def test_recipes_survive_json(name: str, backbone: str) -> None:
    config = recipe(name, backbone, 500_000)
    assert run_config_from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_an_unknown_recipe_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="paper"):
        recipe("best", "sasrec", 1)


def test_larger_logs_get_fewer_epochs() -> None:
    small, middle, large = (recipe("default", "sasrec", n) for n in (50_000, 500_000, 10**9))
    epochs = [(c.foundation.training.epochs, c.training.epochs) for c in (small, middle, large)]
    assert epochs[0] > epochs[1] > epochs[2] >= (1, 1)


def test_a_full_disk_is_told_as_such_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full") as caught:
        save_tensors(path, {"a": torch.zeros(3)})
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
