"""Single values of a run's configuration, by name: `--set` of the commands, settings of a job.

A name is the path to a field of `RunConfig`, with dots: `training.epochs`, `options.rates`,
`method.backbone.blocks`; `config.json` in a run's folder has them all. A name without a dot that
`RunConfig` does not have is one of the system's own options: `rates`. Hyphens count as underscores.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from forward_ofa.config import MethodConfig, RunConfig, TrainingConfig
from forward_ofa.systems import DEVICE_REC, options_of, system_named
from forward_ofa.values import typed

_OPTIONS = "options"
_ELSEWHERE = {"system": "--system", "method.backbone.name": "--backbone"}
"""What a recipe is made for, so that another value would leave the recipe of the first."""


def full_name(name: str) -> str:
    """The path of a setting, for a name as somebody wrote it."""
    name = name.strip().replace("-", "_")
    known = {field.name for field in dataclasses.fields(RunConfig)}
    return name if "." in name or name in known else f"{_OPTIONS}.{name}"


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with these values, as text or as JSON has them (`values.typed`).

    All are set at once: of two that make sense only together either may come first. Raises
    ValueError for an unknown name, and for a value that is not of the field's type or range.
    """
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        path = full_name(name)
        if path in _ELSEWHERE:
            raise ValueError(f"{name!r} is no setting: it is chosen with {_ELSEWHERE[path]}")
        _put(tree, name, path, value)
    if _OPTIONS in tree:
        config = replace(config, options=_own_options(config, tree[_OPTIONS], settings))
    found: RunConfig = _replaced(config, "", tree)
    return found


def require_used(config: RunConfig, settings: Iterable[str]) -> None:
    """Raises ValueError for a setting that the configuration's system would not read."""
    system = system_named(config.system)
    for name in settings:
        path = full_name(name)
        if system.uses(path):
            continue
        stage, _, rest = path.partition(".")
        read = ", ".join(f"method.{each}" for each in system.reads)
        hint = f"of method it reads backbone, dropout{', ' + read if read else ''}"
        if stage == "training" and system.name == DEVICE_REC:
            hint = f"device_rec.{rest} is read"
        raise ValueError(f"setting {name!r}: {system.title} has no use for it; {hint}")


def _put(tree: dict[str, Any], name: str, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ValueError(f"setting {name!r}: {parent} is set as a whole too")
    if last in tree:
        raise ValueError(f"setting {name!r}: it, or a part of it, is set twice")
    if isinstance(value, dict):
        raise ValueError(f"setting {name!r}: name its parts, {path}.NAME")
    tree[last] = value


def _own_options(config: RunConfig, given: Any, settings: Mapping[str, Any]) -> Any:
    """The options of the system, with defaults if the configuration has none."""
    system = system_named(config.system)
    known = {f.name for f in dataclasses.fields(system.options)} if system.options else set()
    if not isinstance(given, dict):
        raise ValueError(
            f"{_OPTIONS!r} is no setting: name one of them, options.NAME; `forward-ofa systems` "
            "lists them"
        )
    for name in settings:
        option = full_name(name).removeprefix(f"{_OPTIONS}.")
        if "." in name or option not in given or option in known:
            continue
        own = f"{system.name} has {', '.join(sorted(known))}" if known else (
            f"system {system.name} has no options of its own"
        )  # fmt: skip
        raise ValueError(f"unknown setting {name!r}: {_meant(option)}; {own}")
    if system.options is None:
        raise ValueError(f"setting {_OPTIONS}: system {system.name} has no options of its own")
    return config.options or options_of(system, {})


def _meant(name: str) -> str:
    """What a name without a dot may have meant."""
    if name in {field.name for field in dataclasses.fields(TrainingConfig)}:
        return f"name the stage, training.{name} or device_rec.{name}"
    if name in {field.name for field in dataclasses.fields(MethodConfig)}:
        return f"name it whole, method.{name}"
    parts = (f.name for f in dataclasses.fields(RunConfig) if f.name not in ("system", _OPTIONS))
    return f"it is none of {', '.join(parts)}"


def _replaced(config: Any, prefix: str, tree: Mapping[str, Any]) -> Any:
    """A dataclass with the fields that the tree names; `prefix`: its own name and a dot."""
    hints = typing.get_type_hints(type(config))
    new = {}
    for field, value in tree.items():
        name = prefix + field
        if field not in hints:
            known = (hint for hint in hints if prefix or hint not in ("system", _OPTIONS))
            raise ValueError(f"unknown setting {name!r}: {field!r} is none of {', '.join(known)}")
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
        if dataclasses.is_dataclass(kind) and value not in (None, "none"):
            parts = ", ".join(f"{name}.{part.name}" for part in dataclasses.fields(kind))
            raise ValueError(f"setting {name!r} has parts: name one of {parts}")
    return typed(f"setting {name}", value, hint)
