"""`forward-ofa token`: make and revoke devices' API tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forward_ofa_cli.console import console
from forward_ofa_cli.errors import CommandError, Exit


def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; a name may have several.")],
    file: Annotated[Path, typer.Option("--file", help="Where digests are kept.")] = Path("tokens"),
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Remove all tokens of this name instead.")
    ] = False,
) -> None:
    """Make an API token for devices and print it, this once: the file keeps its SHA-256 only.

    Running services that were given the file as `--tokens` accept it within a second. To
    rotate, make one under another name, hand it out, then revoke the old name.

    Example: `forward-ofa token kiosk-17 --file tokens > kiosk-17.token`
    """
    from services.runtime.tokens import add_token, revoke_tokens

    try:
        if revoke:
            count = revoke_tokens(file, name)
            if not count:
                raise CommandError(f"{file} has no token of {name}")
            console(stderr=True).print(f"{count} of {name} removed from {file}.", markup=False)
            return
        made = add_token(file, name)
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from error
    typer.echo(made)
    console(stderr=True).print(f"Digest added to {file}; the token is not kept.", markup=False)
