"""Finetune: DeviceRec, then each device's blocks tuned on its own history (paper, A.2).

A device starts from the trained DeviceRec and takes some steps of plain gradient descent on the
next-item loss over its own last items: every position of them is a target, its window what came
before. Block parameters are tuned; item embeddings and what the backbone shares stay as they are,
so that scores of different devices keep one scale and nothing large is copied.

How many steps and at which rate is chosen on validation, the same for all devices, at least one
step: none would be DeviceRec. What a device tunes on is what precedes the item to be predicted, on
the validation split as on the test split, and nothing else. No dropout, so that a device's network
is a function of its history.

Many devices are tuned at once: a block's parameters are a leaf tensor a parameter, with a leading
axis of devices, and the sum of the devices' losses gives each its own gradient.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from forward_ofa.assembly import run_blocks
from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.batches import batches, last_item_sessions
from forward_ofa.config import MethodConfig, Options, TrainingConfig
from forward_ofa.cost import ModuleCost, network_cost
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import hit, ndcg, rank_of
from forward_ofa.model import Batch
from forward_ofa_device.backbones.contract import Flops

_SCORES = 2**24
"""Scores of devices, targets and items that are alive at once."""


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """What is tried on validation, and on what a device tunes.

    rates: of gradient descent. steps: numbers of steps. history: items that a device tunes on,
    its last ones. users: on how many users of the validation split is chosen; 0: on all.
    """

    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    steps: tuple[int, ...] = (1, 2, 5, 10)
    history: int = 50
    users: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rates or min(self.rates) <= 0:
            raise ValueError("rates must be positive numbers")
        if not self.steps or min(self.steps) < 1:
            raise ValueError("steps must be at least 1: without a step it is DeviceRec")
        if self.history < 2:
            raise ValueError("history must be at least 2, or there is nothing to tune on")
        if self.users < 0:
            raise ValueError("users must not be negative")


Blocks = list[dict[str, Tensor]]
"""A dict a block: name to [B, *shape]."""


class Finetune(DeviceRec):
    """DeviceRec, and how devices tune it: the chosen rate and steps; tried: how many rates were."""

    rate: Tensor
    steps: Tensor
    tried: Tensor

    def __init__(self, items: int, method: MethodConfig, options: FinetuneOptions) -> None:
        super().__init__(items, method.backbone, method.dropout)
        self.options = options
        self.register_buffer("rate", torch.tensor(options.rates[0], dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(min(options.steps)))
        self.register_buffer("tried", torch.tensor(0))

    @property
    def extractor_history(self) -> int:
        """Items that a device tunes on, at most."""
        return self.options.history

    def device_modules(self) -> ModuleCost:
        """What tuning takes at each refresh, with the chosen number of steps.

        A step passes the M = history - 1 windows forwards and, at twice that, backwards, and
        multiplies M outputs with all N items and the scores' gradients with them again. parameters:
        the embeddings of the whole catalogue, which the softmax needs and a device that only ranks
        candidates does not hold.
        """
        config = self.backbone.config
        windows = self.options.history - 1
        items = self.items.num_embeddings - 1
        dense = network_cost(config, config.blocks).flops
        scores = 2 * windows * items * config.hidden
        paper, true = (
            int(self.steps) * (3 * windows * flops + scores) for flops in (dense.paper, dense.true)
        )
        return ModuleCost(items * config.hidden, Flops(paper, true))

    def assume_dearest(self) -> None:
        self.steps.fill_(max(self.options.steps))

    def vectors(self, batch: Batch, gates: Tensor | None = None) -> Tensor:
        """Outputs [B, M, D] of the tuned networks for all windows."""
        parts = []
        for rows in self.groups(batch):
            part = _rows(batch, rows)
            *_, tuned = self.tuned(part, float(self.rate), int(self.steps))
            parts.append(self.run(part.windows, tuned))
        return torch.cat(parts)

    def tuned(self, batch: Batch, rate: float, steps: int) -> Iterator[Blocks]:
        """The devices' parameters after each of `steps` steps at `rate`."""
        windows, targets = own_examples(batch, self.backbone.config.history)
        counts = (targets > 0).sum(1, keepdim=True).clamp(min=1)
        weights = torch.where(targets > 0, 1 / counts, 0.0)
        blocks = self._started(len(batch.lengths))
        for _ in range(steps):
            with torch.enable_grad():
                leaves = [value for block in blocks for value in block.values()]
                for leaf in leaves:
                    leaf.requires_grad_(True)
                scores = self.run(windows, blocks) @ self.items.weight[1:].detach().T
                wanted = (targets - 1).clamp(min=0)
                losses = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none")
                gradients = torch.autograd.grad((losses * weights.flatten()).sum(), leaves)
            with torch.no_grad():
                moved = iter(
                    leaf.detach() - rate * gradient
                    for leaf, gradient in zip(leaves, gradients, strict=True)
                )
            blocks = [{name: next(moved) for name in block} for block in blocks]
            yield blocks

    def run(self, windows: Tensor, blocks: Blocks) -> Tensor:
        """Outputs [B, M, D] for windows [B, M, T] with each device's own parameters."""
        shared = {name: value.detach() for name, value in self.shared_parameters().items()}
        return run_blocks(
            self.backbone,
            self.ops,
            self.items(windows).detach(),
            windows > 0,
            lambda index: blocks[index],
            shared,
        )

    def _started(self, devices: int) -> Blocks:
        """DeviceRec's parameters, once for each device."""
        return [
            {
                name: value.detach().expand(devices, *value.shape).clone()
                for name, value in self.block_parameters(index).items()
            }
            for index in range(self.backbone.config.blocks)
        ]

    def groups(self, batch: Batch) -> Iterator[slice]:
        """Devices that are tuned together: as many as memory allows."""
        each = batch.history.shape[1] * self.items.num_embeddings
        size = min(128, max(1, _SCORES // each))
        for start in range(0, len(batch.lengths), size):
            yield slice(start, start + size)


def own_examples(batch: Batch, window: int) -> tuple[Tensor, Tensor]:
    """What a device tunes on: windows [B, N - 1, T], targets [B, N - 1], 0 where there is none.

    From `batch.history` [B, N] alone, so never from what is to be predicted.
    """
    history = batch.history
    before = F.pad(history, (window, 0)).unfold(1, window, 1)
    return before[:, 1 : history.shape[1]], history[:, 1:]


def _rows(batch: Batch, rows: slice) -> Batch:
    tensors = (batch.history, batch.lengths, batch.windows, batch.targets)
    return Batch(*(tensor[rows] for tensor in tensors))


@dataclass
class FinetuneTask:
    """Chooses rate and steps. An epoch tries one rate, with all numbers of steps on the way."""

    data: SequenceDataset
    method: MethodConfig
    training: TrainingConfig
    base: DeviceRec
    options: FinetuneOptions

    def __post_init__(self) -> None:
        self.name = "Finetune"
        # A stage without gradient steps of its own; an epoch is a rate.
        self.config = TrainingConfig(epochs=len(self.options.rates), seed=self.training.seed)
        self.system = Finetune(self.data.num_items, self.method, self.options)
        self.system.load_state_dict(self.base.state_dict(), strict=False)

    def settings(self) -> dict[str, Any]:
        return {
            "system": self.name,
            "backbone": asdict(self.method.backbone),
            "options": asdict(self.options),
        }

    def epoch(self, rng: np.random.Generator) -> tuple[int, Iterator[Batch]]:
        """No steps: what is tried is tried in `validate`."""
        return 0, iter(())

    def loss(self, batch: Batch, done: float) -> Tensor:
        raise NotImplementedError("Finetune has no steps that all devices share")

    def validate(self) -> dict[str, float]:
        """Tries the next rate, and keeps its best number of steps."""
        system = self.system.eval()
        index = int(system.tried)
        rate = self.options.rates[index]
        figures = self.figures_by_steps(rate)
        best = max(figures, key=lambda steps: figures[steps]["ndcg@10"])
        system.rate.fill_(rate)
        system.steps.fill_(best)
        system.tried.fill_(index + 1)
        blocks = self.method.backbone.blocks
        return {**figures[best], "mean_kept_blocks": blocks, "rate": rate, "steps": best}

    def figures_by_steps(self, rate: float) -> Mapping[int, dict[str, float]]:
        """Validation figures after each number of steps that the options name."""
        wanted = sorted(set(self.options.steps))
        ranks: dict[int, list[Tensor]] = {steps: [] for steps in wanted}
        for batch in self._users():
            for made, blocks in enumerate(self.system.tuned(batch, rate, wanted[-1]), 1):
                if made in ranks:
                    ranks[made].append(self._ranks(batch, blocks))
        found = {steps: torch.cat(parts).cpu().numpy() for steps, parts in ranks.items()}
        return {
            steps: {"ndcg@10": float(ndcg(r).mean()), "hit@10": float(hit(r).mean())}
            for steps, r in found.items()
        }

    @torch.no_grad()
    def _ranks(self, batch: Batch, blocks: Blocks) -> Tensor:
        vectors = self.system.run(batch.windows, blocks)[:, 0]
        return rank_of(vectors @ self.system.items.weight.T, batch.targets[:, 0])

    def _users(self) -> Iterator[Batch]:
        """The validation split's users, or as many of them as the options say, in groups."""
        sessions = last_item_sessions(self.data, "validation")
        count = min(self.options.users or len(sessions), len(sessions))
        drawn = np.random.default_rng(self.config.seed).permutation(len(sessions))[:count]
        chosen = sessions.take(np.sort(drawn))
        window, system = self.method.backbone.history, self.system
        for whole in batches(self.data, chosen, 128, self.options.history, window):
            for rows in system.groups(whole):
                yield _rows(whole, rows).to(system.device)

    def seconds(self) -> float:
        """About how long all epochs take, from one step of one group."""
        self.system.eval()
        users = min(self.options.users or self.data.num_users, self.data.num_users)
        first = next(self._users())
        started = time.monotonic()
        for _ in self.system.tuned(first, self.options.rates[0], 1):
            pass
        step = (time.monotonic() - started) * users / len(first.lengths)
        return step * max(self.options.steps) * len(self.options.rates)
