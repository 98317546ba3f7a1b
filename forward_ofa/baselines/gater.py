"""Gater: a gate for every output filter, set by the input (Chen et al., CVPR 2019, "GaterNet").

A filter is one output column of a block's matrix: D for each of Q, K, V, FFN1 and FFN2 of SASRec,
D for each convolution of NextItNet; its bias belongs to it. Beside the network runs a small one, a
GRU over the same window, that computes one logit a filter through a bottleneck:

    h = GRU(window);  g = FC2(ReLU(LN(FC1(h))))

Gates are 0 or 1. Training uses Improved SemHash (Kaiser and Bengio): with noise e ~ N(0, 1) on g in
training and none after it,

    soft = clip(1.2 sigmoid(g + e) - 0.1, 0, 1),   hard = 1[g + e > 0]

half of the windows run with soft gates, the others with hard ones whose gradient is soft's. The
objective is the task's loss plus gate_weight times the mean of the gates (the paper's L1 norm over
the number of gates), with a sign and a size that hold `open_share` of them open. The weight grows
from 0 over the first `warmup` of training: at full strength from the first step it closes filters
before it is known what they are good for.

Where we follow the original: gates, estimator, objective. Where not, and why: its feature
extractor is a ResNet, which a window of items does not need; its bottleneck has batch norm, which
would make a device's network depend on other devices' inputs, here it is LayerNorm; its backbone
starts from trained weights, here both are trained together, with the same epochs as other systems,
as the KDD 2025 paper says of its training; the gates start open (`open_bias`). The original sweeps
the weight until the cost is right, and every weight that closes filters at all closes more for as
long as it is trained; `open_share` says the cost instead. Its default is that of the paper's Gater.

Cost, of each device: a closed filter saves its products with all inputs. "Param": filters that are
closed for every validation window are dropped after training (`used`), the rest has to be on the
device, whatever it gates; so the KDD paper has SASRec's whole size and less than NextItNet's.
"paper" leaves out the gater itself, as the paper's figures below the dense ones must; "true" counts
its products and parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forward_ofa.assembly import run_blocks
from forward_ofa.baselines import network_settings
from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import MethodConfig, Options, TrainingConfig
from forward_ofa.cost import FLOAT32_BITS, Costs, gru_flops, gru_parameters, network_cost
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import user_batches
from forward_ofa.foundation import Foundation
from forward_ofa.generated import Generated
from forward_ofa.model import Batch
from forward_ofa.objectives import next_item_loss
from forward_ofa.ops import TorchOps
from forward_ofa.ranking import Networks
from forward_ofa.tasks import NetworkTask, start_items
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig, ParameterSpec

_PAPER_OPEN = {"sasrec": 0.5638 / 0.6144, "nextitnet": 0.6834 / 1.4746}
"""Matrix products of the paper's Gater on MovieLens-1M over the dense network's."""
_BAND = 0.05


@dataclass(frozen=True)
class GaterOptions(Options):
    """Settings of Gater.

    bottleneck: width between the GRU and the gates.
    gate_weight: of the mean gate. warmup: share of training over which it grows from 0.
    open_share: share of gates to hold open, in (0, 1]; next to 0: the plain L1 norm. 0: the
        paper's on MovieLens-1M, 0.918 (SASRec) or 0.463 (NextItNet).
    open_bias: first logit of every gate.
    """

    bottleneck: int = 16
    gate_weight: float = 0.1
    warmup: float = 0.3
    open_share: float = 0.0
    open_bias: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bottleneck < 1:
            raise ValueError("bottleneck must be at least 1")
        if self.gate_weight < 0:
            raise ValueError("gate_weight must not be negative")
        if not 0 <= self.warmup < 1:
            raise ValueError("warmup must be at least 0 and less than 1")
        if not 0 <= self.open_share <= 1:
            raise ValueError("open_share must lie between 0 (the paper's share) and 1")

    def price(self, gates: Tensor, logits: Tensor, done: float, backbone: str) -> Tensor:
        """What drawn gates of these logits, [.., G], add to the loss after this share of training.

        In full where a twentieth more than `open_share` are open, less where fewer are, and the
        reverse below it, or momentum would close far more than was asked for. What counts as open
        is so without noise: noise closes some, and would hide that too many are open.
        """
        grown = min(1.0, done / self.warmup) if self.warmup else 1.0
        share = self.open_share or _PAPER_OPEN.get(backbone, _PAPER_OPEN["sasrec"])
        above = (logits > 0).to(gates.dtype).mean() - share
        return self.gate_weight * grown * (above / _BAND).clamp(-1.0, 1.0) * gates.mean()


class GatedMatrix(NamedTuple):
    """weight [I, O], shared by all; gate [B, M, 1, O], of each window."""

    weight: Tensor
    gate: Tensor


class GatedOps(TorchOps):
    """TorchOps whose linear maps may have gates: the products once for all windows, then each
    window's gates, instead of a matrix a window."""

    def linear(
        self, x: Tensor, weight: Tensor | Generated | GatedMatrix, bias: Tensor | Generated
    ) -> Tensor:
        if isinstance(weight, GatedMatrix):
            return super().linear(x, weight.weight, bias) * weight.gate
        return super().linear(x, weight, bias)


class GateNet(nn.Module):
    """Window embeddings [.., T, D] to logits [.., G]."""

    def __init__(self, hidden: int, gates: int, options: GaterOptions) -> None:
        super().__init__()
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.narrow = nn.Linear(hidden, options.bottleneck)
        self.norm = nn.LayerNorm(options.bottleneck)
        self.wide = nn.Linear(options.bottleneck, gates)
        nn.init.constant_(self.wide.bias, options.open_bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        # Padding comes first and its embedding is zero; the last state is the newest item's.
        _, last = self.gru(embeddings.flatten(0, -3))
        logits: Tensor = self.wide(F.relu(self.norm(self.narrow(last[0]))))
        return logits.reshape(*embeddings.shape[:-2], -1)


def semantic_hash(logits: Tensor, hard: Tensor, noise: Tensor) -> Tensor:
    """Gates in [0, 1] of Improved SemHash, for training.

    logits, noise [.., G]; hard: booleans that broadcast to them, True where gates are 0 or 1.
    """
    noisy = logits + noise
    soft = (1.2 * torch.sigmoid(noisy) - 0.1).clamp(0.0, 1.0)
    binary = (noisy > 0).to(soft.dtype)
    return torch.where(hard, binary + soft - soft.detach(), soft)


class Gater(DeviceRec):
    """DeviceRec whose filters each window switches on and off.

    used: booleans [G], filters that are there at all; in evaluation the others are closed.
    Gates are in the order of blocks, then of a block's matrices, then of output columns.
    """

    used: Tensor

    def __init__(
        self, items: int, config: BackboneConfig, dropout: float, options: GaterOptions
    ) -> None:
        super().__init__(items, config, dropout)
        self.ops = GatedOps(dropout)
        self.options = options
        self.specs = matrix_specs(config)
        gates = config.blocks * sum(spec.shape[1] for spec in self.specs)
        self.gater = GateNet(config.hidden, gates, options)
        self.register_buffer("used", torch.ones(gates, dtype=torch.bool))

    def logits(self, batch: Batch) -> Tensor:
        """Of the gates [B, M, G] of all windows."""
        found: Tensor = self.gater(self.items(batch.windows))
        return found

    def filters(self, logits: Tensor) -> Tensor:
        """Gates of these logits [B, M, G]: drawn in training, 0 or 1 in evaluation."""
        if not self.training:
            return ((logits > 0) & self.used).to(logits.dtype)
        hard = torch.rand(*logits.shape[:-1], 1, device=logits.device) < 0.5
        return semantic_hash(logits, hard, torch.randn_like(logits))

    def vectors(
        self, batch: Batch, gates: Tensor | None = None, filters: Tensor | None = None
    ) -> Tensor:
        """Outputs [B, M, D] for all windows.

        gates [B, L]: of whole blocks, as DeviceRec's. filters [B, M, G]: from `filters`; None: it
        is asked.
        """
        filters = self.filters(self.logits(batch)) if filters is None else filters
        by_block = filters[..., None, :].chunk(self.backbone.config.blocks, dim=-1)
        return run_blocks(
            self.backbone,
            self.ops,
            self.items(batch.windows),
            batch.windows > 0,
            lambda index: self.gated(index, by_block[index]),
            self.shared_parameters(),
            gates,
        )

    def gated(self, index: int, gate: Tensor) -> dict[str, Tensor]:
        """The parameters of one block, its matrices with their part of gate [B, M, 1, G / L]."""
        parts = torch.split(gate, [spec.shape[1] for spec in self.specs], dim=-1)
        values = self.block_parameters(index)
        matrices = {
            spec.name: GatedMatrix(values[spec.name], part)
            for spec, part in zip(self.specs, parts, strict=True)
        }
        # The backbone passes matrices to `ops.linear` and does nothing else with them.
        return values | cast(dict[str, Tensor], matrices)

    def networks(self, batch: Batch) -> Networks:
        """Outputs, blocks with a filter that is on, and costs: means over a device's windows."""
        filters = self.filters(self.logits(batch))
        config = self.backbone.config
        alive = filters.mean(1)
        kept = alive.reshape(len(alive), config.blocks, -1).any(-1)
        costs = gater_costs(config, self.options, alive.cpu().numpy(), self.used.cpu().numpy())
        return Networks(self.vectors(batch, filters=filters), kept, costs)


def matrix_specs(config: BackboneConfig) -> list[ParameterSpec]:
    """The gated parameters of a block."""
    return [spec for spec in build(config).block_parameters() if spec.kind == "matrix"]


def gater_costs(
    config: BackboneConfig, options: GaterOptions, alive: np.ndarray, used: np.ndarray
) -> Costs:
    """Of B devices. alive [B, G]: how often each filter is on; used: booleans [G]."""
    backbone = build(config)
    rows = [np.full(spec.shape[1], spec.shape[0]) for spec in matrix_specs(config)]
    inputs = np.tile(np.concatenate(rows), config.blocks)  # [G]: values of a filter's column
    dense = network_cost(config, config.blocks).flops
    saved = config.history * ((1 - alive.astype(np.float64)) @ inputs)
    # A filter has its column and one bias.
    block = float(((inputs + 1) * used).sum())
    shared = sum(spec.size for spec in backbone.shared_parameters())
    parameters, flops = _gate_net_cost(config, options, len(inputs))
    devices = np.ones(len(alive))
    return Costs(
        dense.paper - saved,
        dense.true - saved + flops,
        (backbone.fixed_parameters() + block) * FLOAT32_BITS * devices,
        (shared + block + parameters) * FLOAT32_BITS * devices,
    )


def open_costs(config: BackboneConfig, options: GaterOptions) -> Costs:
    """Of one device with every filter on, [1]: the most that it can be."""
    gates = config.blocks * sum(spec.shape[1] for spec in matrix_specs(config))
    return gater_costs(config, options, np.ones((1, gates)), np.ones(gates, dtype=bool))


def _gate_net_cost(config: BackboneConfig, options: GaterOptions, gates: int) -> tuple[int, int]:
    """(parameters, multiply-accumulates a window) of the small network."""
    hidden, width = config.hidden, options.bottleneck
    layers = hidden * width + width * gates
    parameters = gru_parameters(hidden) + layers + 3 * width + gates
    return parameters, gru_flops(hidden, config.history) + layers + 4 * width


@dataclass
class GaterTask(NetworkTask):
    """The task's loss and the gates' price; after each epoch, which filters anybody uses."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    options: GaterOptions
    foundation: Foundation | None = None

    def __post_init__(self) -> None:
        self.name = "Gater"
        torch.manual_seed(self.config.seed)
        method = self.method
        self.system: Gater = Gater(
            self.data.num_items, method.backbone, method.dropout, self.options
        )
        start_items(self.system, self.foundation)

    def settings(self) -> dict[str, Any]:
        started = self.foundation is not None
        return network_settings(self.method, self.options, system=self.name, foundation=started)

    def loss(self, batch: Batch, done: float) -> Tensor:
        logits = self.system.logits(batch)
        filters = self.system.filters(logits)
        vectors = self.system.vectors(batch, filters=filters)
        loss = next_item_loss(vectors, self.system.items.weight, batch.targets)
        wanted = batch.targets > 0
        backbone = self.method.backbone.name
        return loss + self.options.price(filters[wanted], logits[wanted], done, backbone)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        system = self.system.eval()
        system.used.fill_(True)
        used = torch.zeros_like(system.used)
        alive: list[Tensor] = []
        for batch in user_batches(self.data, "validation", 1, system.backbone.config.history):
            filters = system.filters(system.logits(batch.to(system.device)))
            used |= filters.flatten(0, 1).any(0)
            alive.append(filters.mean((1, 2)))
        system.used.copy_(used)
        figures = super().validate()
        figures["live_filters"] = float(torch.cat(alive).mean())
        figures["used_filters"] = float(used.float().mean())
        return figures
