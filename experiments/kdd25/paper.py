"""What the paper prints, from paper.toml, with its slips settled.

A figure that cannot be right is replaced by what it must be, or stays where that is not known;
either way it comes with a note, which the report prints as a footnote.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("paper.toml")


@dataclass(frozen=True)
class Figure:
    """One printed figure. value: what it must be. printed: what stands there. note: "" or why."""

    value: float
    printed: float
    note: str = ""


@cache
def _raw() -> dict[str, Any]:
    with _FILE.open("rb") as file:
        return tomllib.load(file)


@cache
def _errata() -> Mapping[str, Mapping[str, Any]]:
    return {entry["cell"]: entry for entry in _raw()["errata"]}


def columns(table: str) -> list[str]:
    """The metrics of a table, in print order: "ndcg", "hit", "mflops", "mbit"; all of them for a
    table that the paper does not have."""
    found = _raw()["columns"]
    return list(found.get(table, found["table1"]))


def rows(table: str, backbone: str, dataset: str) -> list[str]:
    """The systems of that part of a table, in print order; [] where the paper has no such part."""
    return list(_raw().get(table, {}).get(backbone, {}).get(dataset, {}))


def figure(table: str, backbone: str, dataset: str, system: str, column: str) -> Figure | None:
    """One figure of Tables 1, 2, 3, 4 or 7; None where the paper has none."""
    row = _raw().get(table, {}).get(backbone, {}).get(dataset, {}).get(system)
    if row is None or column not in columns(table):
        return None
    printed = row[columns(table).index(column)]
    return _settled(f"{table}.{backbone}.{dataset}.{system}.{column}", printed)


def component(backbone: str, part: str, column: str) -> Figure:
    """Table 5. part: "backbone", "device", "cloud". column: "mflops", or "param" in the table's
    own units: Mbit of float32 for the backbone, millions of parameters for the others."""
    printed = _raw()["table5"][backbone][part][("mflops", "param").index(column)]
    return _settled(f"table5.{backbone}.{part}.{column}", printed)


def adaptation_seconds(backbone: str) -> Mapping[str, float]:
    """Table 8: seconds of "forward-ofa", "cloud" and "device"."""
    return dict(_raw()["table8"][backbone])


def statistics(dataset: str) -> Mapping[str, float] | None:
    """Table 6: users, items (padding included), interactions; None for a set it does not have."""
    found: Mapping[str, float] | None = _raw()["data"].get(dataset)
    return found


def setting(name: str, backbone: str, dataset: str = "") -> float:
    """Section 4.1.4: "blocks", "small_blocks", "learning_rate", and by data set "compact_weight"
    (lambda) and "temperature" (tau)."""
    found = _raw()["settings"][name][backbone]
    return float(found[dataset] if isinstance(found, dict) else found)


def link_mbit_per_second() -> float:
    """The link of Figure 7."""
    return float(_raw()["figure7"]["link_mbit_per_second"])


def notes(part: str) -> list[str]:
    """What is to be said about a whole table or figure, or the "protocol"."""
    return list(_raw()["notes"].get(part, []))


def _settled(cell: str, printed: float) -> Figure:
    entry = _errata().get(cell)
    if entry is None:
        return Figure(printed, printed)
    return Figure(entry.get("settled", printed), printed, entry["note"])
