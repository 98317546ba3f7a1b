"""`forward-ofa train`: a log in, a run folder out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from forward_ofa_cli import source
from forward_ofa_cli.console import TrainingProgress, console, duration, note
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.report import show, systems

if TYPE_CHECKING:
    from forward_ofa.config import RunConfig
    from forward_ofa.data import SequenceDataset
    from forward_ofa.runs import Run

RunDir = Annotated[Path, typer.Option("--run-dir", help="The run's folder.")]


def train(
    data: source.Data = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The run's folder; left out: runs/LOG-BACKBONE."),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="default (minutes), paper (its settings, hours) or quick (seconds).")
    ] = "default",
    backbone: Annotated[str, typer.Option(help="sasrec or nextitnet.")] = "sasrec",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --run-dir where it stopped.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Of Forward-OFA.")] = None,
    device_rec_epochs: Annotated[int | None, typer.Option(help="Of DeviceRec.")] = None,
    foundation_epochs: Annotated[
        int | None, typer.Option(help="Of the foundation, in recipes that have one.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of DeviceRec and Forward-OFA.")
    ] = None,
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
    candidates: Annotated[
        int | None,
        typer.Option(help="Items retrieved in the funnel's evaluation; serve has its own option."),
    ] = None,
    user_column: source.UserColumn = None,
    item_column: source.ItemColumn = None,
    time_column: source.TimeColumn = None,
    min_user: source.MinUser = None,
    min_item: source.MinItem = None,
    cache: source.Cache = source.CACHE,
    as_json: Annotated[
        bool, typer.Option("--json", help="The report as JSON on stdout, the rest on stderr.")
    ] = False,
) -> None:
    """Train DeviceRec and Forward-OFA on a log, choose epochs on validation, test once.

    Examples:

    `forward-ofa train --data ml-1m --run-dir runs/ml-1m`

    `forward-ofa train --data log.csv --item-column sku --epochs 5`

    `forward-ofa train --run-dir runs/ml-1m --resume`  goes on with log and settings as they were.
    """
    out = console(stderr=as_json)
    begun = run_dir if resume and resumable(run_dir) else None
    if begun is not None:
        chosen = source.remembered(begun, data)
        prepared = chosen.load(out)
        config = stored_config(begun)
    else:
        chosen = source.Source(
            data, user_column, item_column, time_column, min_user, min_item, str(cache)
        )
        configured(recipe, backbone)  # an unknown one is refused before a long log is read
        prepared = chosen.load(out)
        config = configured(recipe, backbone, prepared.num_interactions)
    config = overridden(
        config,
        training={"epochs": epochs, "learning_rate": learning_rate, "seed": seed},
        device_rec={"epochs": device_rec_epochs, "learning_rate": learning_rate, "seed": seed},
        foundation={"epochs": foundation_epochs, "seed": seed},
        method={
            "extractor_history": extractor_history,
            "compact_weight": compact_weight,
            "temperature": temperature,
        },
        backbone={"blocks": blocks, "hidden": hidden, "history": history},
        run={"candidates": candidates},
    )
    folder = run_dir or Path("runs") / f"{prepared.name}-{config.method.backbone.name}"
    if not resume and (folder / "config.json").exists():
        raise CommandError(
            f"{folder} holds a run already: add --resume to go on with it, or give another "
            "--run-dir",
            Exit.BAD_VERSION,
        )
    if begun is None:
        chosen.remember(folder, prepared.name)
    run = train_and_tell(prepared, config, folder, out, resume)
    # Of a run that goes on, only after it was found to be of this log.
    chosen.remember(folder, prepared.name)
    if as_json:
        typer.echo(json.dumps(run.report, indent=2))
        return
    out.print()
    show(out, [systems(run.report)])
    out.print(f"The run is in {folder}. Next: forward-ofa publish --run-dir {folder}")


def train_and_tell(
    data: SequenceDataset, config: RunConfig, folder: Path, out: Console, resume: bool
) -> Run:
    """Train with protocol card and ETA first, then bars, then one line an epoch."""
    from forward_ofa.report import protocol
    from forward_ofa.runs import estimate_seconds, train_run

    for line in protocol(data, config):
        note(out, line)
    out.print(f"  Training takes about {duration(estimate_seconds(data, config))} on this machine.")
    with TrainingProgress(out) as progress:
        return train_run(data, config, folder, progress, resume)


def configured(recipe_name: str, backbone: str, interactions: int = 0) -> RunConfig:
    """A recipe for a log of that size; raises CommandError (usage) for an unknown one."""
    from forward_ofa.recipes import recipe
    from forward_ofa_device.backbones import build

    try:
        config = recipe(recipe_name, backbone, interactions)
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


Given = Mapping[str, int | float | None]


def overridden(
    config: RunConfig,
    *,
    training: Given,
    device_rec: Given,
    foundation: Given,
    method: Given,
    backbone: Given,
    run: Given,
) -> RunConfig:
    """`config` with the values that were given; raises CommandError for impossible ones."""

    def chosen(values: Given) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    first = config.foundation
    if first is None and foundation.get("epochs") is not None:
        raise CommandError("--foundation-epochs: this recipe has no foundation", Exit.USAGE)
    try:
        if first is not None:
            first = replace(first, training=replace(first.training, **chosen(foundation)))
        return replace(
            config,
            foundation=first,
            training=replace(config.training, **chosen(training)),
            device_rec=replace(config.device_rec, **chosen(device_rec)),
            method=replace(
                config.method,
                backbone=replace(config.method.backbone, **chosen(backbone)),
                **chosen(method),
            ),
            **chosen(run),
        )
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from None
