"""A system's own options, from what JSON or the command line has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from forward_ofa.config import Options, RunConfig

Own = TypeVar("Own", bound=Options)
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", tuple: "list"}


def options_as(config: RunConfig, kind: type[Own]) -> Own:
    """A run's options as its system's own class; the defaults if the run has none.

    Raises ValueError for those of another system.
    """
    if config.options is None:
        return kind()
    if not isinstance(config.options, kind):
        raise ValueError(f"{config.system} takes {kind.__name__}, not {config.options}")
    return config.options


def read_options(kind: type[Own], raw: Mapping[str, Any]) -> Own:
    """Options of a class with these values, defaults for the others.

    Raises ValueError for an unknown name or a value that is not of the field's type or range.
    """
    hints = get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    for name in raw:
        if name not in known:
            raise ValueError(f"no option {name!r}: there are {', '.join(sorted(known))}")
    return kind(**{name: _typed(name, value, hints[name]) for name, value in raw.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value`, from JSON or the command line, as a field of this type has it."""
    origin = getattr(hint, "__origin__", hint)
    try:
        if origin is tuple:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(_typed(name, part, hint.__args__[0]) for part in parts)
        if origin is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        return value if isinstance(value, origin) else origin(value)
    except (KeyError, TypeError, ValueError):
        kind = _WORDS.get(origin, str(origin))
        raise ValueError(f"option {name}: {value!r} is no {kind}") from None
