"""JSON lines: one object an interaction, as the Amazon review releases have them.

The common case is parsed by polars. A block that it refuses, or that lacks a value, is read again
line by line, which gives the exact line of the fault. Lines that are Python dicts rather than JSON
(single quotes, as in the oldest Amazon files) are read as literals: nothing in them is run.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from forward_ofa.data.bytesource import TextBlocks
from forward_ofa.data.columns import Table, counted
from forward_ofa.data.log import DataError

_LOOKED_AT = 100
_LONGEST_LITERAL = 1 << 20
_DOUBTFUL = r"^(true$|false$|\[|\{)"


class JsonLines:
    """A text with one object a line. Raises DataError when it is something else."""

    unended = False  # an object that is cut off is no object

    def __init__(self, path: Path) -> None:
        self._file = str(path)
        self._text = TextBlocks(path)
        first = self._text.first.strip()
        if first.startswith("["):
            raise DataError(
                f"{path}: a JSON array; JSON lines are needed, one object a line. Convert it with: "
                "jq -c '.[]' OLD > NEW"
            )
        self._loose = _is_loose(first)
        self.header = list(self._object(first, "line 1"))

    def parts(self, indices: list[int]) -> Iterator[Table]:
        """These fields of every object: strings as they are, numbers as their text.

        Raises DataError, with the line, for a line that is no object, or lacks a field.
        """
        names = [self.header[index] for index in indices]
        for line, block in self._text.blocks(header=False):
            if not block.strip():
                continue
            frame = None if self._loose else _fast(names, block)
            if frame is not None:
                yield Table(frame, counted("line", line))
            else:
                yield self._slowly(names, line, block)

    def objects(self) -> Iterator[dict[str, Any]]:
        """Every object, whole. Raises DataError, with the line."""
        for line, block in self._text.blocks(header=False):
            for number, text in enumerate(block.decode().split("\n"), start=line):
                if text.strip():
                    yield self._object(text, f"line {number}")

    def _slowly(self, names: list[str], line: int, block: bytes) -> Table:
        values: dict[str, list[str]] = {name: [] for name in names}
        lines: list[int] = []
        for number, text in enumerate(block.decode().split("\n"), start=line):
            if not text.strip():
                continue
            record = self._object(text, f"line {number}")
            for name in names:
                values[name].append(self._text_of(record, name, number))
            lines.append(number)
        frame = pl.DataFrame(values, dict.fromkeys(names, pl.String))
        return Table(frame, lambda row: f"line {lines[row]}")

    def _text_of(self, record: dict[str, Any], name: str, line: int) -> str:
        value = record.get(name)
        if value is None:
            raise DataError(
                f"{self._file}, line {line}: {name!r} is missing or null; drop such lines or fill "
                "it in."
            )
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise DataError(
                f"{self._file}, line {line}: {name!r} has {str(value)[:40]!r}, which is neither "
                "text nor a number. Name another field."
            )
        return str(value)

    def _object(self, text: str, place: str) -> dict[str, Any]:
        try:
            if self._loose:
                if len(text) > _LONGEST_LITERAL:
                    raise ValueError("longer than a megabyte")
                record = ast.literal_eval(text.strip())
            else:
                record = json.loads(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            detail = str(error).split("\n")[0].partition(";")[0][:100]
            raise DataError(
                f"{self._file}, {place}: not a JSON object ({detail}). Correct or remove the line; "
                "if it is the last one, the file may be cut off."
            ) from None
        if not isinstance(record, dict):
            raise DataError(f"{self._file}, {place}: not a JSON object but {text[:40]!r}.")
        return record


def _fast(names: list[str], block: bytes) -> pl.DataFrame | None:
    """The fields as strings, or None when a line by line look is needed."""
    blank = block.startswith((b"\n", b"\r")) or b"\n\n" in block or b"\n\r" in block
    if blank or not _plain_values(names, block):
        return None
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict.fromkeys(names, pl.String))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if frame.height != lines or any(frame.null_count().row(0)):
        return None
    # Booleans, lists and objects come as text too: only a look at the line tells them from it.
    doubtful = frame.select(pl.any_horizontal(pl.all().str.contains(_DOUBTFUL)).any()).item()
    return None if doubtful else frame


def _plain_values(names: list[str], block: bytes) -> bool:
    """Whether the first lines have text or whole numbers there, which polars gives as they are."""
    try:
        for line in islice(io.BytesIO(block), _LOOKED_AT):
            record = json.loads(line)
            if any(type(record.get(name)) not in (str, int) for name in names):
                return False
    except (ValueError, AttributeError, RecursionError):
        return False
    return True


def _is_loose(line: str) -> bool:
    """Whether a line is a Python dict and not JSON."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        try:
            return len(line) <= _LONGEST_LITERAL and isinstance(ast.literal_eval(line), dict)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return False
    return False
