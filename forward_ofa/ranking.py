"""What every system is to those who evaluate, compare and count: `RankingSystem`.

A system answers one question: given what B devices have done (`Batch`), which vector does each
device's network put out for each window, and what is that network? Scores are the products of the
vectors with item embeddings. Whether networks are shared, generated, tuned, pruned or gated is
the system's own affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from forward_ofa.cost import NO_MODULES, Costs, ModuleCost, block_costs
from forward_ofa.ops import TorchOps
from forward_ofa_device.backbones.contract import Backbone

if TYPE_CHECKING:
    from forward_ofa.model import Batch


@dataclass(frozen=True)
class Networks:
    """The networks of B devices, and what they put out.

    vectors [B, M, D]. kept [B, L] booleans: blocks that are there at all. costs: of each.
    """

    vectors: Tensor
    kept: Tensor
    costs: Costs


class RankingSystem(nn.Module):
    """Base class of all systems; a subclass sets `items`, `backbone` and `ops`, and `vectors`.

    items: embeddings [N + 1, D], row 0 is padding. backbone: what the networks are made of.
    ops: the backbone's operations, which hold the dropout.
    """

    items: nn.Embedding
    backbone: Backbone
    ops: TorchOps

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.ops.training = mode
        return self

    @property
    def device(self) -> torch.device:
        """Where its parameters are; batches must be there too."""
        return self.items.weight.device

    @property
    def extractor_history(self) -> int:
        """Items of `Batch.history` that it reads, at most. 1: it reads windows only."""
        return 1

    def vectors(self, batch: Batch) -> Tensor:
        """Outputs [B, M, D] for all windows of a batch, differentiable in training."""
        raise NotImplementedError

    def networks(self, batch: Batch) -> Networks:
        """Outputs, structure and costs, for evaluation. Here: all blocks, dense."""
        vectors = self.vectors(batch)
        blocks = self.backbone.config.blocks
        kept = torch.ones(len(vectors), blocks, dtype=torch.bool, device=vectors.device)
        return Networks(vectors, kept, block_costs(self.backbone.config, kept.sum(1).cpu().numpy()))

    def queries(self, batch: Batch) -> Tensor | None:
        """What the cloud searches candidates with, [B, D]; None: it has no retrieval."""
        return None

    def device_modules(self) -> ModuleCost:
        """What the device runs at each refresh, beside the network itself."""
        return NO_MODULES

    def assume_dearest(self) -> None:
        """Sets what validation chooses to what costs a device most: for a cost before training."""
