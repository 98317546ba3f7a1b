"""`forward-ofa device`: devices that ask a running controller, without torch in their process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import typer

from forward_ofa_cli import lives
from forward_ofa_cli.errors import CommandError, Exit, unreachable

_FAILED = 1


def device(context: typer.Context) -> None:
    """Run devices against a controller, in a process of their own, without torch, as on phones.

    `one` is a single device that tells what it does; `population` is many of them, with the
    command of the device SDK; `lives` writes their histories. Each has a `--help` of its own.

    Examples:

    `forward-ofa device one --controller 127.0.0.1:50051 --history 50,181,258`

    `forward-ofa device lives --data ml-100k --out lives.jsonl`

    `forward-ofa device population --controller 127.0.0.1:50051 --histories lives.jsonl
    --state devices --out steps.jsonl`

    Exit codes: 0 every device got a network, 1 some did not, 2 wrong input, 3 torch got into the
    devices' process, 5 the controller cannot be reached.
    """
    arguments = context.args
    if arguments in ([], ["--help"], ["-h"]):
        typer.echo(context.get_help())
        return
    if arguments[0] == "lives":
        lives.run(arguments[1:])
        return
    if arguments[0] == "one":
        command = [sys.executable, "-m", "forward_ofa_cli.one_device", *arguments[1:]]
        raise typer.Exit(subprocess.run(command, env=os.environ, check=False).returncode)
    command = [sys.executable, "-m", "forward_ofa_device", *arguments]
    code = subprocess.run(command, env=os.environ, check=False).returncode
    address = _option(arguments, "--controller")
    if code == _FAILED and address is not None and not reachable(address):
        raise CommandError(unreachable(address), Exit.UNREACHABLE)
    raise typer.Exit(code)


def reachable(address: str) -> bool:
    """Whether something accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _option(arguments: Sequence[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
    return None
