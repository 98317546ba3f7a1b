"""A small log, and what training of each rival system is looked at with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from forward_ofa.batches import collate, training_sessions
from forward_ofa.config import MethodConfig, TrainingConfig
from forward_ofa.data import FilterConfig, SequenceDataset, generate_log, prepare
from forward_ofa.model import Batch
from forward_ofa.training import fit
from forward_ofa_device.backbones.contract import BackboneConfig

BACKBONES = {
    "sasrec": BackboneConfig("sasrec", blocks=3, hidden=16, heads=2),
    "nextitnet": BackboneConfig("nextitnet", blocks=3, hidden=16),
}


class Quiet:
    """Watches a training and keeps its records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def begin(self, stage: str, steps: int, done: int) -> None: ...

    def step(self, loss: float) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)


@pytest.fixture(scope="session")
def data() -> SequenceDataset:
    return prepare(generate_log(users=60, items=110, seed=1), FilterConfig())


@pytest.fixture(params=sorted(BACKBONES))
def method(request: pytest.FixtureRequest) -> MethodConfig:
    return MethodConfig(BACKBONES[request.param], dropout=0.0)


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(
        epochs=3, batch_size=64, targets_per_network=8, learning_rate=1e-2, warmup_steps=5
    )


@pytest.fixture
def batch(data: SequenceDataset) -> Batch:
    sessions = training_sessions(data, 3, np.random.default_rng(0))
    return collate(data, sessions.take(np.arange(40)), 1, 5)


@pytest.fixture
def trained() -> Callable[..., list[dict[str, Any]]]:
    """Trains a task; its records. Fails unless all is finite and, if asked for, the loss falls."""

    def train(task: Any, falls: bool = True) -> list[dict[str, Any]]:
        watch = Quiet()
        fit(task, watch)
        losses = [record["loss"] for record in watch.records]
        assert not falls or losses[-1] < 0.99 * losses[0], losses
        for name, value in task.system.state_dict().items():
            assert value.dtype == torch.bool or torch.isfinite(value).all(), name
        return watch.records

    return train


@pytest.fixture
def gradients() -> Callable[..., dict[str, torch.Tensor]]:
    """The gradients of one step's loss, all finite, by parameter; without those that get none."""

    def of(task: Any, batch: Batch, done: float = 0.5) -> dict[str, torch.Tensor]:
        task.system.train()
        task.system.zero_grad()
        task.loss(batch, done).backward()
        found = {n: p.grad for n, p in task.system.named_parameters() if p.grad is not None}
        for name, value in found.items():
            assert torch.isfinite(value).all(), name
        return found

    return of
