"""Recipes by name. Each promises what it is for, how long it takes and what to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forward_ofa.config import MethodConfig, RunConfig, TrainingConfig
from forward_ofa_device.backbones.contract import BackboneConfig

_BLOCKS = {"sasrec": 6, "nextitnet": 12}
_LEARNING_RATE = {"sasrec": 1e-3, "nextitnet": 2e-3}


def default(backbone: str) -> RunConfig:
    """`forward-ofa train`: the best that we know for minutes on two CPU cores."""
    method = MethodConfig(
        backbone=_backbone(backbone),
        extractor_history=50,
        compact_weight=0.001,
        cut_probability=0.1,
    )
    rate = _LEARNING_RATE.get(backbone, 1e-3)
    return RunConfig(
        method=method,
        device_rec=TrainingConfig(epochs=8, learning_rate=rate),
        forward_ofa=TrainingConfig(
            epochs=3, batch_size=64, targets_per_network=4, learning_rate=rate / 2
        ),
        warm_start=True,
    )


def paper(backbone: str) -> RunConfig:
    """`forward-ofa train --recipe paper`: the KDD 2025 paper's settings for MovieLens-1M.

    T = 5 for the extractors too, a fresh network for every prediction, no warm start, no
    drawn budgets; learning rate, lambda and tau from its Section 4.1.4. Epochs and batch size
    are not disclosed: 20 and 256 here. Hours on a CPU for MovieLens-1M.
    """
    nextitnet = backbone == "nextitnet"
    method = MethodConfig(
        backbone=_backbone(backbone),
        extractor_history=5,
        temperature=12.0 if nextitnet else 5.0,
        compact_weight=0.001 if nextitnet else 0.005,
    )
    training = TrainingConfig(epochs=20, learning_rate=_LEARNING_RATE.get(backbone, 1e-3))
    return RunConfig(method=method, device_rec=training, forward_ofa=training, warm_start=False)


def quick(backbone: str) -> RunConfig:
    """`forward-ofa train --recipe quick`: one short epoch each, to see that everything works.

    Seconds on a small log; the figures mean nothing.
    """
    config = default(backbone)
    return replace(
        config,
        method=replace(config.method, extractor_history=10),
        device_rec=replace(config.device_rec, epochs=1),
        forward_ofa=replace(config.forward_ofa, epochs=1, targets_per_network=16),
    )


RECIPES: dict[str, Callable[[str], RunConfig]] = {
    "default": default,
    "paper": paper,
    "quick": quick,
}


def recipe(name: str, backbone: str = "sasrec") -> RunConfig:
    """A recipe by name. Raises ValueError for an unknown recipe or backbone."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: there are {', '.join(RECIPES)}")
    return RECIPES[name](backbone)


def _backbone(name: str) -> BackboneConfig:
    return BackboneConfig(name=name, blocks=_BLOCKS.get(name, 6))
