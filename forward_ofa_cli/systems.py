"""`forward-ofa systems`: what `--system` can name, and each system's own options."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from forward_ofa_cli.console import console, note


def systems(
    as_json: Annotated[bool, typer.Option("--json", help="Names, options and defaults.")] = False,
) -> None:
    """The systems that can be trained, and what `--set NAME=VALUE` can change in each.

    Example: `forward-ofa train --system finetune --set steps=1,5 --set rates=0.01,0.1`
    """
    from forward_ofa.systems import SYSTEMS

    listed: list[dict[str, Any]] = [
        {
            "system": system.name,
            "title": system.title,
            "about": system.about,
            "options": {} if system.options is None else dataclasses.asdict(system.options()),
            "help": "" if system.options is None else system.options.__doc__ or "",
        }
        for system in SYSTEMS.values()
    ]
    if as_json:
        typer.echo(json.dumps(listed, indent=2))
        return
    out = console()
    for entry in listed:
        out.print(f"[bold]{entry['system']}[/]  {escape(entry['title'])}: {escape(entry['about'])}")
        for name, value in entry["options"].items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            note(out, f"--set {name}={text}")
        for paragraph in entry["help"].split("\n\n")[1:]:
            note(out, " ".join(paragraph.split()))
