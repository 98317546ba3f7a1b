"""What can be trained. `training.fit` runs any task; `systems.py` says which a run needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from forward_ofa.ablations import ControllerOnly
from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.batches import batches, training_sessions
from forward_ofa.config import FoundationConfig, MethodConfig, TrainingConfig
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import evaluate, hit, ndcg, user_batches
from forward_ofa.foundation import Foundation, piece_counts, sequence_batches
from forward_ofa.fusion import choose_fusion
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa.objectives import compact_loss, next_item_loss, retrieval_loss
from forward_ofa.ranking import RankingSystem
from forward_ofa.structure_controller import Phase


class Movable(Protocol):
    """A batch: it can be moved to where the system is."""

    def to(self, device: Any) -> Any: ...


Example = TypeVar("Example", bound=Movable)


class Task(Protocol[Example]):
    """One system, its data and its objective."""

    @property
    def name(self) -> str: ...

    @property
    def system(self) -> torch.nn.Module: ...

    @property
    def data(self) -> SequenceDataset: ...

    @property
    def config(self) -> TrainingConfig: ...

    def settings(self) -> dict[str, Any]:
        """Everything but data and `config` that makes this another run."""

    def epoch(self, rng: np.random.Generator) -> tuple[int, Iterator[Example]]:
        """The steps of an epoch and its batches, drawn anew."""

    def loss(self, batch: Example, done: float) -> Tensor:
        """The objective; `done`: share of training that is behind."""

    def validate(self) -> dict[str, float]:
        """Figures on the validation split; "ndcg@10" chooses the best epoch."""


VALIDATION_HISTORY = 50
"""Items that a foundation reads when its epochs are compared. Fixed, as one foundation serves
systems whose extractors read more or fewer; it is what they read in the default recipe."""


@dataclass
class FoundationTask:
    """Next item at every position of whole histories."""

    data: SequenceDataset
    foundation: FoundationConfig
    hidden: int

    def __post_init__(self) -> None:
        self.name = "Foundation"
        self.config = self.foundation.training
        torch.manual_seed(self.config.seed)
        self.system = Foundation(self.data.num_items, self.hidden, self.foundation.dropout)

    def settings(self) -> dict[str, Any]:
        return {"hidden": self.hidden, **dataclasses.asdict(self.foundation)}

    def epoch(self, rng: np.random.Generator) -> tuple[int, Iterator[Tensor]]:
        pieces = piece_counts(self.data, self.foundation.length)
        steps = math.ceil(int(pieces.sum()) / self.config.batch_size)
        return steps, sequence_batches(self.data, self.foundation, rng)

    def loss(self, batch: Tensor, done: float) -> Tensor:
        return self.system.loss(batch)

    def validate(self) -> dict[str, float]:
        self.system.eval()
        stream = user_batches(self.data, "validation", VALIDATION_HISTORY, 1)
        device = self.system.items.weight.device
        moved = (batch.to(device) for batch in stream)
        parts = [self.system.ranks(b.history, b.lengths, b.targets[:, 0]) for b in moved]
        ranks = torch.cat(parts).cpu().numpy()
        return {"ndcg@10": float(ndcg(ranks).mean()), "hit@10": float(hit(ranks).mean())}


class NetworkTask:
    """What the tasks of ranking systems share: sessions as batches, the same validation, and the
    next item's loss, which a task with more terms overrides."""

    system: RankingSystem
    data: SequenceDataset
    config: TrainingConfig

    def epoch(self, rng: np.random.Generator) -> tuple[int, Iterator[Batch]]:
        sessions = training_sessions(self.data, self.config.targets_per_network, rng)
        history, window = self.system.extractor_history, self.system.backbone.config.history
        size = self.config.batch_size
        stream = batches(self.data, sessions, size, history, window, rng)
        return math.ceil(len(sessions) / size), stream

    def loss(self, batch: Batch, done: float) -> Tensor:
        vectors = self.system.vectors(batch)
        return next_item_loss(vectors, self.system.items.weight, batch.targets)

    def validate(self) -> dict[str, float]:
        found = evaluate(self.system, self.data, "validation")
        kept = float(found.kept_blocks.mean())
        return {"ndcg@10": found.ndcg, "hit@10": found.hit, "mean_kept_blocks": kept}


def start_items(system: RankingSystem, foundation: Foundation | None) -> None:
    """Gives a system the foundation's item embeddings, if there is one."""
    if foundation is not None:
        system.items.load_state_dict(foundation.items.state_dict())


@dataclass
class DeviceRecTask(NetworkTask):
    """The dense network shared by all devices."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    foundation: Foundation | None = None

    def __post_init__(self) -> None:
        self.name = "DeviceRec"
        torch.manual_seed(self.config.seed)
        method = self.method
        self.system: DeviceRec = DeviceRec(self.data.num_items, method.backbone, method.dropout)
        start_items(self.system, self.foundation)

    def settings(self) -> dict[str, Any]:
        return {
            "backbone": dataclasses.asdict(self.method.backbone),
            "dropout": self.method.dropout,
            "foundation": self.foundation is not None,
        }


@dataclass
class ForwardOFATask(NetworkTask):
    """Eq. 12, and the loss of the cloud's retrieval: with `retrieval_apart` of a layer of its own,
    else one that interest and item embeddings learn from too, which the paper has not.

    base: a trained DeviceRec to start from. foundation: where E, E' and retrieval start.
    kind: ForwardOFA, or a variant of it that is trained the same way. name: of the system.
    """

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    base: DeviceRec | None = None
    foundation: Foundation | None = None
    kind: type[ForwardOFA] = ForwardOFA
    name: str = "Forward-OFA"

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        self.system: ForwardOFA = self.kind(self.data.num_items, self.method)
        start_items(self.system, self.foundation)
        if self.foundation is not None:
            self.foundation.start(self.system)
        if self.base is not None:
            start_from(self.system, self.base)

    def settings(self) -> dict[str, Any]:
        return {
            "system": self.name,
            "method": _method(self.method),
            "base": self.base is not None,
            "foundation": self.foundation is not None,
        }

    def loss(self, batch: Batch, done: float) -> Tensor:
        method, system = self.method, self.system
        adaptation = system.adapt(batch, _phase(method, done))
        vectors = system.vectors(batch, adaptation)
        items = system.items.weight
        loss = next_item_loss(vectors, items, batch.targets)
        loss = loss + _compact_strength(method, done) * compact_loss(adaptation.logits)
        interest = adaptation.interest
        if method.retrieval_apart:
            interest, items = interest.detach(), items.detach()
        query = system.query(interest)
        return loss + method.retrieval_weight * retrieval_loss(query, items, batch.targets)

    def validate(self) -> dict[str, float]:
        if self.method.fusion:
            choose_fusion(self.system, self.data)
        return {**super().validate(), "fusion": float(self.system.fusion)}


@dataclass
class ControllerOnlyTask(NetworkTask):
    """ "+controller": Eq. 12 without mapper and retrieval. base, foundation: where it starts."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    base: DeviceRec | None = None
    foundation: Foundation | None = None

    def __post_init__(self) -> None:
        self.name = "+controller"
        torch.manual_seed(self.config.seed)
        self.system: ControllerOnly = ControllerOnly(self.data.num_items, self.method)
        start_items(self.system, self.foundation)
        if self.foundation is not None:
            gru = self.foundation.gru.state_dict()
            self.system.controller.extractor.gru.load_state_dict(gru)
        if self.base is not None:
            self.system.load_state_dict(self.base.state_dict(), strict=False)

    def settings(self) -> dict[str, Any]:
        return {
            "system": self.name,
            "method": _method(self.method),
            "base": self.base is not None,
            "foundation": self.foundation is not None,
        }

    def loss(self, batch: Batch, done: float) -> Tensor:
        logits, gates = self.system.choose(batch, _phase(self.method, done))
        vectors = self.system.vectors(batch, gates)
        loss = next_item_loss(vectors, self.system.items.weight, batch.targets)
        return loss + _compact_strength(self.method, done) * compact_loss(logits)


def _method(method: MethodConfig) -> dict[str, Any]:
    """Its values, without younger ones that change nothing: runs from before them go on."""
    values = dataclasses.asdict(method)
    for name in ("fusion", "retrieval_apart"):
        if not values[name]:
            del values[name]
    return values


def _phase(method: MethodConfig, done: float) -> Phase:
    """Of the structure after this share of training."""
    if done < method.structure_from:
        return Phase.WHOLE
    return Phase.DRAWN if done < method.structure_until else Phase.CHOSEN


def _compact_strength(method: MethodConfig, done: float) -> float:
    """lambda after this share of training."""
    if _phase(method, done) is not Phase.DRAWN:
        return 0.0
    since = done - method.structure_from
    grown = min(1.0, since / method.compact_warmup) if method.compact_warmup else 1.0
    return method.compact_weight * grown


@torch.no_grad()
def start_from(system: ForwardOFA, base: DeviceRec) -> None:
    """Item embeddings, shared parameters and bases B_k of a trained DeviceRec."""
    system.items.load_state_dict(base.items.state_dict())
    shared = base.shared_parameters()
    for name, value in system.shared_parameters().items():
        value.copy_(shared[name])
    for index in range(base.backbone.config.blocks):
        values = [value.flatten() for value in base.block_parameters(index).values()]
        system.hypernetwork(index).bias.copy_(torch.cat(values))
