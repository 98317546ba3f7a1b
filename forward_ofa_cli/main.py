"""`forward-ofa`: the commands, and what happens when one fails."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from forward_ofa_cli import (
    cost,
    data,
    demo,
    device,
    evaluate,
    jobs,
    plan,
    publish,
    serve,
    systems,
    token,
    train,
    trainer,
    versions,
)
from forward_ofa_cli.console import printable
from forward_ofa_cli.errors import MEANING, Exit, explain

_CODES = "  \n".join(f"{code:d}  {text}" for code, text in MEANING.items())


class Commands(TyperGroup):
    """Turns the failures that users can cause into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.TyperException, typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(Exit.INTERRUPTED) from None
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            known = explain(error)
            code, text = known or (Exit.FAILED, f"unexpected {type(error).__name__}: {error}")
            hint = "" if known else " (run it again as `forward-ofa --debug ...` for the details)"
            message = printable(" ".join(text.split()))
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                Text.assemble(("error:", "bold red"), f" {message}{hint}")
            )
            raise typer.Exit(code) from None


app = typer.Typer(
    cls=Commands,
    name="forward-ofa",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=f"""A recommendation network made for each phone, in structure and parameters, in one
forward pass of the cloud and with no training on the phone.

In the order in which one uses them: **demo** shows everything; **data** lists public logs;
**systems**, **train**, **evaluate**, **publish**, **versions**, **serve**, **token**, **device**;
**cost** is the accounting, **plan** the capacity. For training as a service: **trainer**, **jobs**.

**Exit codes**

{_CODES}
""",
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback when something fails.")
    ] = False,
) -> None:
    """Options before the command; the group reads `debug` when a command fails."""


# What follows these commands belongs to the programs behind them, --help included.
_PASS_ON: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}

app.command("demo")(demo.demo)
app.command("data")(data.data)
app.command("train")(train.train)
app.command("systems")(systems.systems)
app.command("evaluate")(evaluate.evaluate)
app.command("publish")(publish.publish)
app.add_typer(versions.app, name="versions")
app.command("serve", context_settings=_PASS_ON)(serve.serve)
app.command("token")(token.token)
app.command("device", context_settings=_PASS_ON)(device.device)
app.command("cost")(cost.cost)
app.command("plan")(plan.plan)
app.command("trainer", context_settings=_PASS_ON)(trainer.trainer)
app.add_typer(jobs.app, name="jobs")


def main() -> None:
    """The entry point of the `forward-ofa` script."""
    app(prog_name="forward-ofa")
