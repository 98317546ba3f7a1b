"""Forward-OFA with a part of it taken away: the paper's Tables 2 and 3, and DUET.

Trained apart:

* `MapperOnly` ("+mapper"): behaviour to parameters, all blocks kept, no structure controller and
  E' started from zeros. DUET (Lv et al., WWW 2023) generates parameters from behaviour for a
  fixed structure, so in this setting it is the same system. Its public code keeps the generator's
  weights where no optimiser finds them; here they are trained.
* `ControllerOnly` ("+controller"): a path for each device through trained blocks that all share.
* `WithoutStructuralVector`: both parts, but E' does not see the structure.

Looked at in a trained Forward-OFA, without training: `ReplacedBlocks` (Table 3), as many blocks as
the controller chose, but others. What is generated for them is generated as if they had been
chosen: E' sees the controller's own logits, since the paper changes "which blocks are used" only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import MethodConfig
from forward_ofa.cost import ModuleCost, block_costs, extractor_cost, structure_controller_cost
from forward_ofa.model import Adaptation, Batch, ForwardOFA
from forward_ofa.ranking import Networks, RankingSystem
from forward_ofa.structure_controller import (
    Phase,
    SequenceExtractor,
    StructureController,
    choose_paths,
    training_structure,
)

BLOCKS = ("random", "first", "last")


class MapperOnly(ForwardOFA):
    """DUET, "+mapper": parameters from behaviour for all L blocks."""

    def __init__(self, items: int, config: MethodConfig) -> None:
        super().__init__(items, config)
        del self.controller

    def extractors(self) -> tuple[SequenceExtractor, ...]:
        """E' alone."""
        return (self.mapper.extractor,)

    def adapt(self, batch: Batch, phase: Phase = Phase.WHOLE) -> Adaptation:
        """All blocks; h from behaviour alone. logits: zeros, they stand for no choice."""
        history = self.items(batch.history)
        none = history.new_zeros(len(history), self.backbone.config.blocks)
        interest = self.mapper.interest(history, batch.lengths, none)
        return Adaptation(none, torch.ones_like(none), interest)

    def device_modules(self) -> ModuleCost:
        """E' alone, and the query if it is added."""
        extractor = extractor_cost(self.config.backbone, self.config.extractor_history)
        return extractor + self.query_module()


class WithoutStructuralVector(ForwardOFA):
    """Forward-OFA whose E' starts from zeros: parameters that do not know their structure."""

    def adapt(self, batch: Batch, phase: Phase = Phase.DRAWN) -> Adaptation:
        """As Forward-OFA's, but for h."""
        history = self.items(batch.history)
        logits = self.controller(history, batch.lengths, phase)
        gates, _ = self.structure(logits, phase)
        nothing = torch.zeros_like(logits)
        return Adaptation(logits, gates, self.mapper.interest(history, batch.lengths, nothing))


class ControllerOnly(DeviceRec):
    """ "+controller": DeviceRec's blocks, shared by all, of which each device runs its path."""

    def __init__(self, items: int, config: MethodConfig) -> None:
        super().__init__(items, config.backbone, config.dropout)
        self.config = config
        hidden, blocks = config.backbone.hidden, config.backbone.blocks
        self.controller = StructureController(hidden, blocks, config.keep_bias)

    @property
    def extractor_history(self) -> int:
        """Items that E reads, at most."""
        return self.config.extractor_history

    def choose(self, batch: Batch, phase: Phase = Phase.DRAWN) -> tuple[Tensor, Tensor]:
        """Logits and gates, each [B, L]. phase: of training; evaluation chooses."""
        logits: Tensor = self.controller(self.items(batch.history), batch.lengths, phase)
        if not self.training:
            return logits, choose_paths(logits).to(logits.dtype)
        config = self.config
        gates, _ = training_structure(logits, phase, config.temperature, config.cut_probability)
        return logits, gates

    def vectors(self, batch: Batch, gates: Tensor | None = None) -> Tensor:
        """Outputs [B, M, D] for all windows. gates [B, L]: from `choose`; None: it is asked."""
        return super().vectors(batch, self.choose(batch)[1] if gates is None else gates)

    def networks(self, batch: Batch) -> Networks:
        """Outputs, chosen blocks and their costs."""
        _, gates = self.choose(batch)
        kept = gates > 0
        costs = block_costs(self.backbone.config, kept.sum(1).cpu().numpy())
        return Networks(self.vectors(batch, gates), kept, costs)

    def device_modules(self) -> ModuleCost:
        """E and H."""
        return structure_controller_cost(self.config.backbone, self.config.extractor_history)


class ReplacedBlocks(RankingSystem):
    """A trained Forward-OFA whose devices run as many blocks as it chose, but others.

    blocks: "random", "first" or "last". Random ones are drawn by `seed`, user after user; each
    evaluation takes an object of its own, since the next one's draws go on where it ended.
    Raises ValueError for another word.
    """

    def __init__(self, trained: ForwardOFA, blocks: str, seed: int = 0) -> None:
        super().__init__()
        if blocks not in BLOCKS:
            raise ValueError(f"blocks is {blocks!r}: use {', '.join(BLOCKS)}")
        self.trained = trained
        self.items, self.backbone, self.ops = trained.items, trained.backbone, trained.ops
        self.blocks = blocks
        self.draw = torch.Generator().manual_seed(seed)

    @property
    def extractor_history(self) -> int:
        return self.trained.extractor_history

    def vectors(self, batch: Batch) -> Tensor:
        return self.networks(batch).vectors

    def networks(self, batch: Batch) -> Networks:
        """Outputs with the replaced blocks; the costs are the trained system's."""
        found = self.trained.adapt(batch)
        gates = self._replaced(found.gates > 0).to(found.gates.dtype)
        kept = gates > 0
        costs = block_costs(self.backbone.config, kept.sum(1).cpu().numpy())
        replaced = Adaptation(found.logits, gates, found.interest)
        return Networks(self.trained.vectors(batch, replaced), kept, costs)

    def _replaced(self, kept: Tensor) -> Tensor:
        """Booleans [B, L] with as many blocks in each row as in `kept` [B, L]."""
        if self.blocks == "random":
            order = torch.rand(kept.shape, generator=self.draw).argsort(1).to(kept.device)
        else:
            order = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
            order = order.flip(1) if self.blocks == "last" else order
        return order < kept.sum(1, keepdim=True)

    def queries(self, batch: Batch) -> Tensor:
        return self.trained.queries(batch)

    def device_modules(self) -> ModuleCost:
        return self.trained.device_modules()
