"""A system's own options, from what JSON or the command line has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from forward_ofa.config import Options, RunConfig
from forward_ofa.values import typed

Own = TypeVar("Own", bound=Options)


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
    given = {name: typed(f"option {name}", value, hints[name]) for name, value in raw.items()}
    return kind(**given)
