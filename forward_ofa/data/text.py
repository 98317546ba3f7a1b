"""Delimited text as strings, with exact line numbers in errors.

The common case (no quotes in a block) is parsed by polars. It pads short lines silently, so the
number of fields is checked first, on the bytes. A block with quotes goes through Python's csv
reader, which is slower but strict.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from forward_ofa.data.bytesource import TextBlocks, whole_lines
from forward_ofa.data.columns import Table
from forward_ofa.data.log import DataError, LongArray

_CHUNK = 1 << 24
_NEWLINE, _RETURN = 10, 13


class DelimitedText:
    """A delimited text whose header is known and whose columns can be read as strings.

    separator:  one character, or "::" (MovieLens); None picks the likeliest from the first line.
    header:     column names when the text has no header line.
    sample:     its first bytes, cut anywhere.

    Raises DataError for text that is not UTF-8, or empty.
    """

    def __init__(
        self, path: Path, *, separator: str | None = None, quotes: bool = True,
        header: list[str] | None = None,
    ) -> None:  # fmt: skip
        self._file, self._quotes = str(path), quotes
        self._text = TextBlocks(path)
        self.sample = self._text.sample
        first = self._text.first.rstrip("\r")
        if "\r" in first:
            raise DataError(
                f"{path}: its lines end in a carriage return alone, as on old Macs. Convert it "
                "with: tr '\\r' '\\n' < OLD > NEW"
            )
        self._separator = separator or max(",\t;|", key=first.count)
        self._own_header = header is None
        self.header = header or [name.strip() for name in self._split_header(first)]

    @property
    def unended(self) -> bool:
        """Whether the last line has no line end; known when all parts were read."""
        return self._text.unended

    def name_columns(self, names: list[str]) -> None:
        """Says that the text has no header line and what its columns are called."""
        self.header, self._own_header = names, False

    def _split_header(self, text: str) -> list[str]:
        if not self._quotes:
            return text.split(self._separator)
        try:
            return next(csv.reader([text], delimiter=self._separator), [])
        except csv.Error as error:
            raise DataError(f"{self._file}: the header cannot be read: {error}.") from None

    def parts(self, indices: list[int]) -> Iterator[Table]:
        """The named columns as strings, "" where a field is empty.

        Raises DataError, with the line, when a line has the wrong number of fields.
        """
        whole = _whole_records if self._quotes else whole_lines
        empty = True
        for line, block in self._text.blocks(header=self._own_header, whole=whole):
            if block.strip(b"\r\n"):
                empty = False
                yield self._table(indices, line, block)
        if empty:
            raise DataError(f"{self._file}: there is a header but not one interaction below it.")

    def _table(self, indices: list[int], first: int, block: bytes) -> Table:
        if self._quotes and b'"' in block:
            return self._quoted(indices, first, block)
        step = len(self._separator)  # "::" is ":" with an empty field between each two
        lines = self._check_fields(first, block, step * (len(self.header) - 1))
        if lines is not None:
            block = b"\n".join(line for line in block.split(b"\n") if line not in (b"", b"\r"))
        names = [f"c{number}" for number in range(step * (len(self.header) - 1) + 1)]
        try:
            frame = pl.read_csv(
                io.BytesIO(block), has_header=False, separator=self._separator[0], quote_char=None,
                schema=dict.fromkeys(names, pl.String), empty_string_is_null=False,
                columns=None if step > 1 else sorted(indices),
            )  # fmt: skip
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise DataError(f"{self._file}: cannot be parsed: {_first_line(error)}.") from None

        def place(row: int) -> str:
            return f"line {int(lines[row]) if lines is not None else first + row}"

        if step > 1:
            self._check_gaps(frame, names[1::2], place)
        chosen = {self.header[index]: frame[f"c{step * index}"] for index in indices}
        return Table(pl.DataFrame(chosen), place)

    def _check_gaps(
        self, frame: pl.DataFrame, gaps: list[str], place: Callable[[int], str]
    ) -> None:
        wrong = frame.select(pl.any_horizontal(pl.col(gaps) != "")).to_series().arg_true()
        if len(wrong):
            raise DataError(
                f"{self._file}, {place(int(wrong[0]))}: fields must be separated by "
                f"{self._separator!r}. Correct or remove the line."
            )

    def _check_fields(self, first: int, block: bytes, expected: int) -> LongArray | None:
        """Line number of each line that is not blank, or None when none is blank."""
        lines: list[LongArray] = []
        blanks = 0
        number, start = first, 0
        separator = ord(self._separator[0])
        while start < len(block):
            cut = block.find(b"\n", start + _CHUNK)
            stop = len(block) if cut < 0 else cut + 1
            chunk = np.frombuffer(block, np.uint8, stop - start, start)
            ends = np.flatnonzero(chunk == _NEWLINE)
            if chunk[-1] != _NEWLINE:
                ends = np.append(ends, len(chunk))
            starts = np.concatenate(([0], ends[:-1] + 1))
            length = ends - starts
            blank = (length == 0) | ((length == 1) & (chunk[starts] == _RETURN))
            before = np.searchsorted(np.flatnonzero(chunk == separator), ends)
            fields = np.diff(before, prepend=0)
            wrong = np.flatnonzero(~blank & (fields != expected))
            if len(wrong):
                self._wrong_fields(number + int(wrong[0]), int(fields[wrong[0]]))
            lines.append(number + np.flatnonzero(~blank))
            blanks += int(blank.sum())
            number, start = number + len(ends), stop
        return np.concatenate(lines) if blanks else None

    def _wrong_fields(self, line: int, separators: int) -> None:
        step = len(self._separator)
        raise DataError(
            f"{self._file}, line {line}: {separators // step + 1} fields where "
            f"{len(self.header)} are expected (separator {self._separator!r}). "
            "Correct or remove the line; if it is the last one, the file may be cut off."
        )

    def _quoted(self, indices: list[int], first: int, block: bytes) -> Table:
        values: list[list[str]] = [[] for _ in indices]
        lines = array("q")
        reader = csv.reader(
            io.StringIO(block.decode(), newline=""), delimiter=self._separator, strict=True
        )
        before = first
        try:
            for fields in reader:
                if len(fields) > 0:
                    if len(fields) != len(self.header):
                        self._wrong_fields(before, len(fields) - 1)
                    lines.append(before)
                    for column, index in zip(values, indices, strict=True):
                        column.append(fields[index])
                before = first + reader.line_num
        except csv.Error as error:
            raise DataError(
                f"{self._file}, line {before}: {error}. Check the quotes on that line."
            ) from None
        names = [self.header[index] for index in indices]
        frame = pl.DataFrame(dict(zip(names, values, strict=True)), dict.fromkeys(names, pl.String))
        return Table(frame, lambda row: f"line {lines[row]}")


def _whole_records(block: bytes) -> int:
    """Bytes up to the last end of line that is outside quotes."""
    if b'"' not in block:
        return whole_lines(block)
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    before = np.searchsorted(np.flatnonzero(data == ord('"')), ends)
    outside = ends[before % 2 == 0]
    return int(outside[-1]) + 1 if len(outside) else 0


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
