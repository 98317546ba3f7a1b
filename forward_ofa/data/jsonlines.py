"""JSON lines: one object an interaction, as the Amazon review releases have them.

The common case is parsed by polars. A block that it refuses, that lacks a value, or of which it
does not tell enough, is read again line by line, which gives the exact line of the fault. Both give
the same: text as it is, numbers as their decimal digits (1.0 and 1e0 are 1), an error for a field
that an object has twice and for half a surrogate pair. Lines that are Python dicts rather than JSON
(single quotes, as in the oldest Amazon files) are read as literals: nothing in them is run.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import polars as pl

from forward_ofa.data.bytesource import TextBlocks
from forward_ofa.data.columns import Table, counted
from forward_ofa.data.log import DataError

_LONGEST_LITERAL = 1 << 20
# Texts that polars gives for other values too: for booleans, lists and objects, and for -0.0.
_DOUBTFUL = r"^(true$|false$|-0$|\[|\{)"
# And what it makes of half a surrogate pair: NUL, or, with what follows, another character.
_DOUBTFUL_ESCAPED = _DOUBTFUL + r"|[\x00\x{10000}-\x{10FFFF}]"
_HALF_A_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


class _Repeating(dict[str, Any]):
    """An object of which the fields `twice` stand in the text more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        times = Counter(name for name, _ in pairs)
        self.twice = {name for name, count in times.items() if count > 1}


def _with_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else _Repeating(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_with_repeats)


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

    def has_rows(self) -> bool:
        """True: the names of the columns were found in the first."""
        return True

    def parts(self, indices: list[int]) -> Iterator[Table]:
        """These fields of every object: strings as they are, numbers as their decimal digits.

        Raises DataError, with the line, for a line that is no object, or lacks a field or has it
        twice.
        """
        names = [self.header[index] for index in indices]
        for name in names:
            if not _is_text(name):
                raise DataError(f"{self._file}, line 1: {name!r} is no name. Rename the field.")
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
        values: dict[str, list[str | float]] = {name: [] for name in names}
        lines: list[int] = []
        for number, text in enumerate(block.decode().split("\n"), start=line):
            if not text.strip():
                continue
            record = self._object(text, f"line {number}")
            for name in names:
                value = record.get(name)
                if type(value) is not str or not value.isascii() or type(record) is not dict:
                    value = self._checked(record, name, f"line {number}")
                values[name].append(value)
            lines.append(number)
        texts = {name: _with_digits(column) for name, column in values.items()}
        frame = pl.DataFrame(texts, dict.fromkeys(names, pl.String))
        return Table(frame, lambda row: f"line {lines[row]}")

    def _checked(self, record: dict[str, Any], name: str, place: str) -> str | float:
        """A field's text, or its number if that has a fraction or exponent. Raises DataError."""
        value = record.get(name)
        why = _unusable(value)
        if isinstance(record, _Repeating) and name in record.twice:
            why = "stands there twice. Keep one of them"
        if why is not None:
            raise DataError(f"{self._file}, {place}: {name!r} {why}.")
        return value if isinstance(value, float) and math.isfinite(value) else str(value)

    def _object(self, text: str, place: str) -> dict[str, Any]:
        try:
            if self._loose:
                if len(text) > _LONGEST_LITERAL:
                    raise ValueError("longer than a megabyte")
                record = ast.literal_eval(text.strip())
            else:
                record = _DECODER.decode(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            detail = str(error).split("\n")[0].partition(";")[0][:100]
            raise DataError(
                f"{self._file}, {place}: not a JSON object ({detail}). Correct or remove the line; "
                "if it is the last one, the file may be cut off."
            ) from None
        if not isinstance(record, dict):
            raise DataError(f"{self._file}, {place}: not a JSON object but {text[:40]!r}.")
        return record


def _unusable(value: object) -> str | None:
    """Why a value is no id and no time, or None."""
    if value is None:
        return "is missing or null; drop such lines or fill it in"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        why = "neither text nor a number. Name another field"
    elif isinstance(value, float) and math.isinf(value):
        why = "no number that 64 bits can hold"
    elif isinstance(value, str) and not _is_text(value):
        why = "no text, with half a surrogate pair. Correct or remove the line"
    else:
        return None
    return f"has {str(value)[:40]!r}, which is {why}"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_digits(values: list[str | float]) -> list[str]:
    """The values with numbers as the fast way writes them, since it is what writes them here."""
    numbers = [value for value in values if isinstance(value, float)]
    if not numbers:
        return cast(list[str], values)
    lines = "".join(f'{{"n":{number + 0.0!r}}}\n' for number in numbers)  # + 0.0: of -0.0 too
    written = iter(pl.read_ndjson(lines.encode(), schema={"n": pl.String})["n"])
    return [next(written) if isinstance(value, float) else value for value in values]


def _fast(names: list[str], block: bytes) -> pl.DataFrame | None:
    """The fields as strings, or None when a line by line look is needed."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if not all(_once_a_line(name, block, lines) for name in names):
        return None
    try:
        frame = pl.read_ndjson(io.BytesIO(block), schema=dict.fromkeys(names, pl.String))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if frame.height != lines or any(frame.null_count().row(0)):  # also for a blank line
        return None
    if not _any_match(frame, _DOUBTFUL_ESCAPED if b"\\" in block else _DOUBTFUL):
        return frame
    whole = not _any_match(frame, _DOUBTFUL) and not _HALF_A_PAIR.search(block)
    return frame if whole else None


def _any_match(frame: pl.DataFrame, pattern: str) -> bool:
    return bool(frame.select(pl.any_horizontal(pl.all().str.contains(pattern)).any()).item())


def _once_a_line(name: str, block: bytes, lines: int) -> bool:
    """Whether a field is named as often as there are lines; polars takes the first of two."""
    spelled = {json.dumps(name, ensure_ascii=ascii).encode() for ascii in (True, False)}
    if sum(block.count(text) for text in spelled) == lines:
        return True
    # It may be a value too.
    return lines == sum(len(re.findall(re.escape(text) + rb"\s*:", block)) for text in spelled)


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
