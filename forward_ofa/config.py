"""Configurations: plain typed dataclasses, each field a thing that something reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from forward_ofa_device.backbones.contract import MOST_HISTORY, BackboneConfig

MOST_SEED = 2**32 - 1
"""What numpy, torch and the generators of other libraries all take."""

_MOST_OPTION = 1_000_000


def require_finite(config: Any) -> None:
    """Raises ValueError for a field of a dataclass that is, or holds, NaN or an infinity.

    Every comparison with NaN is false: a range that is checked by `value < low` lets it through.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{each.name} must be a finite number, not {number}")


def require_between(config: object, low: int, high: int, *names: str) -> None:
    """Raises ValueError for one of these fields that is not from `low` to `high`."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise ValueError(f"{name} must be at least {low} and at most {high:,}")


@dataclass(frozen=True)
class MethodConfig:
    """Forward-OFA's own hyperparameters.

    backbone: which network is generated.
    extractor_history: items that E and E' read. The paper's cost figures fix it
        to the backbone's own T; more costs the device at each refresh.
    temperature: tau of Eq. 4. compact_weight: lambda of Eq. 12.
    compact_warmup: share of training over which lambda grows from 0; at full
        strength from the first step it empties the structure before it is learned.
    structure_from, structure_until: shares of training between which the structure is learned:
        drawn, with lambda, whose `compact_warmup` begins there. Before, every network has all
        blocks; after, the blocks that the controller chooses, as on the device. Outside of it
        the controller does not learn.
    keep_bias: first logit of every block.
    spread: how far generated matrices lie around their base at first (see structure_mapper).
    bases: 0, the paper's hypernetworks; r > 0, hypernetworks that mix r shared networks a block
        (see structure_mapper): less to train, fewer parameters, another quality.
    cut_probability: share of devices in training that get a drawn budget.
    retrieval_weight: weight of the cloud's retrieval loss.
    retrieval_apart: whether that loss teaches the query's own layer alone, and neither the interest
        nor the item embeddings: then all but that layer learns from Eq. 12 and nothing else.
    fusion: whether devices add the cloud's query to what their network puts out, with a weight that
        is chosen on validation (see fusion.py). Not in the paper.
    dropout: inside the backbone.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    extractor_history: int = 5
    temperature: float = 5.0
    compact_weight: float = 0.005
    compact_warmup: float = 0.3
    structure_from: float = 0.0
    structure_until: float = 1.0
    keep_bias: float = 2.0
    spread: float = 0.3
    bases: int = 0
    cut_probability: float = 0.0
    retrieval_weight: float = 0.2
    retrieval_apart: bool = False
    fusion: bool = False
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require_finite(self)
        require_between(self, 1, MOST_HISTORY, "extractor_history")
        if not 0 <= self.bases < self.backbone.hidden:
            raise ValueError(
                f"bases must be 0 (the paper's form) or less than hidden ({self.backbone.hidden})"
            )
        if self.temperature <= 0:
            raise ValueError("temperature must be positive")
        for name in ("compact_weight", "spread", "retrieval_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        for name in ("cut_probability", "dropout", "compact_warmup", "structure_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and less than 1")
        if self.fusion and not self.retrieval_weight:
            raise ValueError("fusion needs a query that is trained: retrieval_weight above 0")
        if not self.structure_from < self.structure_until <= 1:
            raise ValueError("structure_until must be more than structure_from and at most 1")


@dataclass(frozen=True)
class TrainingConfig:
    """How one system is trained.

    epochs: passes over all training targets. batch_size: networks a step.
    targets_per_network: predictions made with one generated network; 1 is the paper's
        protocol, more is what a session is, and generation is paid once for all of them.
    learning_rate: Adam's, reached after `warmup_steps` and, from `decay_from` of all steps on,
        lowered linearly to a twentieth. weight_decay: AdamW's.
    clip_norm: largest norm of the gradient. seed: of everything that is drawn.
    """

    epochs: int
    batch_size: int = 256
    targets_per_network: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_steps: int = 100
    decay_from: float = 0.5
    clip_norm: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite(self)
        require_between(self, 1, 100_000, "epochs", "targets_per_network")
        require_between(self, 1, 1_000_000, "batch_size")
        require_between(self, 0, MOST_SEED, "seed")
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ValueError("learning_rate and clip_norm must be positive")
        if self.weight_decay < 0:
            raise ValueError("weight_decay must not be negative")
        require_between(self, 0, 1_000_000_000, "warmup_steps")
        if not 0 <= self.decay_from <= 1:
            raise ValueError("decay_from must lie between 0 and 1")


@dataclass(frozen=True)
class FoundationConfig:
    """How the foundation is trained (see forward_ofa/foundation.py).

    training: its `batch_size` counts pieces of history, `targets_per_network` is not used.
    length: targets of a piece. dropout: on embeddings and states.
    """

    training: TrainingConfig
    length: int = 100
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require_finite(self)
        require_between(self, 1, 100_000, "length")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must be at least 0 and less than 1")


@dataclass(frozen=True)
class Options:
    """Base class of what one system has for settings beside those of a run; frozen dataclasses.

    Fields are numbers, booleans, strings, or tuples of numbers, each with a default.
    A subclass that checks its own calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        require_finite(self)
        for each in fields(self):
            if isinstance(value := getattr(self, each.name), int) and value > _MOST_OPTION:
                raise ValueError(f"{each.name} must be at most {_MOST_OPTION:,}")


@dataclass(frozen=True)
class RunConfig:
    """One run: a system, and DeviceRec to compare with, on the same data with the same protocol.

    system: its name in `forward_ofa.systems.SYSTEMS`. options: its own settings; None: as its
        options' class has them, or it has none.
    device_rec: how DeviceRec is trained. training: how the system is trained.
    foundation: trained first, all systems start from its item embeddings; None: from nothing.
    warm_start: generated networks' bases B_k, shared parameters and item embeddings start from
        the trained DeviceRec instead of fresh values.
    compare: train DeviceRec also where the system does not need it, to compare with.
    candidates: items that the cloud retrieves for a device.
    """

    method: MethodConfig
    device_rec: TrainingConfig
    training: TrainingConfig
    warm_start: bool
    foundation: FoundationConfig | None = None
    candidates: int = 200
    system: str = "forward-ofa"
    options: Options | None = None
    compare: bool = True

    def __post_init__(self) -> None:
        require_between(self, 1, 1_000_000, "candidates")
