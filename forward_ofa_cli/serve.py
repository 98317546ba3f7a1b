"""`forward-ofa serve`: the services, in one process or split by --target."""

from __future__ import annotations

import argparse
from pathlib import Path

import typer

from forward_ofa_cli.console import console, say
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.publish import DEFAULT_REGISTRY

_EPILOG = """examples:
  forward-ofa serve
      the newest registry (./registry or runs/*/registry), all services, 127.0.0.1:50051
  forward-ofa serve --registry registry --target mapper --listen 127.0.0.1:50053
  forward-ofa serve --registry registry --target assembler,controller --mapper 127.0.0.1:50053
      the same over two processes

SIGTERM and Ctrl-C drain: running calls end, health says NOT_SERVING meanwhile."""


def serve(context: typer.Context) -> None:
    """Run controller, assembler and mapper: gRPC with health and reflection, metrics over HTTP.

    All options are those of the services themselves: `forward-ofa serve --help` lists them.
    """
    from services.__main__ import run
    from services.options import make_parser

    if {"--help", "-h"} & set(context.args):
        _print_help(make_parser(find_registry=True))
        return
    run(context.args, _announced_registry)


def _print_help(parser: argparse.ArgumentParser) -> None:
    parser.prog = "forward-ofa serve"
    parser.description = (serve.__doc__ or "").partition("\n")[0]
    parser.epilog = _EPILOG
    parser.print_help()


def _announced_registry() -> Path:
    registry = newest_registry()
    say(console(stderr=True), f"Serving {registry}, the newest registry here.")
    return registry


def newest_registry() -> Path:
    """Of ./registry and runs/*/registry, the one whose label `stable` was moved last.

    Raises CommandError if there is none.
    """
    labels = [
        label
        for root in (Path(DEFAULT_REGISTRY), *Path("runs").glob("*/registry"))
        if (label := root / "labels" / "stable").is_file()
    ]
    if not labels:
        raise CommandError(
            "no registry here has a version with the label stable: run `make demo` or "
            "`forward-ofa publish`, or give --registry",
            Exit.BAD_VERSION,
        )
    return max(labels, key=lambda path: path.stat().st_mtime).parent.parent
