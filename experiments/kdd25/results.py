"""The index of finished cells: figures without weights, from which the report is made.

One JSON file that is committed, one entry a cell. Processes may add to it at the same time: each
reads, adds and replaces it under a lock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.kdd25.cells import Cell
from forward_ofa.checkpoint import write_atomically
from forward_ofa.locks import locked

FORMAT = "forward-ofa-paper-index/2"


class DamagedIndex(Exception):
    """The index cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Record:
    """One finished cell. figures: what its report shows; the rest says where they come from.

    config: the configuration of the run, or of the run that was looked at, as its config.json.
    data: the data card. protocol: the protocol card. budget: epochs, best epoch, seconds of
    training. machine: processor, memory, versions, revision. finished: UTC time, ISO 8601.
    """

    cell: Cell
    config: dict[str, Any]
    figures: dict[str, Any]
    data: dict[str, Any]
    protocol: list[str]
    budget: dict[str, Any]
    machine: dict[str, Any]
    finished: str

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "cell": self.cell.to_json()}


Records = dict[str, Record]


def read_index(path: Path) -> Records:
    """name -> record; {} if there is no file yet. Raises DamagedIndex for a damaged one."""
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _damaged(path, error) from error
    try:
        if raw["format"] != FORMAT:
            raise ValueError(f"its format is {raw['format']!r}, not {FORMAT!r}")
        found = [Record(**{**r, "cell": Cell.from_json(r["cell"])}) for r in raw["cells"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    return {record.cell.name: record for record in found}


def add(path: Path, record: Record) -> None:
    """Adds or replaces one entry; other processes may do the same at the same time."""
    _change(path, lambda records: records | {record.cell.name: record})


def remove(path: Path, which: Callable[[Cell], bool]) -> None:
    """Takes entries out; nothing happens where there is no index yet."""
    if path.exists():
        _change(path, lambda records: {n: r for n, r in records.items() if not which(r.cell)})


def _change(path: Path, change: Callable[[Records], Mapping[str, Record]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), wait=True):
        records = change(read_index(path))
        # A line a cell: what changes is seen, and merges, cell by cell.
        lines = ",\n".join(json.dumps(records[name].to_json()) for name in sorted(records))
        write_atomically(path, f'{{"format": "{FORMAT}", "cells": [\n{lines}\n]}}\n'.encode())


def _damaged(path: Path, error: Exception) -> DamagedIndex:
    return DamagedIndex(
        f"{path} is damaged ({error}): restore it from version control, or delete it; cells whose "
        "runs are still there are entered again without training"
    )
