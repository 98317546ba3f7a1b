"""`forward-ofa device lives`: histories for simulated devices, cut out of a log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.main import get_command

from forward_ofa_cli import source
from forward_ofa_cli.console import console
from forward_ofa_cli.errors import CommandError

if TYPE_CHECKING:
    from forward_ofa.data import SequenceDataset

SHOWN_TOUCHES = 20
"""Last items of a user that a device lives through, at most half of all; the very last is the
test item. Many enough for an interest to shift on the way."""


def run(arguments: Sequence[str]) -> None:
    """The command. Raises CommandError, DataError, typer's errors of usage."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    app.command()(lives)
    name = "forward-ofa device lives"
    get_command(app).main(list(arguments), prog_name=name, standalone_mode=False)


@source.with_source
def lives(
    log: source.Source,
    out: Annotated[Path, typer.Option(help="The file that `population` takes as --histories.")],
    devices: Annotated[int, typer.Option(min=1, help="Users to take, evenly chosen.")] = 100,
) -> None:
    """Write real users' histories of a log, one line a device.

    The version that is asked for networks must be of the same log, else no item is known.

    Example: `forward-ofa device lives --data ml-100k --out lives.jsonl`
    """
    said = console(stderr=True)
    data = log.load(said)
    writing = out.with_name(out.name + ".writing")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        count = write_lives(data, devices, writing)
        writing.replace(out)
    except OSError as error:
        raise CommandError(f"{out} cannot be written: {error.strerror}") from None
    said.print(f"{count} users of {data.name}: {out}", markup=False)


def write_lives(data: SequenceDataset, devices: int, path: Path) -> int:
    """One line a user, evenly chosen over all users: history, then what they really did next.

    Returns how many users there are, `devices` at most.
    """
    count = min(devices, data.num_users)
    with path.open("w") as file:
        for index in range(count):
            user = index * data.num_users // count
            items = [data.item_ids[item - 1] for item in data.history(user)]
            cut = len(items) - min(SHOWN_TOUCHES, len(items) // 2)
            life = {
                "device": data.user_ids[user],
                "history": items[:cut],
                "next": items[cut:],
            }
            file.write(json.dumps(life) + "\n")
    return count
