"""`forward-ofa train`: a log in, a run folder out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from forward_ofa_cli import source
from forward_ofa_cli.console import TrainingProgress, console, duration, note, say
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.pairs import pairs
from forward_ofa_cli.report import show, systems

if TYPE_CHECKING:
    from forward_ofa.config import RunConfig
    from forward_ofa.data import SequenceDataset
    from forward_ofa.runs import Run

RunDir = Annotated[Path, typer.Option("--run-dir", help="The run's folder.")]
System = Annotated[
    str,
    typer.Option(help="What to train: forward-ofa, or a system to compare with (systems lists)."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: a GPU if there is one.")]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other value of the configuration, such as "
        "method.structure_until=0.7, or an option of the system's own; again for others.",
    ),
]


@source.with_source
def train(
    log: source.Source,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run's folder; left out: runs/LOG-BACKBONE, or -SYSTEM behind it."),
    ] = None,
    system: System = "forward-ofa",
    recipe: Annotated[
        str, typer.Option(help="default (minutes), paper (its settings, hours) or quick (seconds).")
    ] = "default",
    backbone: Annotated[str, typer.Option(help="sasrec or nextitnet.")] = "sasrec",
    device: Device = "auto",
    base_run: Annotated[
        Path | None,
        typer.Option(help="A run of the same log, backbone and seed: take its foundation and "
                     "DeviceRec instead of training them again."),
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option("--compare/--no-compare", help="Train DeviceRec too, to compare with; on "
                     "unless the recipe says otherwise.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --run-dir where it stopped.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Of the system.")] = None,
    device_rec_epochs: Annotated[int | None, typer.Option(help="Of DeviceRec.")] = None,
    foundation_epochs: Annotated[
        int | None, typer.Option(help="Of the foundation, in recipes that have one.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of DeviceRec and the system.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Of the system: networks a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn.")] = None,
    blocks: Annotated[int | None, typer.Option(help="L, blocks of the backbone.")] = None,
    hidden: Annotated[int | None, typer.Option(help="d, width.")] = None,
    history: Annotated[int | None, typer.Option(help="T, items that the network reads.")] = None,
    extractor_history: Annotated[
        int | None, typer.Option(help="Items that E and E' read at a refresh.")
    ] = None,
    compact_weight: Annotated[
        float | None, typer.Option(help="lambda; larger means fewer blocks.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="tau of the Gumbel softmax.")] = None,
    bases: Annotated[
        int | None,
        typer.Option(help="0: the paper's hypernetworks; r > 0: each block mixes r networks that "
                     "all devices share (trains faster)."),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(help="Items retrieved in the funnel's evaluation; serve has its own option."),
    ] = None,
    settings: Setting = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The report as JSON on stdout, the rest on stderr.")
    ] = False,
) -> None:  # fmt: skip
    """Train a system and DeviceRec on a log, choose epochs on validation, test once.

    Examples:

    `forward-ofa train --data ml-1m --run-dir runs/ml-1m`

    `forward-ofa train --data ml-1m --system duet --base-run runs/ml-1m`

    `forward-ofa train --data log.csv --item-column sku --epochs 5`

    `forward-ofa train --run-dir runs/ml-1m --resume`  goes on with log and settings as they were.
    """
    given = Given(
        own={"epochs": epochs, "batch_size": batch_size},
        every={"learning_rate": learning_rate, "seed": seed},
        named={
            "device_rec.epochs": device_rec_epochs,
            "foundation.training.epochs": foundation_epochs,
            "method.extractor_history": extractor_history,
            "method.compact_weight": compact_weight,
            "method.temperature": temperature,
            "method.bases": bases,
            "method.backbone.blocks": blocks,
            "method.backbone.hidden": hidden,
            "method.backbone.history": history,
            "candidates": candidates,
            "compare": compare,
        },
        texts=settings or (),
    )
    base = Base(recipe, backbone, system)
    with ranks(device) as (own_device, main):
        out = console(stderr=as_json) if main else Console(quiet=True)
        place = Place(run_dir, resume, base_run, own_device)
        run = _train(log, given, base, place, out)
    if not main:
        return
    if as_json:
        typer.echo(json.dumps(run.report, indent=2))
        return
    out.print()
    show(out, [systems(run.report)])
    served = run.config.system == "forward-ofa"
    then = f" Next: forward-ofa publish --run-dir {run.folder}" if served else ""
    say(out, f"The run is in {run.folder}.{then}")


@contextmanager
def ranks(device: str) -> Iterator[tuple[str, bool]]:
    """This process's device, and whether it is the one that talks: the only one, unless torchrun
    started several. Raises CommandError (usage) for a device that there is not."""
    from forward_ofa.distributed import is_main, joined

    with ExitStack() as stack:
        try:
            own = stack.enter_context(joined(device_named(device)))
        except ValueError as error:
            raise CommandError(str(error), Exit.USAGE) from None
        yield own, is_main()


@dataclass(frozen=True)
class Base:
    """What a configuration starts from, before options change it."""

    recipe: str
    backbone: str
    system: str = "forward-ofa"


@dataclass(frozen=True)
class Place:
    """Where a run is kept, whether it goes on, what it takes over, where it computes (as torch
    names it)."""

    run_dir: Path | None
    resume: bool
    base_run: Path | None
    device: str


Values = Mapping[str, int | float | None]


@dataclass(frozen=True)
class Given:
    """Options that were given, None: as the recipe has it.

    own: of the stage that trains the system. every: of DeviceRec too, and the seed of the
    foundation. named: by the setting's name. texts: NAME=VALUE of --set, which count most.
    """

    own: Values = field(default_factory=dict)
    every: Values = field(default_factory=dict)
    named: Values = field(default_factory=dict)
    texts: Sequence[str] = ()


def _train(chosen: source.Source, given: Given, base: Base, place: Place, out: Console) -> Run:
    from forward_ofa.distributed import main_first, own_folder
    from forward_ofa.runs import require_base

    begun = place.run_dir if place.resume and resumable(place.run_dir) else None
    if begun is not None:
        chosen = source.remembered(begun, chosen.data)
        config = overridden(stored_config(begun), given)
        with main_first():
            prepared = chosen.load(out)
    else:
        # What cannot be is refused before a long log is read.
        overridden(configured(base.recipe, base.backbone, system=base.system), given)
        with main_first():
            prepared = chosen.load(out)
        recipe = configured(
            base.recipe, base.backbone, prepared.num_interactions, base.system, prepared.num_users
        )
        config = overridden(recipe, given)
    folder = place.run_dir or Path("runs") / run_name(prepared.name, config)
    if not place.resume and (folder / "config.json").exists():
        raise CommandError(
            f"{folder} holds a run already: add --resume to go on with it, or give another "
            "--run-dir",
            Exit.BAD_VERSION,
        )
    for text in prepared.notes:
        note(out, text)
    require_base(prepared, config, folder, place.base_run)
    with own_folder(folder) as own:
        if begun is None:
            chosen.remember(own, prepared.name)
        run = train_and_tell(prepared, config, own, out, place.resume, place.base_run, place.device)
        # Of a run that goes on, only after it was found to be of this log.
        chosen.remember(own, prepared.name)
    return run


def run_name(log: str, config: RunConfig) -> str:
    """The folder below runs/ of a run that was given none."""
    suffix = "" if config.system == "forward-ofa" else f"-{config.system}"
    return f"{log}-{config.method.backbone.name}{suffix}"


def train_and_tell(
    data: SequenceDataset,
    config: RunConfig,
    folder: Path,
    out: Console,
    resume: bool,
    base: Path | None = None,
    device: str = "cpu",
) -> Run:
    """Train with protocol card and ETA first, then bars, then one line an epoch."""
    from forward_ofa.report import protocol
    from forward_ofa.runs import estimate_seconds, train_run

    for line in protocol(data, config):
        note(out, line)
    if base is not None:
        note(out, f"foundation and DeviceRec: those of the run in {base}")
    begun = folder if resume else None
    seconds = estimate_seconds(data, config, begun, base, device)
    where = "this machine" if device == "cpu" else f"{device} of this machine"
    out.print(f"  Training takes about {duration(seconds)} on {where}.")
    with TrainingProgress(out) as progress:
        return train_run(data, config, folder, progress, resume, base, device)


def device_named(name: str) -> str:
    """As torch names it; raises CommandError (usage) for a GPU that is not there."""
    from forward_ofa.devices import find_device

    try:
        return find_device(name)
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from None


def configured(
    recipe_name: str,
    backbone: str,
    interactions: int = 0,
    system: str = "forward-ofa",
    users: int = 0,
) -> RunConfig:
    """A recipe for a log of that size; raises CommandError (usage) for an unknown one."""
    from forward_ofa.recipes import recipe
    from forward_ofa_device.backbones import build

    try:
        config = recipe(recipe_name, backbone, interactions, system, users)
        build(config.method.backbone)
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    return config


def resumable(folder: Path | None) -> bool:
    """Whether a run was begun in a folder. Raises CommandError if none is named or it is over."""
    if folder is None:
        raise CommandError("--resume needs the folder of the run: give --run-dir", Exit.USAGE)
    if (folder / "report.json").exists():
        raise CommandError(
            f"the run in {folder} is complete: look at it with `forward-ofa evaluate --run-dir "
            f"{folder}`, or train anew in another --run-dir",
            Exit.BAD_VERSION,
        )
    return (folder / "config.json").exists()


def stored_config(folder: Path) -> RunConfig:
    """The configuration of an unfinished run. Raises CommandError if it cannot be read."""
    from forward_ofa.runs import run_config_from_json

    try:
        return run_config_from_json(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{folder / 'config.json'} is damaged ({error}): train anew in another --run-dir",
            Exit.BAD_VERSION,
        ) from None


def overridden(config: RunConfig, given: Given) -> RunConfig:
    """`config` with the values that were given; raises CommandError for impossible ones."""
    from forward_ofa.settings import full_name, require_used, with_settings

    try:
        texts = pairs("--set", given.texts)
        named = {full_name(name) for name in texts}
        flags = {name: v for name, v in _flags(config, given).items() if name not in named}
        if "foundation" in named:  # there is none then that a seed could be for
            flags.pop("foundation.training.seed", None)
        changed = with_settings(config, {**flags, **texts})
        require_used(changed, texts)
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    return changed


def _flags(config: RunConfig, given: Given) -> dict[str, Any]:
    """Options of their own as settings; raises ValueError for one that would not be read."""
    from forward_ofa.systems import DEVICE_REC, system_named

    system = system_named(config.system)
    own = "device_rec" if system.name == DEVICE_REC else "training"
    found = _chosen(given.named)
    found |= {f"{own}.{name}": value for name, value in _chosen(given.own).items()}
    for setting in found:
        flag = "--" + setting.rpartition(".")[2].replace("_", "-")
        if setting.startswith("foundation.") and config.foundation is None:
            raise ValueError("--foundation-epochs: this recipe has no foundation")
        if not system.uses(setting):
            raise ValueError(f"{flag}: {system.title} has no use for it")
    for name, value in _chosen(given.every).items():
        stages = ["device_rec", "training"]
        if name == "seed" and config.foundation is not None:
            stages.append("foundation.training")
        found |= {f"{stage}.{name}": value for stage in stages}
    return found


def _chosen(values: Values) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
