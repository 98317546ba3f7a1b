"""Every system by name: what it is, which stages train it, how it comes back from a run's folder.

A run is one system. It is trained in stages, each a `Task` that `training.fit` runs: the
foundation if the recipe has one, DeviceRec if the system starts from it or is compared with it,
then the system's own. To add a system: a file with its module (`ranking.RankingSystem`), its
options (`config.Options`) and its task (`tasks.NetworkTask`), and one entry in `SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import nn

from forward_ofa.ablations import ControllerOnly, MapperOnly, WithoutStructuralVector
from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.baselines.finetune import Finetune, FinetuneOptions, FinetuneTask
from forward_ofa.baselines.gater import Gater, GaterOptions, GaterTask, open_costs
from forward_ofa.baselines.litepred import (
    LitePred,
    LitePredOptions,
    LitePredTask,
    Supernet,
    SupernetTask,
)
from forward_ofa.baselines.rare_gem import (
    GemSearch,
    GemSearchTask,
    RareGem,
    RareGemOptions,
    RareGemTask,
    kept_costs,
)
from forward_ofa.baselines.sttd import STTD, STTDOptions, STTDTask, sttd_costs
from forward_ofa.config import MethodConfig, Options, RunConfig
from forward_ofa.cost import Costs, block_costs
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.foundation import Foundation
from forward_ofa.model import ForwardOFA
from forward_ofa.options import options_as, read_options
from forward_ofa.ranking import RankingSystem
from forward_ofa.tasks import (
    ControllerOnlyTask,
    DeviceRecTask,
    ForwardOFATask,
    FoundationTask,
    Task,
)

FOUNDATION = "foundation"
DEVICE_REC = "device-rec"
FORWARD_OFA = "forward-ofa"
GEM_SEARCH = "rare-gem-search"
SUPERNET = "litepred-supernet"

_CHOICE = (
    "temperature", "compact_weight", "compact_warmup", "structure_from", "structure_until",
    "keep_bias", "cut_probability",
)  # fmt: skip
_STRUCTURE = ("extractor_history", *_CHOICE)
_METHOD = tuple(
    field.name for field in fields(MethodConfig) if field.name not in ("backbone", "dropout")
)
_MAPPER = tuple(name for name in _METHOD if name not in _CHOICE)


@dataclass(frozen=True)
class Context:
    """What a stage may start from. trained: the stages before it, by name, trained."""

    data: SequenceDataset
    config: RunConfig
    trained: Mapping[str, nn.Module]

    @property
    def foundation(self) -> Foundation | None:
        """None: the recipe has none."""
        found = self.trained.get(FOUNDATION)
        assert found is None or isinstance(found, Foundation)
        return found

    @property
    def device_rec(self) -> DeviceRec:
        """Only for a system that `needs_device_rec`."""
        found = self.trained[DEVICE_REC]
        assert isinstance(found, DeviceRec)
        return found

    @property
    def warm_start(self) -> DeviceRec | None:
        """The trained DeviceRec, if generated networks are to start from it."""
        return self.device_rec if self.config.warm_start else None


@dataclass(frozen=True)
class Stage:
    """name: of its files and records. task: made when the stages before it are trained."""

    name: str
    task: Callable[[Context], Task[Any]]


def _same(config: RunConfig) -> RunConfig:
    return config


def _as_device_rec(config: RunConfig) -> RunConfig:
    """A recipe for a system that is trained as DeviceRec is: a recipe's last stage is made for
    generated networks, and starts from a trained DeviceRec."""
    return replace(config, training=config.device_rec, warm_start=False)


def _without_compact_loss(config: RunConfig) -> RunConfig:
    method = replace(config.method, compact_weight=0.0, cut_probability=0.0)
    return replace(config, method=method)


def _dense_costs(config: RunConfig) -> Costs:
    """All blocks, dense."""
    backbone = config.method.backbone
    return block_costs(backbone, np.array([backbone.blocks]))


@dataclass(frozen=True)
class System:
    """One system of the paper.

    name: of `--system` and of files. title: as tables have it. about: one line.
    task: its own last stage. build: the same module untrained, to load weights into.
    before: own stages before that one. options: the class of its settings, if it has any.
    needs_device_rec: DeviceRec is trained first, whatever the recipe says.
    reads: what of `MethodConfig`, backbone and dropout apart, it reads.
    starts_warm: it starts from the trained DeviceRec if `RunConfig.warm_start` says so.
    own_steps: it is trained in steps; else all that it reads of `RunConfig.training` is the seed.
        DeviceRec's are those of `RunConfig.device_rec`.
    adapt: turns a recipe made for Forward-OFA into one for this system.
    costs: of one device's network ([1] arrays) by its settings alone; the dearest that there can
        be, where devices have different ones.
    """

    name: str
    title: str
    about: str
    task: Callable[[Context], Task[Any]]
    build: Callable[[RunConfig, int], RankingSystem]
    before: tuple[Stage, ...] = ()
    options: type[Options] | None = None
    needs_device_rec: bool = False
    reads: tuple[str, ...] = ()
    starts_warm: bool = False
    own_steps: bool = True
    adapt: Callable[[RunConfig], RunConfig] = _as_device_rec
    costs: Callable[[RunConfig], Costs] = _dense_costs

    def uses(self, setting: str) -> bool:
        """Whether it reads a field of `RunConfig`, named like "method.bases", "training.seed"."""
        stage, _, name = setting.partition(".")
        if stage == "method":
            return name in (*self.reads, "dropout") or name.startswith("backbone")
        if stage == "training":
            return self.name != DEVICE_REC and (self.own_steps or name == "seed")
        return setting != "warm_start" or self.starts_warm

    def stages(self, config: RunConfig) -> list[Stage]:
        """What is trained, in order; the last is the system itself."""
        found = [] if config.foundation is None else [Stage(FOUNDATION, _foundation)]
        base = self.needs_device_rec or config.compare or config.warm_start
        if base and self.name != DEVICE_REC:
            found.append(Stage(DEVICE_REC, _device_rec))
        return [*found, *self.before, Stage(self.name, self.task)]


def _foundation(context: Context) -> FoundationTask:
    foundation = context.config.foundation
    assert foundation is not None
    return FoundationTask(context.data, foundation, context.config.method.backbone.hidden)


def _device_rec(context: Context) -> DeviceRecTask:
    config = context.config
    return DeviceRecTask(context.data, config.method, config.device_rec, context.foundation)


def _build_device_rec(config: RunConfig, items: int) -> DeviceRec:
    return DeviceRec(items, config.method.backbone, config.method.dropout)


def _generated(
    name: str, title: str, about: str, kind: type[ForwardOFA],
    reads: tuple[str, ...], adapt: Callable[[RunConfig], RunConfig] = _same,
) -> System:  # fmt: skip
    """Forward-OFA, or what is trained as it is."""

    def task(context: Context) -> ForwardOFATask:
        config = context.config
        return ForwardOFATask(
            context.data, config.method, config.training, context.warm_start, context.foundation,
            kind, title,
        )  # fmt: skip

    return System(
        name, title, about, task, lambda config, items: kind(items, config.method),
        reads=reads, adapt=adapt, starts_warm=True,
    )  # fmt: skip


def _controller_only(context: Context) -> ControllerOnlyTask:
    config = context.config
    return ControllerOnlyTask(
        context.data, config.method, config.training, context.warm_start, context.foundation
    )


def _finetune(context: Context) -> FinetuneTask:
    config = context.config
    return FinetuneTask(
        context.data, config.method, config.training, context.device_rec,
        options_as(config, FinetuneOptions),
    )  # fmt: skip


def _build_finetune(config: RunConfig, items: int) -> Finetune:
    return Finetune(items, config.method, options_as(config, FinetuneOptions))


def _rare_gem_search(context: Context) -> GemSearchTask:
    config = context.config
    return GemSearchTask(
        context.data, config.method, config.training, options_as(config, RareGemOptions),
        context.foundation,
    )  # fmt: skip


def _rare_gem(context: Context) -> RareGemTask:
    config, search = context.config, context.trained[GEM_SEARCH]
    assert isinstance(search, GemSearch)
    options = options_as(config, RareGemOptions)
    return RareGemTask(context.data, config.method, config.training, options, search)


def _rare_gem_costs(config: RunConfig) -> Costs:
    return kept_costs(config.method.backbone, options_as(config, RareGemOptions))


def _build_rare_gem(config: RunConfig, items: int) -> RareGem:
    return RareGem(items, config.method.backbone, config.method.dropout)


def _sttd(context: Context) -> STTDTask:
    config = context.config
    return STTDTask(
        context.data, config.method, config.training, options_as(config, STTDOptions),
        context.device_rec, context.foundation,
    )  # fmt: skip


def _sttd_costs(config: RunConfig) -> Costs:
    return sttd_costs(config.method.backbone, options_as(config, STTDOptions))


def _build_sttd(config: RunConfig, items: int) -> STTD:
    method = config.method
    return STTD(items, method.backbone, method.dropout, options_as(config, STTDOptions))


def _gater(context: Context) -> GaterTask:
    config = context.config
    return GaterTask(
        context.data, config.method, config.training, options_as(config, GaterOptions),
        context.foundation,
    )  # fmt: skip


def _gater_costs(config: RunConfig) -> Costs:
    return open_costs(config.method.backbone, options_as(config, GaterOptions))


def _build_gater(config: RunConfig, items: int) -> Gater:
    method = config.method
    return Gater(items, method.backbone, method.dropout, options_as(config, GaterOptions))


def _supernet(context: Context) -> SupernetTask:
    config = context.config
    return SupernetTask(
        context.data, config.method, config.training, options_as(config, LitePredOptions),
        context.foundation,
    )  # fmt: skip


def _litepred(context: Context) -> LitePredTask:
    config, supernet = context.config, context.trained[SUPERNET]
    assert isinstance(supernet, Supernet)
    options = options_as(config, LitePredOptions)
    return LitePredTask(context.data, config.method, config.training, options, supernet)


def _litepred_costs(config: RunConfig) -> Costs:
    backbone = config.method.backbone
    most = options_as(config, LitePredOptions).most_blocks(backbone)
    return block_costs(backbone, np.array([most]))


def _build_litepred(config: RunConfig, items: int) -> LitePred:
    method = config.method
    return LitePred(items, method.backbone, method.dropout, options_as(config, LitePredOptions))


_ALL = (
    _generated(
        FORWARD_OFA, "Forward-OFA", "a network for each device, in structure and parameters",
        ForwardOFA, _METHOD,
    ),
    System(
        DEVICE_REC, "DeviceRec", "one dense network for all devices",
        _device_rec, _build_device_rec,
    ),
    System(
        "finetune", "Finetune", "DeviceRec, tuned by each device on its own history",
        _finetune, _build_finetune, options=FinetuneOptions, needs_device_rec=True,
        own_steps=False,
    ),
    System(
        "rare-gem", "Rare Gem", "a sparse network, found in a random one, then trained",
        _rare_gem, _build_rare_gem, (Stage(GEM_SEARCH, _rare_gem_search),), RareGemOptions,
        costs=_rare_gem_costs,
    ),
    System(
        "sttd", "STTD", "matrices made of small cores, taught by DeviceRec",
        _sttd, _build_sttd, options=STTDOptions, needs_device_rec=True, costs=_sttd_costs,
    ),
    System(
        "gater", "Gater", "a gate for every output filter, set by the window",
        _gater, _build_gater, options=GaterOptions, costs=_gater_costs,
    ),
    System(
        "litepred", "LitePred", "a path for each device through a supernet, by a predictor",
        _litepred, _build_litepred, (Stage(SUPERNET, _supernet),), LitePredOptions,
        costs=_litepred_costs,
    ),
    _generated(
        "duet", "DUET", "parameters for each device from its behaviour, all blocks kept",
        MapperOnly, _MAPPER, _without_compact_loss,
    ),
    _generated(
        "plus-mapper", "+mapper", "ablation: no structure controller; the same system as duet",
        MapperOnly, _MAPPER, _without_compact_loss,
    ),
    System(
        "plus-controller", "+controller", "ablation: a path for each device through shared blocks",
        _controller_only, lambda config, items: ControllerOnly(items, config.method),
        reads=_STRUCTURE, adapt=_same, starts_warm=True,
    ),
    _generated(
        "no-structural-vector", "w.o. structural vector",
        "ablation: Forward-OFA whose parameters do not know the structure",
        WithoutStructuralVector, _METHOD,
    ),
)  # fmt: skip
SYSTEMS: dict[str, System] = {system.name: system for system in _ALL}


def system_named(name: str) -> System:
    """Raises ValueError for an unknown name; the message lists those that there are."""
    if name not in SYSTEMS:
        raise ValueError(f"unknown system {name!r}: there are {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def options_of(system: System, raw: Mapping[str, Any]) -> Options | None:
    """A system's options with these values, as JSON or text has them; None if it has none.

    Raises ValueError for an unknown name or a value that is not of the field's type or range.
    """
    if system.options is not None:
        return read_options(system.options, raw)
    if raw:
        raise ValueError(
            f"system {system.name} has no options of its own; what all systems have are options "
            "of the command, such as --compact-weight"
        )
    return None
