"""`forward-ofa data`: the public data sets that `--data NAME` downloads."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from forward_ofa_cli.console import console


def data(
    matching: Annotated[
        str, typer.Argument(help="Only names with this in them, in any case.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """List the public data sets that `--data NAME` downloads, with address and digest.

    Example: `forward-ofa data amazon-2023-5core`
    """
    from forward_ofa.data import DATASETS

    found = {name: sets for name, sets in DATASETS.items() if matching.lower() in name.lower()}
    if as_json:
        typer.echo(json.dumps({name: asdict(sets) for name, sets in found.items()}, indent=2))
        return
    table = Table("name", "what", "address", "digest")
    for name, sets in found.items():
        digest = sets.digest or "not published: the first download's is recorded"
        table.add_row(name, sets.title, sets.url, digest)
    console().print(table)
