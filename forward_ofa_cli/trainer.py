"""`forward-ofa trainer`: the processes behind `forward-ofa jobs`."""

from __future__ import annotations

import typer

from forward_ofa_cli.errors import CommandError, Exit

_EPILOG = """examples:
  forward-ofa trainer up
      Redis, gRPC service on 127.0.0.1:50071, beat and worker, until Ctrl-C
  forward-ofa trainer worker --broker redis://jobs:6379/0 --registry s3://bucket/prefix
      one more worker on another machine"""


def trainer(context: typer.Context) -> None:
    """Run the trainer: everything on this machine (up), or one more worker, or the beat.

    All options are those of the processes: `forward-ofa trainer up --help` lists them.
    """
    try:
        from services.trainer.__main__ import main, make_parser
    except ImportError as error:
        raise CommandError(
            f"the trainer's packages are not installed ({error}): `make trainer` does that, or "
            "install requirements/trainer.txt"
        ) from None
    if not context.args or set(context.args[:1]) & {"--help", "-h"}:
        parser = make_parser()
        parser.prog, parser.epilog = "forward-ofa trainer", _EPILOG
        parser.print_help()
        return
    raise typer.Exit(main(context.args) or Exit.OK)
