"""`forward-ofa evaluate`: the figures of a trained run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from forward_ofa_cli import source
from forward_ofa_cli.console import console, note
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.report import show, systems
from forward_ofa_cli.train import Device, RunDir, device_named

if TYPE_CHECKING:
    from forward_ofa.ablations import ReplacedBlocks
    from forward_ofa.runs import Run


def evaluate(
    run_dir: RunDir,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    data: Annotated[
        str | None, typer.Option(help="Where the log is now, if it is no longer where it was.")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Ablation: random, first or last blocks, as many as Forward-OFA chose."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random blocks.")] = 0,
    age: Annotated[
        int,
        typer.Option(
            help="Networks as they are after so many more items, with the window of now.",
            min=0,
            max=100_000,
        ),
    ] = 0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Evaluate a run: ranking of the whole catalogue, of what is not seen, and the deployed funnel.

    Choose settings on `--split validation` and look at `test` once, at the end.

    Examples:

    `forward-ofa evaluate --run-dir runs/ml-1m --split validation`

    `forward-ofa evaluate --run-dir runs/ml-1m --blocks random`

    `forward-ofa evaluate --run-dir runs/ml-1m --age 10`
    """
    from forward_ofa.runs import evaluate_run, load_run

    if split not in ("validation", "test"):
        raise CommandError(f"--split {split}: use validation or test.", Exit.USAGE)
    out = console(stderr=as_json)
    run = load_run(run_dir, device_named(device))
    variant = None if blocks is None else _replaced(run, blocks, seed)
    log = source.remembered(run_dir, data).load(out)
    report = evaluate_run(run, log, split, variant, age)
    if blocks is not None:
        chosen = f"blocks: {blocks} ones, as many as the structure controller chose"
        report["protocol"].append(chosen + (f", seed {seed}" if blocks == "random" else ""))
    if age:
        report["protocol"].append(f"age: networks made {age} items before the one to predict")
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for line in report["protocol"]:
        note(out, line)
    show(out, [systems(report)])


def _replaced(run: Run, blocks: str, seed: int) -> ReplacedBlocks:
    """The run's Forward-OFA with other blocks; raises CommandError (usage) for an unknown way."""
    from forward_ofa.ablations import ReplacedBlocks

    if run.config.system != "forward-ofa":
        raise CommandError(f"--blocks: {run.folder} is no run of forward-ofa", Exit.USAGE)
    try:
        return ReplacedBlocks(run.forward_ofa, blocks, seed)
    except ValueError as error:
        raise CommandError(f"--blocks: {error}", Exit.USAGE) from None
