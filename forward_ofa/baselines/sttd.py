"""STTD: semi-tensor-train layers, taught by the dense network (Xia et al., SIGIR 2022, "OD-Rec").

Each matrix W [I, O] of a block is the semi-tensor product of two small cores. With I = I1 I2,
O = O1 O2, rank R and step t,

    W[(i1 i2), (o1 o2)] = (G1 (G2 (x) 1_t))[(i1 o1), (i2 o2)],   G1 [I1 O1, R], G2 [R/t, I2 O2/t]

(x) is Kronecker's product with the t by t unit matrix: for t = 1 this is a tensor train.

Cost, which fixes what the KDD 2025 paper does not disclose. A matrix has I1 O1 R + R I2 O2 / t^2
core values and takes I1 O1 R I2 O2 / t multiply-accumulates to rebuild, at each inference, so that
only cores are held in memory. Figures of its Table 1 at D = 64, T = 5, t = 2:

SASRec     8 x 8 grids, R = 48: 30 (64 * 48 + 24 * 32 + 64) values = 3.7478 Mbit (exact), and
           30 * 98,304 + 624,400 = 3.5735 M (exact): rebuilding and the dense network's FLOPs.
NextItNet  24 x 8 by 8 x 8 grids, R = 28: 24 (192 * 28 + 14 * 32) + 12 * 64 + 3,072 values =
           4.5957 Mbit (exact), and 24 * 172,032 + 30,720 = 4.1595 M (exact). Both fit only so: the
           paper has one bias a block, not two, and leaves out the convolutions' own products, which
           its tool does not see. Our "paper" figure does so too; "true" counts them (5.6341 M). We
           leave out the bias of the second convolution: the LayerNorm after it has one.

Training follows the authors' objective,

    (1 - soft) CE + soft KL(teacher, student) + contrast L_contrast + predict L_predict

A window is cut into its popular and its unpopular items, each part pooled by a soft attention,
once with the student's and once with the teacher's embeddings. Parts are exchanged (student's
popular + teacher's unpopular, and the reverse); both mixtures describe one window, so they are
brought together against the other windows of the batch (InfoNCE), and both have to predict the
target. A window of one kind only compares the teacher's and the student's output vectors.

Where we follow the KDD paper or settle things otherwise, and why:

* Blocks are factorised, item embeddings are not: so the KDD paper ("represents each layer") and
  its "Param"; the original compresses the embedding table.
* The authors' code reshapes G1 G2 into W without sorting (i1 o1 i2 o2) into rows and columns; the
  original paper's definition does sort, which is what lets W have full rank.
* KL is a mean over windows, not a sum: weights must not depend on the batch size.
* Attention pooling and mixing are trained on the student's side only, the teacher is the run's
  DeviceRec as it is; they serve training and are not sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forward_ofa.assembly import run_blocks
from forward_ofa.baselines import network_settings
from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import MethodConfig, Options, TrainingConfig
from forward_ofa.cost import FLOAT32_BITS, Costs, network_cost
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.foundation import Foundation
from forward_ofa.model import Batch, item_table
from forward_ofa.ops import TorchOps
from forward_ofa.ranking import Networks, RankingSystem
from forward_ofa.structure_mapper import initialise
from forward_ofa.tasks import NetworkTask, start_items
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import Backbone, BackboneConfig, ParameterSpec

_PAPER_RANK = {"sasrec": 48, "nextitnet": 28}
_PAPER_HIDDEN = 64
_WITHOUT = {"nextitnet": ("conv2.bias",)}
_PRODUCTS_NOT_COUNTED = ("nextitnet",)


@dataclass(frozen=True)
class STTDOptions(Options):
    """Settings of STTD; defaults of the objective are the authors'.

    rank: R; 0: the paper's, 48 (SASRec) or 28 (NextItNet) at D = 64, in proportion elsewhere.
    step: t, which divides R and the second core's width; 1: a plain tensor train.
    soft_weight: share of the loss that is distillation of soft labels.
    soft_temperature: of teacher's and student's scores in it.
    contrast_weight, contrast_temperature: of InfoNCE. predict_weight: of both predictions.
    popular_share: share of the catalogue whose items count as popular.
    """

    rank: int = 0
    step: int = 2
    soft_weight: float = 0.8
    soft_temperature: float = 1.0
    contrast_weight: float = 0.2
    contrast_temperature: float = 0.2
    predict_weight: float = 0.001
    popular_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0 or self.step < 1:
            raise ValueError("rank must not be negative, step must be at least 1")
        if self.rank % self.step:
            raise ValueError(f"rank ({self.rank}) must be a multiple of step ({self.step})")
        if not 0 <= self.soft_weight <= 1:
            raise ValueError("soft_weight must lie between 0 and 1")
        if self.contrast_weight < 0 or self.predict_weight < 0:
            raise ValueError("contrast_weight and predict_weight must not be negative")
        if self.soft_temperature <= 0 or self.contrast_temperature <= 0:
            raise ValueError("soft_temperature and contrast_temperature must be positive")
        if not 0 < self.popular_share < 1:
            raise ValueError("popular_share must lie between 0 and 1")

    def rank_for(self, config: BackboneConfig) -> int:
        """`rank`, or the paper's in proportion to the hidden width."""
        if self.rank:
            return self.rank
        rank = _PAPER_RANK.get(config.name, _PAPER_RANK["sasrec"]) * config.hidden / _PAPER_HIDDEN
        return max(1, round(rank / self.step)) * self.step


@dataclass(frozen=True)
class Grid:
    """How a matrix is cut: rows I = I1 I2, columns O = O1 O2; rank R, step t."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    rank: int
    step: int

    @classmethod
    def of(cls, spec: ParameterSpec, rank: int, step: int) -> Grid:
        """Inner sides as near to sqrt(O) as divisors are: 8 for 64 and for 192 by 64.

        Raises ValueError if `step` does not divide the second core's width.
        """
        side = math.isqrt(spec.shape[1])
        rows, columns = (_split(length, side) for length in spec.shape)
        if rows[1] * columns[1] % step:
            raise ValueError(
                f"step ({step}) must divide {rows[1] * columns[1]}, the width of the second core "
                f"of a matrix of {spec.shape[0]} by {spec.shape[1]}"
            )
        return cls(rows, columns, rank, step)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of G1 and G2."""
        first, second = self.rows[0] * self.columns[0], self.rows[1] * self.columns[1]
        return (first, self.rank), (self.rank // self.step, second // self.step)

    @property
    def values(self) -> int:
        """Core values."""
        return sum(a * b for a, b in self.shapes)

    @property
    def rebuild_flops(self) -> int:
        """Multiply-accumulates that make W."""
        (first, rank), (_, second) = self.shapes
        return first * rank * second

    def cores(self) -> list[Tensor]:
        """Fresh G1, G2 whose product has variance 1 / I."""
        fan_in = self.rows[0] * self.rows[1]
        std = (fan_in * self.rank / self.step) ** -0.25
        return [torch.randn(shape) * std for shape in self.shapes]

    def rebuild(self, first: Tensor, second: Tensor) -> Tensor:
        """W [I, O] from G1 and G2."""
        length, step = len(first), self.step
        # Column r t + s of G1 meets row r of G2 and ends in columns c t + s.
        phases = first.reshape(length, -1, step).transpose(1, 2)
        product = (phases @ second).transpose(1, 2)
        (i1, i2), (o1, o2) = self.rows, self.columns
        return product.reshape(i1, o1, i2, o2).transpose(1, 2).reshape(i1 * i2, o1 * o2)


def _split(length: int, side: int) -> tuple[int, int]:
    """(outer, inner), inner the largest divisor of `length` up to `side`."""
    inner = max(n for n in range(1, side + 1) if length % n == 0)
    return length // inner, inner


def block_grids(backbone: Backbone, options: STTDOptions) -> dict[str, Grid]:
    """How each matrix of a block is cut, by name."""
    rank = options.rank_for(backbone.config)
    return {
        spec.name: Grid.of(spec, rank, options.step)
        for spec in backbone.block_parameters()
        if spec.kind == "matrix"
    }


def sttd_costs(config: BackboneConfig, options: STTDOptions, devices: int = 1) -> Costs:
    """Of so many devices, all alike; formulas in the module's docstring."""
    backbone = build(config)
    grids = block_grids(backbone, options)
    dense = network_cost(config, config.blocks).flops
    rebuild = config.blocks * sum(grid.rebuild_flops for grid in grids.values())
    unseen = config.name in _PRODUCTS_NOT_COUNTED
    paper = (backbone.fixed_flops().paper if unseen else dense.paper) + rebuild
    block = sum(grid.values for grid in grids.values())
    block += sum(spec.size for spec in _plain(backbone))
    shared = sum(spec.size for spec in backbone.shared_parameters())
    row = np.ones(devices)
    return Costs(
        row * paper,
        row * (dense.true + rebuild),
        row * (backbone.fixed_parameters() + config.blocks * block) * FLOAT32_BITS,
        row * (shared + config.blocks * block) * FLOAT32_BITS,
    )


def _plain(backbone: Backbone) -> list[ParameterSpec]:
    """What of a block is stored as it is: biases, but for those that are left out."""
    left_out = _WITHOUT.get(backbone.config.name, ())
    return [
        spec
        for spec in backbone.block_parameters()
        if spec.kind != "matrix" and spec.name not in left_out
    ]


class STTD(RankingSystem):
    """The student: blocks of cores and biases, and `distillation`, which serves training only."""

    def __init__(
        self, items: int, config: BackboneConfig, dropout: float, options: STTDOptions
    ) -> None:
        super().__init__()
        self.backbone = build(config)
        self.options = options
        self.ops = TorchOps(dropout)
        self.items = item_table(items, config.hidden)
        self.grids = block_grids(self.backbone, options)
        self.plain = _plain(self.backbone)
        self.cores = nn.ModuleList(
            nn.ParameterList(core for grid in self.grids.values() for core in grid.cores())
            for _ in range(config.blocks)
        )
        self.biases = nn.ModuleList(
            nn.ParameterList(initialise(spec) for spec in self.plain) for _ in range(config.blocks)
        )
        shared = self.backbone.shared_parameters()
        self.shared = nn.ParameterList(initialise(spec) for spec in shared)
        self.distillation = Distillation(items, config.hidden, options)

    def block_parameters(self, index: int) -> dict[str, Tensor]:
        """The parameters of one block under the backbone's names, rebuilt."""
        cores, biases = self.cores[index], self.biases[index]
        assert isinstance(cores, nn.ParameterList) and isinstance(biases, nn.ParameterList)
        pairs = zip(cores[0::2], cores[1::2], strict=True)
        found: dict[str, Tensor] = {
            name: grid.rebuild(*pair)
            for (name, grid), pair in zip(self.grids.items(), pairs, strict=True)
        }
        found |= {spec.name: value for spec, value in zip(self.plain, biases, strict=True)}
        left_out = (s for s in self.backbone.block_parameters() if s.name not in found)
        return found | {s.name: self.items.weight.new_zeros(s.shape) for s in left_out}

    def vectors(self, batch: Batch) -> Tensor:
        """Outputs [B, M, D] for all windows."""
        names = [spec.name for spec in self.backbone.shared_parameters()]
        return run_blocks(
            self.backbone,
            self.ops,
            self.items(batch.windows),
            batch.windows > 0,
            self.block_parameters,
            dict(zip(names, self.shared, strict=True)),
        )

    def networks(self, batch: Batch) -> Networks:
        """Outputs, all blocks, and their costs with rebuilding."""
        vectors = self.vectors(batch)
        config = self.backbone.config
        kept = torch.ones(len(vectors), config.blocks, dtype=torch.bool, device=vectors.device)
        return Networks(vectors, kept, sttd_costs(config, self.options, len(vectors)))


class SoftPool(nn.Module):
    """Soft attention over a subset: x [W, T, D], mask [W, T] -> [W, D]; zeros for an empty one."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.own = nn.Linear(hidden, hidden)
        self.mean = nn.Linear(hidden, hidden, bias=False)
        self.weight = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shown = x * mask[..., None]
        mean = shown.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        weights = self.weight(torch.sigmoid(self.own(torch.tanh(x)) + self.mean(mean)[:, None]))
        pooled: Tensor = (weights * shown).sum(1)
        return pooled


@dataclass(frozen=True)
class Views:
    """W windows to one network: embeddings [W, T, D], outputs [W, D]; its items [N + 1, D]."""

    embeddings: Tensor
    outputs: Tensor
    items: Tensor


class Distillation(nn.Module):
    """The contrastive and the predictive task. popular: booleans [N + 1]."""

    popular: Tensor

    def __init__(self, items: int, hidden: int, options: STTDOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("popular", torch.zeros(items + 1, dtype=torch.bool))
        self.pools = nn.ModuleList(SoftPool(hidden) for _ in range(4))
        self.mixes = nn.ModuleList(nn.Linear(2 * hidden, hidden, bias=False) for _ in range(4))

    def set_popular(self, popularity: np.ndarray) -> None:
        """From how often each item is met in training, [N + 1]."""
        count = max(1, round(self.options.popular_share * (len(popularity) - 1)))
        best = np.argsort(-popularity[1:], kind="stable")[:count] + 1
        self.popular.zero_()
        self.popular[torch.from_numpy(best).to(self.popular.device)] = True

    def forward(
        self, windows: Tensor, targets: Tensor, student: Views, teacher: Views
    ) -> tuple[Tensor, Tensor]:
        """(contrastive loss, predictive loss) of windows [W, T] with targets [W] in 1..N."""
        hot = self.popular[windows] & (windows > 0)
        cold = ~self.popular[windows] & (windows > 0)
        both = (hot.any(1) & cold.any(1))[:, None]
        parts = [
            pool(view.embeddings, mask.to(view.embeddings.dtype))
            for pool, view, mask in zip(
                self.pools, (student, student, teacher, teacher), (hot, cold, hot, cold),
                strict=True,
            )
        ]  # fmt: skip
        mixtures = (torch.cat([parts[0], parts[3]], 1), torch.cat([parts[2], parts[1]], 1))
        # A window of one kind of items has no parts to exchange: its outputs stand in for them.
        instead = (teacher.outputs, student.outputs)
        mixed = [
            F.normalize(torch.where(both, self.mixes[i](mixtures[i % 2]), instead[i % 2]), dim=1)
            for i in range(4)
        ]
        similarity = mixed[0] @ mixed[1].T / self.options.contrast_temperature
        contrast = F.cross_entropy(similarity, torch.arange(len(windows), device=windows.device))
        predictions = [
            F.cross_entropy(query @ view.items[1:].T, targets - 1)
            for query, view in zip(mixed[2:], (student, teacher), strict=True)
        ]
        return contrast, predictions[0] + predictions[1]


@dataclass
class STTDTask(NetworkTask):
    """The student's objective. teacher: a trained DeviceRec, which is not changed."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    options: STTDOptions
    teacher: DeviceRec
    foundation: Foundation | None = None

    def __post_init__(self) -> None:
        self.name = "STTD"
        torch.manual_seed(self.config.seed)
        method = self.method
        self.system: STTD = STTD(self.data.num_items, method.backbone, method.dropout, self.options)
        self.system.distillation.set_popular(self.data.popularity())
        start_items(self.system, self.foundation)
        self.teacher.eval()

    def settings(self) -> dict[str, Any]:
        started = self.foundation is not None
        return network_settings(self.method, self.options, system=self.name, foundation=started)

    def loss(self, batch: Batch, done: float) -> Tensor:
        self.teacher.to(self.system.device)  # does nothing when it is there
        wanted = batch.targets > 0
        windows, targets = batch.windows[wanted], batch.targets[wanted]
        student = _views(self.system, self.system.vectors(batch)[wanted], windows)
        with torch.no_grad():
            teacher = _views(self.teacher, self.teacher.vectors(batch)[wanted], windows)
            marks = teacher.outputs @ teacher.items[1:].T
        scores = student.outputs @ student.items[1:].T
        options = self.options
        heat = options.soft_temperature
        soft = heat**2 * F.kl_div(
            torch.log_softmax(scores / heat, 1), torch.log_softmax(marks / heat, 1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        hard = F.cross_entropy(scores, targets - 1)
        loss: Tensor = (1 - options.soft_weight) * hard + options.soft_weight * soft
        contrast, predict = self.system.distillation(windows, targets, student, teacher)
        more: Tensor = options.contrast_weight * contrast + options.predict_weight * predict
        return loss + more


def _views(system: RankingSystem, outputs: Tensor, windows: Tensor) -> Views:
    return Views(system.items(windows), outputs, system.items.weight)
