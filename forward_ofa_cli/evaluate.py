"""`forward-ofa evaluate`: the figures of a trained run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from forward_ofa_cli import source
from forward_ofa_cli.console import console, note
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.report import show, systems
from forward_ofa_cli.train import RunDir


def evaluate(
    run_dir: RunDir,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    data: Annotated[
        str | None, typer.Option(help="Where the log is now, if it is no longer where it was.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Evaluate a run: full ranking over the catalogue, and the deployed funnel.

    Choose settings on `--split validation` and look at `test` once, at the end.

    Example: `forward-ofa evaluate --run-dir runs/ml-1m --split validation`
    """
    from forward_ofa.runs import evaluate_run, load_run

    if split not in ("validation", "test"):
        raise CommandError(f"--split {split}: use validation or test.", Exit.USAGE)
    out = console(stderr=as_json)
    run = load_run(run_dir)
    report = evaluate_run(run, source.remembered(run_dir, data).load(out), split)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for line in report["protocol"]:
        note(out, line)
    show(out, [systems(report)])
