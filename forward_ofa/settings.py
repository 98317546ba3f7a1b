"""Single values of a run's configuration, by name: `--set` of the commands, settings of a job.

A name is the path to a field of `RunConfig`, with dots: `training.epochs`, `options.rates`,
`method.backbone.blocks`; `config.json` in a run's folder has them all. A name without a dot that
`RunConfig` does not have is one of the system's own options: `rates`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from forward_ofa.config import RunConfig
from forward_ofa.systems import DEVICE_REC, options_of, system_named
from forward_ofa.values import typed

_OPTIONS = "options"


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with these values, as text or as JSON has them (`values.typed`).

    All are set at once: of two that make sense only together either may come first. Raises
    ValueError for an unknown name, and for a value that is not of the field's type or range.
    """
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        _put(tree, name, value)
    if "system" in tree:
        raise ValueError("'system' is no setting: it is chosen with --system")
    if _OPTIONS in tree:
        config = replace(config, options=_own_options(config, tree[_OPTIONS]))
    found: RunConfig = _replaced(config, "", tree)
    return found


def require_used(config: RunConfig, settings: Iterable[str]) -> None:
    """Raises ValueError for a setting that the configuration's system would not read."""
    system = system_named(config.system)
    for name in settings:
        if system.uses(".".join(_path(name))):
            continue
        instead = "`forward-ofa systems` lists what is"
        if system.name == DEVICE_REC:
            instead = f"device_rec.{name.rpartition('.')[2]} is"
        raise ValueError(f"setting {name!r}: {system.title} has no use for it; {instead} read")


def _path(name: str) -> list[str]:
    known = {field.name for field in dataclasses.fields(RunConfig)}
    return name.split(".") if "." in name or name in known else [_OPTIONS, name]


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = _path(name)
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"setting {name!r}: {parent} is set as a whole too")
    if last in tree:
        raise ValueError(f"setting {name!r}: it, or a part of it, is set twice")
    tree[last] = value


def _own_options(config: RunConfig, given: Any) -> Any:
    """The options of the system, with defaults if the configuration has none."""
    if not isinstance(given, dict):
        raise ValueError(
            f"{_OPTIONS!r} is no setting: name one of them, options.NAME; `forward-ofa systems` "
            "lists them"
        )
    system = system_named(config.system)
    if system.options is None:
        names = ", ".join(field.name for field in dataclasses.fields(RunConfig))
        raise ValueError(
            f"unknown setting {next(iter(given))!r}: it is none of {names}, and system "
            f"{system.name} has no options of its own"
        )
    return config.options or options_of(system, {})


def _replaced(config: Any, prefix: str, tree: Mapping[str, Any]) -> Any:
    """A dataclass with the fields that the tree names; `prefix`: its own name and a dot."""
    hints = typing.get_type_hints(type(config))
    new = {}
    for field, value in tree.items():
        name = prefix + field
        if field not in hints:
            raise ValueError(f"unknown setting {name!r}: {field!r} is none of {', '.join(hints)}")
        if isinstance(value, dict):
            new[field] = _part(getattr(config, field), name, value)
        else:
            new[field] = _value(name, value, hints[field])
    return replace(config, **new)


def _part(now: Any, name: str, tree: Mapping[str, Any]) -> Any:
    if not dataclasses.is_dataclass(now):
        missing = f"this recipe has no {name}" if now is None else f"{name} has no parts"
        raise ValueError(f"unknown setting '{name}.{next(iter(tree))}': {missing}")
    return _replaced(now, f"{name}.", tree)


def _value(name: str, value: Any, hint: Any) -> Any:
    for kind in typing.get_args(hint) or (hint,):
        if dataclasses.is_dataclass(kind) and value != "none":
            parts = ", ".join(f"{name}.{part.name}" for part in dataclasses.fields(kind))
            raise ValueError(f"setting {name!r} has parts: name one of {parts}")
    return typed(f"setting {name}", value, hint)
