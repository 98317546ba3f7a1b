"""Options that are repeated, NAME=VALUE each."""

from __future__ import annotations

from collections.abc import Sequence

from forward_ofa_cli.errors import CommandError, Exit


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Values by name. Raises CommandError (usage) for what is no pair, or a name given twice."""
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise CommandError(f"{option} {text}: give NAME=VALUE", Exit.USAGE)
        if name in found:
            raise CommandError(f"{option} {name}: give it once; lists have commas", Exit.USAGE)
        found[name] = value
    return found
