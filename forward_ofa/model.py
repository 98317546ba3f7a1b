"""Forward-OFA as one trainable module: controller, mapper, assembled networks, retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forward_ofa.assembly import run_blocks
from forward_ofa.config import MethodConfig
from forward_ofa.cost import (
    NO_MODULES,
    ModuleCost,
    block_costs,
    device_modules_cost,
    query_cost,
)
from forward_ofa.ops import TorchOps
from forward_ofa.ranking import Networks, RankingSystem
from forward_ofa.structure_controller import (
    Phase,
    SequenceExtractor,
    StructureController,
    choose_paths,
    training_structure,
)
from forward_ofa.structure_mapper import BlockHypernetwork, StructureMapper, initialise
from forward_ofa_device.backbones import build


@dataclass(frozen=True)
class Batch:
    """B devices: what each had done when it asked for a network, and what it did with it.

    history [B, N] items, padding last, lengths [B]: read by E and E'.
    windows [B, M, T] items, padding first: what the network reads for each of M targets.
    targets [B, M] items, 0: none. All int64.
    """

    history: Tensor
    lengths: Tensor
    windows: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors = (self.history, self.lengths, self.windows, self.targets)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))

    def read(self, items: int) -> Batch:
        """The same for a system that reads the last `items` of each history, at most."""
        if self.history.shape[1] <= items:
            return self
        lengths = self.lengths.clamp(max=items)
        columns = torch.arange(items, device=self.history.device)
        history = self.history.gather(1, (self.lengths - lengths)[:, None] + columns)
        return Batch(history, lengths, self.windows, self.targets)


@dataclass(frozen=True)
class Adaptation:
    """What a device computes: logits [B, L] (before cuts), gates [B, L] (after), h [B, D]."""

    logits: Tensor
    gates: Tensor
    interest: Tensor


def item_table(items: int, hidden: int) -> nn.Embedding:
    """Embeddings [N + 1, D], row 0 for padding, standard deviation 0.02 as SASRec's."""
    table = nn.Embedding(items + 1, hidden, padding_idx=0)
    with torch.no_grad():
        table.weight[1:].normal_(std=0.02)
    return table


class ForwardOFA(RankingSystem):
    """The whole method; see the modules it is made of for the equations."""

    def __init__(self, items: int, config: MethodConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build(config.backbone)
        hidden, blocks = config.backbone.hidden, config.backbone.blocks
        specs = self.backbone.block_parameters()
        self.ops = TorchOps(config.dropout)
        self.items = item_table(items, hidden)
        self.controller = StructureController(hidden, blocks, config.keep_bias)
        self.mapper = StructureMapper(hidden, blocks, specs, config.spread, config.bases)
        self.query = nn.Linear(hidden, hidden)
        self.fusion: Tensor
        self.register_buffer("fusion", torch.zeros(()))
        self.shared = nn.ParameterDict(
            {_key(s.name): nn.Parameter(initialise(s)) for s in self.backbone.shared_parameters()}
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Weights from before there was fusion have none of it."""
        return super().load_state_dict({"fusion": torch.zeros(()), **state_dict}, strict, assign)

    @property
    def extractor_history(self) -> int:
        """Items that E and E' read, at most."""
        return self.config.extractor_history

    def extractors(self) -> tuple[SequenceExtractor, ...]:
        """E and E'."""
        return self.controller.extractor, self.mapper.extractor

    def hypernetwork(self, index: int) -> BlockHypernetwork:
        """H'_k of block `index`."""
        module = self.mapper.hypernetworks[index]
        assert isinstance(module, BlockHypernetwork)
        return module

    def shared_parameters(self) -> dict[str, Tensor]:
        """The backbone's shared parameters under their own names."""
        return {s.name: self.shared[_key(s.name)] for s in self.backbone.shared_parameters()}

    def adapt(self, batch: Batch, phase: Phase = Phase.DRAWN) -> Adaptation:
        """The device's part: path and interest. phase: of training; evaluation chooses."""
        history = self.items(batch.history)
        logits = self.controller(history, batch.lengths, phase)
        gates, seen = self.structure(logits, phase)
        return Adaptation(logits, gates, self.mapper.interest(history, batch.lengths, seen))

    def structure(self, logits: Tensor, phase: Phase) -> tuple[Tensor, Tensor]:
        """Gates [B, L], and the logits [B, L] that E' sees: cut ones in training."""
        if not self.training:
            return choose_paths(logits).to(logits.dtype), logits
        config = self.config
        return training_structure(logits, phase, config.temperature, config.cut_probability)

    def networks(self, batch: Batch) -> Networks:
        """Outputs of the generated networks, which blocks they have, what they cost."""
        adaptation = self.adapt(batch)
        kept = adaptation.gates > 0
        costs = block_costs(self.backbone.config, kept.sum(1).cpu().numpy())
        return Networks(self.vectors(batch, adaptation), kept, costs)

    def queries(self, batch: Batch) -> Tensor:
        """What the cloud retrieves with, from h alone: [B, D]."""
        found: Tensor = self.query(self.adapt(batch).interest)
        return found

    def assume_dearest(self) -> None:
        if self.config.fusion:
            self.fusion.fill_(1)

    def device_modules(self) -> ModuleCost:
        """E, H and E', and the query if it is added."""
        modules = device_modules_cost(self.config.backbone, self.config.extractor_history)
        return modules + self.query_module()

    def query_module(self) -> ModuleCost:
        """What the query costs the device: nothing if it is not added."""
        return query_cost(self.config.backbone) if self.fusion else NO_MODULES

    def vectors(self, batch: Batch, adaptation: Adaptation | None = None) -> Tensor:
        """What devices rank with [B, M, D], for all windows: in training the networks' outputs,
        otherwise with the query added (see fusion.py).

        adaptation: what `adapt` said for this batch; None: it is asked.
        """
        adaptation = adaptation or self.adapt(batch)
        found = self.outputs(batch, adaptation)
        if not self.training:
            found = found + self.fusion * self.query(adaptation.interest)[:, None]
        return found

    def outputs(self, batch: Batch, adaptation: Adaptation) -> Tensor:
        """The generated networks' outputs [B, M, D] for all windows."""
        return run_blocks(
            self.backbone,
            self.ops,
            self.items(batch.windows),
            batch.windows > 0,
            lambda index: self.hypernetwork(index)(adaptation.interest),
            self.shared_parameters(),
            adaptation.gates,
        )


def _key(name: str) -> str:
    """A parameter's name as nn.ParameterDict takes it."""
    return name.replace(".", "__")
