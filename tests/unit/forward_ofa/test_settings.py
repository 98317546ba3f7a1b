"""Values by name: every field of a configuration, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forward_ofa.recipes import RECIPES, recipe
from forward_ofa.settings import require_used, with_settings
from forward_ofa.systems import SYSTEMS
from forward_ofa.values import typed


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every single value by its name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def text(value: Any) -> str:
    """As somebody would type it."""
    if isinstance(value, tuple):
        return ",".join(text(part) for part in value)
    return "none" if value is None else str(value).lower() if value in (True, False) else str(value)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_value_can_be_set_by_its_name(name: str, system: str) -> None:
    config = recipe(name, "nextitnet", 200_000, system)
    values = leaves(config)
    assert values.pop("system") == system
    assert values.pop("method.backbone.name") == "nextitnet"
    if config.options is None:
        values.pop("options")
    if config.foundation is None:
        values.pop("foundation")
    other = dataclasses.replace(recipe("default", "nextitnet", 50_000, system), foundation=None)
    if config.foundation is not None:
        other = dataclasses.replace(other, foundation=recipe("quick", "sasrec", 0).foundation)
    assert other != config
    assert with_settings(other, {k: text(v) for k, v in values.items()}) == config
    assert with_settings(other, json.loads(json.dumps(values))) == config


def test_what_a_system_does_not_read_is_named() -> None:
    config = recipe("default", "sasrec", 0, "duet")
    require_used(config, ["method.bases", "training.epochs", "candidates"])
    require_used(recipe("default", "sasrec", 0, "plus-controller"), ["warm-start"])
    with pytest.raises(ValueError, match=r"'method.keep_bias': DUET has no use for it"):
        require_used(config, ["method.keep_bias"])


def test_values_are_named_once_and_whole_or_by_their_parts() -> None:
    config = recipe("default", "sasrec", 0)
    assert with_settings(config, {"foundation": None}).foundation is None
    assert with_settings(config, {"method.keep-bias": 1}).method.keep_bias == 1.0
    for wrong in (
        {"training.epochs": {}},
        {"method": {"bases": 1}},
        {"training.epochs": 3, "training.epochs ": 4},
        {"training.epochs": 10**5000},
    ):
        with pytest.raises(ValueError, match=r"epochs|'method'"):
            with_settings(config, wrong)


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_numbers_come_back_from_text(whole: int, real: float, flag: bool) -> None:
    assert typed("x", str(whole), int) == typed("x", whole, int) == whole
    assert typed("x", str(real), float) == typed("x", real, float | None) == real
    assert typed("x", str(flag), bool) is typed("x", flag, bool) is flag
    assert typed("x", f"{whole},{whole}", tuple[int, ...]) == (whole, whole)


@given(st.text(), st.sampled_from([int, float, bool, int | None, tuple[float, ...]]))
def test_any_text_is_a_value_or_refused_by_name(word: str, hint: Any) -> None:
    try:
        typed("setting x", word, hint)
    except ValueError as error:
        assert str(error).startswith("setting x: ") and len(str(error)) < 500


@pytest.mark.parametrize(
    ("value", "hint"),
    [(1.5, int), (True, int), (True, float), ("1.0", int), ("inf", float), (10**400, float),
     (None, int), ("none", int), (5, tuple[int, ...]), ("", tuple[int, ...]), (3, str),
     ([1], float), ({}, bool)],
)  # fmt: skip
def test_what_is_not_of_the_type_is_refused(value: Any, hint: Any) -> None:
    with pytest.raises(ValueError, match=r"^x: .* is no "):
        typed("x", value, hint)
