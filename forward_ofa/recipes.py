"""Recipes by name. Each promises what it is for, how long it takes and what to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forward_ofa.config import FoundationConfig, MethodConfig, RunConfig, TrainingConfig
from forward_ofa.systems import options_of, system_named
from forward_ofa_device.backbones.contract import BackboneConfig

_BLOCKS = {"sasrec": 6, "nextitnet": 12}
_EXTRACTOR_HISTORY = 50
_PAPER_LEARNING_RATE = {"sasrec": 1e-3, "nextitnet": 2e-3}


def default(backbone: str, interactions: int, users: int = 0) -> RunConfig:
    """`forward-ofa train`: the best that we know for minutes on two CPU cores.

    MovieLens-100K: about 6 minutes, MovieLens-1M: half an hour to an hour; figures in
    experiments/LOG.md, reasons in docs/adr/0009. Larger logs get fewer epochs. Where histories are
    shorter in the mean than what the extractors read, the cloud's query is added to what networks
    put out (fusion.py); on MovieLens, where they are longer, the best weight is 0.
    """
    method = MethodConfig(
        backbone=replace(_backbone(backbone), norm="pre"),
        extractor_history=_EXTRACTOR_HISTORY,
        compact_weight=0.003,
        structure_until=0.5,
        spread=0.1,
        cut_probability=0.1,
        fusion=interactions < users * _EXTRACTOR_HISTORY,
    )
    return RunConfig(
        method=method,
        foundation=FoundationConfig(
            TrainingConfig(epochs=_epochs(24, 8, interactions), batch_size=16, learning_rate=4e-3),
            dropout=0.3,
        ),
        device_rec=TrainingConfig(epochs=_epochs(4, 2, interactions)),
        training=TrainingConfig(
            epochs=_epochs(4, 2, interactions),
            batch_size=64,
            targets_per_network=8,
            learning_rate=1.5e-3,
        ),
        warm_start=True,
    )


def paper(backbone: str, interactions: int, users: int = 0) -> RunConfig:
    """`forward-ofa train --recipe paper`: the KDD 2025 paper's settings for MovieLens-1M.

    T = 5 for the extractors too, a fresh network for every prediction, no foundation, no warm
    start, no drawn budgets; learning rate, lambda and tau from its Section 4.1.4. Epochs and
    batch size are not disclosed: 20 and 256 here; nor is dropout: 0.2. The cloud's retrieval,
    which the paper leaves out, is trained apart: the rest learns from Eq. 12 alone. Ours too are
    the first logit and the spread of generated matrices (`MethodConfig`), and the largest norm of
    a gradient (`TrainingConfig`). Hours on a CPU for MovieLens-1M.
    """
    nextitnet = backbone == "nextitnet"
    method = MethodConfig(
        backbone=_backbone(backbone),
        extractor_history=5,
        temperature=12.0 if nextitnet else 5.0,
        compact_weight=0.001 if nextitnet else 0.005,
        compact_warmup=0.0,
        retrieval_apart=True,
    )
    training = TrainingConfig(
        epochs=20,
        learning_rate=_PAPER_LEARNING_RATE.get(backbone, 1e-3),
        warmup_steps=0,
        decay_from=1.0,
    )
    return RunConfig(method=method, device_rec=training, training=training, warm_start=False)


def quick(backbone: str, interactions: int, users: int = 0) -> RunConfig:
    """`forward-ofa train --recipe quick`: one short epoch each, to see that everything works.

    Seconds on a small log; the figures mean nothing.
    """
    config = default(backbone, interactions, users)
    foundation = FoundationConfig(TrainingConfig(epochs=1, batch_size=16, learning_rate=2e-3))
    return replace(
        config,
        method=replace(config.method, extractor_history=10),
        foundation=foundation,
        device_rec=replace(config.device_rec, epochs=1),
        training=replace(config.training, epochs=1, targets_per_network=16),
    )


RECIPES: dict[str, Callable[[str, int, int], RunConfig]] = {
    "default": default,
    "paper": paper,
    "quick": quick,
}


def recipe(
    name: str, backbone: str, interactions: int, system: str = "forward-ofa", users: int = 0
) -> RunConfig:
    """A recipe by name, as a system uses it, for a log of so many interactions of so many users
    after the filter; 0: not known yet.

    Raises ValueError for an unknown recipe, backbone or system.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: there are {', '.join(RECIPES)}")
    chosen = system_named(system)
    config = chosen.adapt(RECIPES[name](backbone, interactions, users))
    return replace(config, system=system, options=options_of(chosen, {}))


def _backbone(name: str) -> BackboneConfig:
    return BackboneConfig(name=name, blocks=_BLOCKS.get(name, 6))


def _epochs(small: int, large: int, interactions: int) -> int:
    """`small` up to 100,000 interactions, `large` from 1,000,000 on, linear in between."""
    share = min(max((interactions - 100_000) / 900_000, 0.0), 1.0)
    return round(small + share * (large - small))
