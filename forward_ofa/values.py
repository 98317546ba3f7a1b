"""A value as the field of a dataclass has it, from text (a command line) or from JSON."""

from __future__ import annotations

import math
import types
import typing
from typing import Any

_WORDS = {int: "whole number", float: "finite number", bool: "true or false", str: "text"}
_SHOWN = 64  # characters of a refused value


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as a field of this type has it; `name` is for the message.

    Text stands for what it says: "none" for None, lists with commas. Raises ValueError for what is
    not of the type. A Literal's text is not compared: the field's own class says what there is.
    """
    options = _options(hint)
    if type(None) in options and (value is None or value == "none"):
        return None
    kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, str | list | tuple):
            raise ValueError(f"{name}: {_shown(value)} is no list")
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(typed(name, part, typing.get_args(kind)[0]) for part in parts)
    kind = str if typing.get_origin(kind) is typing.Literal else kind
    found = _single(value, kind)
    if found is None:
        raise ValueError(f"{name}: {_shown(value)} is no {_WORDS.get(kind, kind.__name__)}")
    return found


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that one of X, X | None stands for."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _single(value: Any, kind: type) -> Any:
    """The value, or None if it is not of this type."""
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is bool:
        return {"true": True, "false": False}.get(str(value).lower())
    if kind not in (int, float):
        return None
    # True is an int in Python, and int(1.5) is 1.
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        return None
    try:
        number = kind(value)
        return number if kind is int or math.isfinite(number) else None
    except (OverflowError, TypeError, ValueError):
        return None


def _shown(value: Any) -> str:
    try:
        return repr(value[:_SHOWN] if isinstance(value, str) else value)[: 2 * _SHOWN]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of so many digits"
