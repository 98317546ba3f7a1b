"""Rare Gem: find a sparse network in a random one, then train it (Sreenivasan et al., 2022).

Gem-Miner searches: the matrices of all blocks are frozen at random signs times a constant, that of
the layer's initialisation, 1 / sqrt(I); each entry has a score p ~ U(0, 1). The network runs with
mask 1[p > 0.5], whose gradient goes straight through to p, and the objective is the task's loss
plus score_weight * mean p^2 (the paper's lambda * ||p||^2, divided by the number of scores so that
the weight means the same for every size of network). In `prune_steps` steps, equally spaced, each
by the same factor, the entries of the lowest scores are removed for good, over all blocks at once;
p stays within [0, 1]. Then the search ends, and what was not removed is trained from its frozen
value ("rare-gem"), an additional training that the KDD 2025 paper allows this system.

Where we follow the authors' code (its `hc_iter`, bottom-k pruning, with `unflag_before_finetune`):
all of the above; in the final network an entry stays if it was not removed, whether its score is
above 0.5 or not. That is also what the KDD paper's kept fractions of 1.0 say.

Where not, and why:

* Their networks have neither biases nor affine norms. Here biases stay zero and gains one in the
  search, and are trained with the rest; they are never removed.
* Item and position embeddings are trained from the first step. A frozen random table has nothing
  that a mask could find, the KDD paper does not count it in "Param", and devices hold it anyway.
* One Adam step is the same in all parameters; `score_speed` lets scores move faster, as the
  authors' learning rate for scores (0.1 with SGD) does.

Cost: FLOPs are the dense network's, since random zeros save no multiplication. "Param" counts what
is kept; the true figure adds one bit an entry that says where the values belong.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forward_ofa.baselines import network_settings
from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import MethodConfig, Options, TrainingConfig
from forward_ofa.cost import FLOAT32_BITS, Costs, block_costs
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.foundation import Foundation
from forward_ofa.model import Batch
from forward_ofa.ranking import Networks
from forward_ofa.tasks import NetworkTask, start_items
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig

_PAPER_KEPT = {"sasrec": 3.6384 / 3.9936, "nextitnet": 5.4784 / 9.5846}
_THRESHOLD = 0.5


@dataclass(frozen=True)
class RareGemOptions(Options):
    """Settings of Rare Gem.

    kept: share of the parameters that the paper's "Param" counts, in (0, 1]; biases and shared
        parameters are among them and always kept. 0: the share of the paper's Forward-OFA on
        MovieLens-1M for SASRec (0.911), the paper's Rare Gem for NextItNet (0.572).
    search_epochs: of the search; 0: as many as the training after it.
    prune_steps: in how many steps entries are removed.
    score_weight: of mean p^2. score_speed: how much faster than weights scores move.
    """

    kept: float = 0.0
    search_epochs: int = 0
    prune_steps: int = 8
    score_weight: float = 0.05
    score_speed: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kept <= 1:
            raise ValueError("kept must lie between 0 (the paper's share) and 1")
        if self.search_epochs < 0:
            raise ValueError("search_epochs must not be negative")
        if self.prune_steps < 1:
            raise ValueError("prune_steps must be at least 1")
        if self.score_weight < 0:
            raise ValueError("score_weight must not be negative")
        if self.score_speed <= 0:
            raise ValueError("score_speed must be positive")

    def kept_share(self, backbone: str) -> float:
        """`kept`, or the paper's for this backbone."""
        return self.kept or _PAPER_KEPT.get(backbone, _PAPER_KEPT["nextitnet"])


@dataclass(frozen=True)
class PruningPlan:
    """How many matrix entries there are, [L blocks, S each], and how many stay."""

    entries: int
    kept: int
    steps: int

    @classmethod
    def of(cls, config: BackboneConfig, options: RareGemOptions) -> PruningPlan:
        """Raises ValueError for a share that leaves no matrix entry."""
        backbone = build(config)
        specs = backbone.block_parameters()
        counted = backbone.fixed_parameters() + config.blocks * sum(s.size for s in specs)
        entries = config.blocks * sum(s.size for s in specs if s.kind == "matrix")
        share = options.kept_share(config.name)
        kept = round(share * counted) - (counted - entries)
        if kept < 1:
            least = (counted - entries + 1) / counted
            raise ValueError(
                f"kept is {share}: biases and shared parameters alone are more. "
                f"Use at least {least:.4f}"
            )
        return cls(entries, kept, options.prune_steps)

    def due(self, done: float) -> int:
        """How many entries may still be there at this share of the search.

        The last step leaves one part in steps + 1 of the search to settle.
        """
        step = min(self.steps, int(done * (self.steps + 1)))
        share: float = (self.kept / self.entries) ** (step / self.steps)
        return round(self.entries * share)


class RareGem(DeviceRec):
    """DeviceRec with matrix entries removed. flags: booleans [L, S], what is there."""

    flags: Tensor

    def __init__(self, items: int, config: BackboneConfig, dropout: float) -> None:
        super().__init__(items, config, dropout)
        self.specs = [s for s in self.backbone.block_parameters() if s.kind == "matrix"]
        size = sum(spec.size for spec in self.specs)
        self.register_buffer("flags", torch.ones(config.blocks, size, dtype=torch.bool))

    def block_parameters(self, index: int) -> dict[str, Tensor]:
        """The parameters of one block, zero where they were removed."""
        values = super().block_parameters(index)
        return values | self.masked(values, self.flags[index])

    def masked(self, values: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """The matrices of a block times their part of mask [S]."""
        parts = torch.split(mask, [spec.size for spec in self.specs])
        return {
            spec.name: values[spec.name] * part.reshape(spec.shape)
            for spec, part in zip(self.specs, parts, strict=True)
        }

    def networks(self, batch: Batch) -> Networks:
        """Outputs, all blocks, and what a sparse network costs."""
        vectors = self.vectors(batch)
        blocks = self.backbone.config.blocks
        kept = torch.ones(len(vectors), blocks, dtype=torch.bool, device=vectors.device)
        removed = self.flags.numel() - int(self.flags.sum())
        return Networks(vectors, kept, sparse_costs(self.backbone.config, removed, len(vectors)))


def sparse_costs(config: BackboneConfig, removed: int, devices: int) -> Costs:
    """Of so many devices' networks from which `removed` matrix entries were taken."""
    dense = block_costs(config, np.full(devices, config.blocks))
    specs = build(config).block_parameters()
    entries = config.blocks * sum(spec.size for spec in specs if spec.kind == "matrix")
    places = entries if removed else 0
    saved = removed * FLOAT32_BITS
    return Costs(
        dense.paper_flops, dense.true_flops, dense.paper_bits - saved,
        dense.true_bits - saved + places,
    )  # fmt: skip


def kept_costs(config: BackboneConfig, options: RareGemOptions) -> Costs:
    """Of one device, [1], by the settings alone."""
    plan = PruningPlan.of(config, options)
    return sparse_costs(config, plan.entries - plan.kept, 1)


class GemSearch(RareGem):
    """The search: frozen matrices and a score for each of their entries.

    speed: scores are kept divided by it, so that an optimiser's step moves them so much faster.
    """

    def __init__(self, items: int, config: BackboneConfig, dropout: float, speed: float) -> None:
        super().__init__(items, config, dropout)
        self.speed = speed
        self.raw_scores = nn.Parameter(torch.rand(self.flags.shape) / speed)
        for index in range(config.blocks):
            for spec, value in zip(
                self.backbone.block_parameters(), self.block(index), strict=True
            ):
                value.requires_grad_(False)
                if spec.kind == "matrix":
                    value.copy_(value.sign() / spec.shape[0] ** 0.5)
        for spec, value in zip(self.backbone.shared_parameters(), self.shared, strict=True):
            value.requires_grad_(spec.kind == "embedding")

    def block(self, index: int) -> nn.ParameterList:
        """The parameters of one block as they are stored."""
        values = self.blocks[index]
        assert isinstance(values, nn.ParameterList)
        return values

    def scores(self) -> Tensor:
        """p [L, S]."""
        return self.raw_scores * self.speed

    def block_parameters(self, index: int) -> dict[str, Tensor]:
        """Signed constants under the mask 1[p > 0.5] of what is still there."""
        values = DeviceRec.block_parameters(self, index)
        soft = self.raw_scores[index] * self.speed
        hard = (soft > _THRESHOLD).to(soft.dtype)
        mask = (hard + soft - soft.detach()) * self.flags[index]
        return values | self.masked(values, mask)

    @torch.no_grad()
    def clamp(self) -> None:
        """Brings the scores back into [0, 1]."""
        self.raw_scores.clamp_(0.0, 1.0 / self.speed)

    @torch.no_grad()
    def prune(self, count: int) -> None:
        """Leaves the `count` entries of the highest scores, of those that are there."""
        scores = self.raw_scores.masked_fill(~self.flags, -1.0).flatten()
        kept = torch.zeros_like(self.flags).flatten()
        kept[scores.topk(count).indices] = True
        self.flags &= kept.reshape(self.flags.shape)


@dataclass
class GemSearchTask(NetworkTask):
    """Finds which entries stay. Epochs before the last pruning count for nothing: their figures
    stand under "search_ndcg@10", and "ndcg@10", which chooses the best epoch, is 0."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    options: RareGemOptions
    foundation: Foundation | None = None

    def __post_init__(self) -> None:
        self.name = "Rare Gem, search"
        torch.manual_seed(self.config.seed)
        if self.options.search_epochs:
            self.config = dataclasses.replace(self.config, epochs=self.options.search_epochs)
        method = self.method
        self.plan = PruningPlan.of(method.backbone, self.options)
        self.system: GemSearch = GemSearch(
            self.data.num_items, method.backbone, method.dropout, self.options.score_speed
        )
        start_items(self.system, self.foundation)
        self.left = self.plan.entries

    def settings(self) -> dict[str, Any]:
        started = self.foundation is not None
        return network_settings(self.method, self.options, system=self.name, foundation=started)

    def loss(self, batch: Batch, done: float) -> Tensor:
        self.system.clamp()
        due = self.plan.due(done)
        if due < self.left:  # a resumed search asks once more for what was removed already
            self.system.prune(due)
            self.left = due
        return super().loss(batch, done) + self.options.score_weight * (
            self.system.scores().square().mean()
        )

    def validate(self) -> dict[str, float]:
        self.system.clamp()
        figures = super().validate()
        there = int(self.system.flags.sum())
        figures["kept_entries"] = there / self.plan.entries
        figures["search_ndcg@10"] = figures["ndcg@10"]
        if there > self.plan.kept:
            figures["ndcg@10"] = 0.0
        return figures


@dataclass
class RareGemTask(NetworkTask):
    """Trains what the search left, from its frozen values."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    options: RareGemOptions
    search: GemSearch

    def __post_init__(self) -> None:
        self.name = "Rare Gem"
        torch.manual_seed(self.config.seed)
        method = self.method
        self.system: RareGem = RareGem(self.data.num_items, method.backbone, method.dropout)
        # A search of very few steps may have ended before its last pruning was due.
        self.search.prune(PruningPlan.of(method.backbone, self.options).kept)
        found = {k: v for k, v in self.search.state_dict().items() if k != "raw_scores"}
        self.system.load_state_dict(found)

    def settings(self) -> dict[str, Any]:
        return network_settings(self.method, self.options, system=self.name)
