"""Delimited text as strings, with exact line numbers in errors.

The common case (no quotes in a block) is parsed by polars. It pads short lines silently, so the
number of fields is checked first, on the bytes. A block with quotes goes through Python's csv
reader, which is slower but strict. In both, a line ends with a line feed, before which carriage
returns may stand; one alone inside a field is text only within quotes.
"""

from __future__ import annotations

import csv
import io
import re
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from forward_ofa.data.bytesource import BYTE_ORDER_MARK, TextBlocks, whole_lines
from forward_ofa.data.columns import Table
from forward_ofa.data.log import DataError, LongArray

_CHUNK = 1 << 24
_COMPARED = 1 << 20
_NEWLINE, _RETURN = 10, 13
_RETURNS_AT_END = re.compile(rb"(?<!\r)\r++(?=\n|\Z)")
_LONE_RETURN = re.compile(rb"\r(?!\n|\Z)")
_LONGEST_FIELD = 1 << 25
_field_limit = threading.Lock()


@contextmanager
def long_fields() -> Iterator[None]:
    """Lets the csv module read fields of 32 million characters, of which reviews may have many.

    Its limit of 131,072 is one for the whole process, so it is put back, by one thread at a time.
    """
    with _field_limit:
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            yield
        finally:
            csv.field_size_limit(before)


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
            with long_fields():
                return next(csv.reader([text], delimiter=self._separator), [])
        except csv.Error as error:
            raise DataError(f"{self._file}: the header cannot be read: {error}.") from None

    def parts(self, indices: list[int]) -> Iterator[Table]:
        """The named columns as strings, "" where a field is empty.

        Raises DataError, with the line, when a line has the wrong number of fields.
        """
        empty = True
        for line, block in self._rows():
            empty = False
            yield self._table(indices, line, block)
        if empty:
            raise DataError(f"{self._file}: there is a header but not one interaction below it.")

    def has_rows(self) -> bool:
        """Whether any line below the header is not blank. Raises DataError."""
        return any(True for _ in self._rows())

    def _rows(self) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, block) of those blocks that are not blank."""
        whole = _whole_records if self._quotes else whole_lines
        for line, block in self._text.blocks(header=self._own_header, whole=whole):
            if block.strip(b"\r\n"):
                yield line, block

    def _table(self, indices: list[int], first: int, block: bytes) -> Table:
        if self._quotes and b'"' in block:
            return self._quoted(indices, first, block)
        block = self._with_plain_ends(first, block)
        step = len(self._separator)  # "::" is ":" with an empty field between each two
        lines = self._check_fields(first, block, step * (len(self.header) - 1))
        if lines is not None:
            block = b"\n".join(line for line in block.split(b"\n") if line not in (b"", b"\r"))
        if block.startswith(BYTE_ORDER_MARK):  # polars drops one, and here it is part of a field
            block = BYTE_ORDER_MARK + block
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
            raise self._half_separator(place(int(wrong[0])))

    def _half_separator(self, place: str) -> DataError:
        return DataError(
            f"{self._file}, {place}: fields must be separated by {self._separator!r}, and there is "
            f"a {self._separator[0]!r} too many or by itself. Correct or remove the line."
        )

    def _with_plain_ends(self, first: int, block: bytes) -> bytes:
        """The block without quotes, with at most one carriage return at the end of each line.

        Raises DataError, with the line, for one inside a field, as the csv module does.
        """
        if not _has_lone_return(block):
            return block
        block = _RETURNS_AT_END.sub(b"\r", block)
        lone = _LONE_RETURN.search(block)
        if lone:
            raise self._return_in_field(first + block.count(b"\n", 0, lone.start()))
        return block

    def _return_in_field(self, line: int) -> DataError:
        return DataError(
            f"{self._file}, line {line}: a carriage return alone inside a field, where it is no "
            "end of a line. Remove it, or put the field in quotes."
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
                line = chunk[starts[wrong[0]] : ends[wrong[0]]].tobytes()
                found = line.count(self._separator.encode()) + 1
                raise self._wrong_fields(number + int(wrong[0]), found)
            lines.append(number + np.flatnonzero(~blank))
            blanks += int(blank.sum())
            number, start = number + len(ends), stop
        return np.concatenate(lines) if blanks else None

    def _wrong_fields(self, line: int, found: int) -> DataError:
        if found == len(self.header):  # so the fault is in the separators
            return self._half_separator(f"line {line}")
        return DataError(
            f"{self._file}, line {line}: {found} fields where {len(self.header)} are expected "
            f"(separator {self._separator!r}). "
            "Correct or remove the line; if it is the last one, the file may be cut off."
        )

    def _quoted(self, indices: list[int], first: int, block: bytes) -> Table:
        values: list[list[str]] = [[] for _ in indices]
        lines = array("q")
        # Lines end with a line feed only: else a carriage return in quotes would count as one more.
        text = io.StringIO(block.decode(), newline="\n")
        reader = csv.reader(text, delimiter=self._separator, strict=True)
        before = first
        try:
            with long_fields():
                for fields in reader:
                    if len(fields) > 0:
                        if len(fields) != len(self.header):
                            raise self._wrong_fields(before, len(fields))
                        lines.append(before)
                        for column, index in zip(values, indices, strict=True):
                            column.append(fields[index])
                    before = first + reader.line_num
        except csv.Error as error:
            if str(error).startswith("new-line character"):
                raise self._return_in_field(first + reader.line_num - 1) from None
            raise DataError(
                f"{self._file}, line {before}: {error}. Check the quotes on that line."
            ) from None
        names = [self.header[index] for index in indices]
        frame = pl.DataFrame(dict(zip(names, values, strict=True)), dict.fromkeys(names, pl.String))
        return Table(frame, lambda row: f"line {lines[row]}")


def _has_lone_return(block: bytes) -> bool:
    """Whether a carriage return stands before anything but a line feed or the end."""
    if b"\r" not in block:
        return False
    for start in range(0, len(block), _COMPARED):  # in the processor's cache
        part = np.frombuffer(block, np.uint8, min(len(block) - start, _COMPARED + 1), start)
        if ((part[:-1] == _RETURN) & (part[1:] != _NEWLINE)).any():
            return True
    return False


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
