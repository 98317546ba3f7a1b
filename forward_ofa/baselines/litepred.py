"""LitePred: a path for each device through a supernet, by a predictor (Feng et al., NSDI 2024).

LitePred itself predicts latencies for neural architecture search; the KDD 2025 paper uses it as a
search-based rival that "matches and finetunes models with device data" and discloses no more. This
is that pipeline, in the form that once-for-all supernets are used in:

1. Supernet ("litepred-supernet"): DeviceRec's blocks, trained with drawn paths. By the sandwich
   rule a share of the devices of a batch runs all blocks, a share runs a single one, the others a
   random number of random blocks.
2. Predictor: some paths of each user are run on the user's validation item; a small network learns
   from (mean of the window's item embeddings, path) how much a path's loss differs from the same
   user's mean over paths. A fifth of the users is held out; "predictor_correlation" is that
   between predicted and measured differences on them.
3. Matching: each device takes the path, among those under the cap, that the predictor likes best.
4. Fine-tuning ("litepred"): blocks are trained on, each window's path the predicted one; item
   embeddings stay as they are, so that the predictor still reads what it learned from.

Where we differ from LitePred, and why: all blocks of a backbone are alike, so a latency is an
increasing function of the number of kept blocks on any device, and a cap on latency is a cap on
FLOPs, which cost.py knows exactly; there is nothing to transfer between platforms, and a measured
time would make a run depend on the machine's mood. What is left to predict is quality. The
weights are tuned for all devices together: a device's own few interactions are Finetune's affair.

Validation items train the predictor and choose the best epoch; the test items are not looked at.

Cost: that of the kept blocks. The predictor runs with each refresh, on the device.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forward_ofa.baselines import network_settings
from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import MethodConfig, Options, TrainingConfig
from forward_ofa.cost import ModuleCost, block_costs, network_cost
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import user_batches
from forward_ofa.foundation import Foundation
from forward_ofa.model import Batch
from forward_ofa.objectives import next_item_loss
from forward_ofa.ranking import Networks
from forward_ofa.tasks import NetworkTask, start_items
from forward_ofa_device.backbones.contract import BackboneConfig, Flops

_PAPER_CAP = {"sasrec": 0.5699 / 0.6244, "nextitnet": 0.6167 / 1.5053}
_HELD_OUT = 5  # one user in so many


@dataclass(frozen=True)
class LitePredOptions(Options):
    """Settings of LitePred.

    cap: largest share of the dense network's FLOPs (the paper's accounting), in (0, 1]. 0: what the
        paper's Forward-OFA needs on MovieLens-1M, 0.913 (SASRec) or 0.410 (NextItNet).
    paths: how many candidate paths there are; all under the cap if they are fewer.
    full_share, single_share: of the devices of a batch that run all blocks, and one.
    measured_paths: paths that are run for each validation user; measured_users: of how many users.
    predictor_width: hidden units of the predictor. predictor_steps, predictor_rate: Adam steps over
        all measurements, and their learning rate. predictor_decay: its weight decay.
    tune_epochs: of fine-tuning; 0: a quarter of the training's, at least one.
    """

    cap: float = 0.0
    paths: int = 128
    full_share: float = 0.25
    single_share: float = 0.1
    measured_paths: int = 8
    measured_users: int = 20_000
    predictor_width: int = 32
    predictor_steps: int = 300
    predictor_rate: float = 3e-3
    predictor_decay: float = 0.01
    tune_epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cap <= 1:
            raise ValueError("cap must lie between 0 (the paper's share) and 1")
        for name in ("paths", "measured_users", "predictor_width", "predictor_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.measured_paths < 2:
            raise ValueError("measured_paths must be at least 2: their differences are learned")
        if min(self.full_share, self.single_share) < 0 or self.full_share + self.single_share > 1:
            raise ValueError("full_share and single_share must be shares of at most 1 together")
        if self.predictor_rate <= 0 or self.predictor_decay < 0:
            raise ValueError("predictor_rate must be positive, predictor_decay not negative")
        if self.tune_epochs < 0:
            raise ValueError("tune_epochs must not be negative")

    def most_blocks(self, config: BackboneConfig) -> int:
        """How many blocks a path under the cap may have; one at least."""
        share = self.cap or _PAPER_CAP.get(config.name, _PAPER_CAP["sasrec"])
        flops = [network_cost(config, kept).flops.paper for kept in range(config.blocks + 1)]
        within = [kept for kept in range(1, len(flops)) if flops[kept] <= share * flops[-1]]
        return max(within, default=1)


def candidate_paths(config: BackboneConfig, options: LitePredOptions, seed: int) -> Tensor:
    """Booleans [C, L]: all paths under the cap, or `paths` different ones of them, drawn.

    As many of each size as of any other, as far as there are so many. C depends on the settings
    only, not on the seed.
    """
    rng = np.random.default_rng(seed)
    sizes = range(1, options.most_blocks(config) + 1)
    by_size = [_paths_of(size, config.blocks, options.paths, rng) for size in sizes]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_size))
    drawn = [path for path in turns if path is not None][: options.paths]
    found = torch.zeros(len(drawn), config.blocks, dtype=torch.bool)
    for row, path in zip(found, drawn, strict=True):
        row[list(path)] = True
    return found


def _paths_of(size: int, blocks: int, most: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Different paths of `size` blocks in drawn order: all, or `most` of them."""
    if math.comb(blocks, size) <= 2 * most:
        every = list(itertools.combinations(range(blocks), size))
        return [every[i] for i in rng.permutation(len(every))][:most]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < most:
        found[tuple(sorted(rng.choice(blocks, size, replace=False).tolist()))] = None
    return list(found)


class Supernet(DeviceRec):
    """DeviceRec's blocks, of which a device runs a path. pool: candidate paths, booleans [C, L].

    Without being told a path, devices take candidates in turn: that is how it is validated.
    """

    pool: Tensor

    def __init__(
        self, items: int, config: BackboneConfig, dropout: float, options: LitePredOptions,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(items, config, dropout)
        self.options = options
        self.register_buffer("pool", candidate_paths(config, options, seed))

    def choose(self, batch: Batch) -> Tensor:
        """Booleans [B, L]: the path of each device."""
        turns = torch.arange(len(batch.windows), device=self.pool.device)
        return self.pool[turns % len(self.pool)]

    def vectors(self, batch: Batch, gates: Tensor | None = None) -> Tensor:
        """Outputs [B, M, D] for all windows. gates [B, L]: 1 = kept; None: `choose` is asked."""
        if gates is None:
            gates = self.choose(batch).to(self.items.weight.dtype)
        return super().vectors(batch, gates)

    def networks(self, batch: Batch) -> Networks:
        """Outputs, paths and what they cost."""
        kept = self.choose(batch)
        vectors = self.vectors(batch, kept.to(self.items.weight.dtype))
        costs = block_costs(self.backbone.config, kept.sum(1).cpu().numpy())
        return Networks(vectors, kept, costs)


class Predictor(nn.Module):
    """features [B, D], paths [C, L] or [B, C, L] (0 or 1) -> predicted difference of loss [B, C].

    mean, std [D]: of the features that it was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, hidden: int, blocks: int, width: int) -> None:
        super().__init__()
        self.feature = nn.Linear(hidden, width)
        self.path = nn.Linear(blocks, width, bias=False)
        self.out = nn.Linear(width, 1)
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("std", torch.ones(hidden))

    def forward(self, features: Tensor, paths: Tensor) -> Tensor:
        seen = self.feature((features - self.mean) / self.std)[:, None]
        found: Tensor = self.out(torch.tanh(seen + self.path(paths)))[..., 0]
        return found

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Takes mean and deviation of features [U, D]."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0, correction=0).clamp(min=1e-6))


class LitePred(Supernet):
    """The supernet with its predictor.

    fitted: whether that has been trained. correlation: with held-out measurements then.
    """

    fitted: Tensor
    correlation: Tensor

    def __init__(
        self, items: int, config: BackboneConfig, dropout: float, options: LitePredOptions,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(items, config, dropout, options, seed)
        self.predictor = Predictor(config.hidden, config.blocks, options.predictor_width)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("correlation", torch.zeros(()))

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """[B, D]: the mean embedding of the items in each device's first window."""
        window = batch.windows[:, 0]
        count = (window > 0).sum(1, keepdim=True).clamp(min=1)
        found: Tensor = self.items(window).sum(1) / count
        return found

    @torch.no_grad()
    def choose(self, batch: Batch) -> Tensor:
        """Booleans [B, L]: the candidate whose predicted loss is the lowest."""
        predicted = self.predictor(self.features(batch), self.pool.to(self.items.weight.dtype))
        return self.pool[predicted.argmin(1)]

    def device_modules(self) -> ModuleCost:
        """The predictor: its first layer once, the rest for each candidate."""
        config, width = self.backbone.config, self.options.predictor_width
        parameters = (config.hidden + config.blocks + 2) * width + 1
        flops = (config.hidden + len(self.pool) * (config.blocks + 1)) * width
        return ModuleCost(parameters, Flops(flops, flops))


@torch.no_grad()
def measure(
    system: LitePred, data: SequenceDataset, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs drawn candidates on each user's validation item.

    Returns features [U, D], paths [U, K, L], loss of each less the user's mean [U, K]; U is at most
    `measured_users` and what fills the last batch.
    """
    system.eval()
    features, paths, losses = [], [], []
    users = 0
    count, dtype = system.options.measured_paths, system.items.weight.dtype
    for whole in user_batches(data, "validation", 1, system.backbone.config.history):
        batch = whole.to(system.device)
        size = len(batch.targets)
        drawn = torch.from_numpy(rng.integers(0, len(system.pool), (count, size)))
        chosen = system.pool[drawn.to(system.device)].to(dtype)
        wanted = batch.targets[:, 0] - 1
        found = [
            F.cross_entropy(
                system.vectors(batch, gates)[:, 0] @ system.items.weight[1:].T,
                wanted,
                reduction="none",
            )
            for gates in chosen
        ]
        features.append(system.features(batch))
        paths.append(chosen.transpose(0, 1))
        losses.append(torch.stack(found, 1))
        users += size
        if users >= system.options.measured_users:
            break
    return torch.cat(features), torch.cat(paths), _centred(torch.cat(losses))


def learn(
    predictor: Predictor, options: LitePredOptions, features: Tensor, paths: Tensor, losses: Tensor
) -> float:
    """Trains the predictor on what `measure` returns, but for every fifth user.

    Returns its correlation with the measurements of those; 0 where there are none.
    """
    users = torch.arange(len(features), device=features.device)
    held_out = users % _HELD_OUT == _HELD_OUT - 1
    learned = ~held_out
    predictor.standardise(features[learned])
    optimiser = torch.optim.AdamW(
        predictor.parameters(), lr=options.predictor_rate, weight_decay=options.predictor_decay
    )
    for _ in range(options.predictor_steps):
        optimiser.zero_grad(set_to_none=True)
        # Centred as the measurements are: what all paths of a user share is not asked for.
        error = _centred(predictor(features[learned], paths[learned])) - losses[learned]
        error.square().mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        found = _centred(predictor(features[held_out], paths[held_out]))
    pairs = torch.stack([found.flatten(), losses[held_out].flatten()])
    return float(torch.corrcoef(pairs)[0, 1].nan_to_num()) if pairs.shape[1] > 1 else 0.0


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


def fit_predictor(system: LitePred, data: SequenceDataset, seed: int) -> None:
    """Measures and learns, once in the life of a system.

    Draws from its own generator only, so that a run that is resumed goes on as it would have.
    """
    found = measure(system, data, np.random.default_rng(seed))
    system.correlation.fill_(learn(system.predictor, system.options, *found))
    system.fitted.fill_(True)


@dataclass
class SupernetTask(NetworkTask):
    """Stage 1: blocks that work on many paths; validated on the candidates, each user on one."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    options: LitePredOptions
    foundation: Foundation | None = None

    def __post_init__(self) -> None:
        self.name = "LitePred, supernet"
        torch.manual_seed(self.config.seed)
        method = self.method
        self.system: Supernet = Supernet(
            self.data.num_items, method.backbone, method.dropout, self.options, self.config.seed
        )
        start_items(self.system, self.foundation)

    def settings(self) -> dict[str, Any]:
        started = self.foundation is not None
        return network_settings(self.method, self.options, system=self.name, foundation=started)

    def loss(self, batch: Batch, done: float) -> Tensor:
        gates = self.draw(len(batch.windows)).to(self.system.items.weight)
        vectors = self.system.vectors(batch, gates)
        return next_item_loss(vectors, self.system.items.weight, batch.targets)

    def draw(self, size: int) -> Tensor:
        """Booleans [size, L] by the sandwich rule."""
        blocks = self.method.backbone.blocks
        kind = torch.rand(size, 1)
        count = torch.randint(1, blocks + 1, (size, 1))
        count[kind < self.options.full_share + self.options.single_share] = 1
        count[kind < self.options.full_share] = blocks
        return torch.rand(size, blocks).argsort(1).argsort(1) < count


@dataclass
class LitePredTask(NetworkTask):
    """Stages 2 to 4: predictor, matching, fine-tuning."""

    data: SequenceDataset
    method: MethodConfig
    config: TrainingConfig
    options: LitePredOptions
    supernet: Supernet

    def __post_init__(self) -> None:
        self.name = "LitePred"
        epochs = self.options.tune_epochs or max(1, self.config.epochs // 4)
        self.config = dataclasses.replace(self.config, epochs=epochs)
        torch.manual_seed(self.config.seed)
        method = self.method
        self.system: LitePred = LitePred(
            self.data.num_items, method.backbone, method.dropout, self.options, self.config.seed
        )
        self.system.load_state_dict(self.supernet.state_dict(), strict=False)
        self.system.items.requires_grad_(False)

    def settings(self) -> dict[str, Any]:
        return network_settings(self.method, self.options, system=self.name)

    def epoch(self, rng: np.random.Generator) -> tuple[int, Iterator[Batch]]:
        # Not when the task is made: a resumed run has its predictor from the checkpoint.
        if not self.system.fitted:
            mode = self.system.training
            fit_predictor(self.system, self.data, self.config.seed)
            self.system.train(mode)
        return super().epoch(rng)

    def validate(self) -> dict[str, float]:
        figures = super().validate()
        figures["predictor_correlation"] = float(self.system.correlation)
        return figures
