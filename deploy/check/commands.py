"""Rules about the command lines: what a container is told is what the program takes."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer.main

from deploy.check.objects import World
from deploy.check.pods import OURS, image_name
from forward_ofa_cli.main import app
from services.options import make_parser
from services.runtime.checks import SettingsError
from services.settings import parse_targets
from services.trainer.__main__ import make_parser as make_trainer_parser

# Variables that libraries read by themselves.
_OF_LIBRARIES = {"OMP_NUM_THREADS"}


def commands(world: World) -> Iterator[str]:
    """Each of our containers' arguments are read by the parser of the command that it runs."""
    for each in world.workloads:
        for container in each.containers:
            if image_name(container["image"]) in OURS:
                for arguments in _told(world, container):
                    said = refused(arguments)
                    if said:
                        yield f"{each.name}: {container['name']}: {said}"


def _told(world: World, container: Any) -> Iterator[list[str]]:
    """The arguments of `forward-ofa`: the container's, or those of each line of its script."""
    arguments = world.arguments(container)
    if "command" not in container:
        yield arguments
        return
    for line in re.findall(r"(?m)(?:^|\$\()forward-ofa ([^)\n]+)", container["command"][2]):
        words = [[word] if word != "$@" else arguments for word in shlex.split(line)]
        yield [word for group in words for word in group]


def refused(arguments: list[str]) -> str:
    """What `forward-ofa` has against these arguments; empty: nothing."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
            if arguments[:1] == ["serve"]:
                parse_targets(make_parser().parse_args(arguments[1:]).target)
            elif arguments[:1] == ["trainer"]:
                make_trainer_parser().parse_args(arguments[1:])
            else:
                return _click_refuses(arguments)
    except SettingsError as error:
        return str(error)
    except SystemExit:
        return shown.getvalue().strip().rpartition("\n")[2]
    return ""


def _click_refuses(arguments: list[str]) -> str:
    command = typer.main.get_command(app)
    context = command.make_context("forward-ofa", list(arguments), resilient_parsing=True)
    rest = list(arguments)
    while rest and hasattr(command, "commands") and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):
        return f"there is no command {' '.join(arguments[:2])!r}"
    try:
        command.make_context(command.name or "", rest, parent=context)
    except Exception as error:
        return str(getattr(error, "message", error)) or type(error).__name__
    return ""


def variables(world: World) -> Iterator[str]:
    """$(NAME) in arguments is defined before, and what is defined is used."""
    for each in world.workloads:
        for container in each.containers:
            known = set(world.variables(container))
            used = set(
                re.findall(r"\$\(([A-Z_]+)\)", " ".join(map(str, container.get("args", ()))))
            )
            for name in used - known:
                yield f"{each.name}: {container['name']}: $({name}) is not defined"
            for name in known - used - _OF_LIBRARIES:
                yield f"{each.name}: {container['name']}: nothing reads {name}"
