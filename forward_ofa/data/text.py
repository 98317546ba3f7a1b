"""Delimited text as strings, with exact line numbers in errors.

The common case (no quotes in the body) is parsed by polars. It pads short lines silently, so the
number of fields is checked first, on the bytes. Text with quotes goes through Python's csv reader,
which is slower but strict.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from forward_ofa.data.columns import Table
from forward_ofa.data.log import DataError, LongArray

_CHUNK = 1 << 24
_NEWLINE, _RETURN = 10, 13


def read_bytes(path: Path) -> bytes:
    """Content of a file (unpacked when it ends in .gz), without a byte order mark.

    Raises DataError when it cannot be read or unpacked, or is empty.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}). Copy it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DataError(f"{path}: the file is empty. Give a log with one interaction a line.")
    return data


class DelimitedText:
    """A delimited text whose header is known and whose columns can be read as strings.

    data:       the bytes, UTF-8.
    separator:  one character, or "::" (MovieLens); None picks the likeliest from the header.
    header:     column names when the text has no header line.

    Raises DataError for text that is not UTF-8.
    """

    def __init__(
        self, data: bytes, file: str, *, separator: str | None = None, quotes: bool = True,
        header: list[str] | None = None,
    ) -> None:  # fmt: skip
        _require_utf8(data, file)
        self._file = file
        self._quotes = quotes
        start = len(data) - len(data.lstrip(b"\r\n"))
        self._line = 1 + data.count(b"\n", 0, start)
        self._body = data[start:]
        if header is None:
            first, _, self._body = self._body.partition(b"\n")
            if b"\r" in first.rstrip(b"\r"):
                raise DataError(
                    f"{file}: its lines end in a carriage return alone, as on old Macs. Convert it "
                    "with: tr '\\r' '\\n' < OLD > NEW"
                )
            self._line += 1
            text = first.decode().rstrip("\r")
            self._separator = separator or max(",\t;|", key=text.count)
            self.header = [name.strip() for name in self._split_header(text)]
        else:
            self._separator = separator or ","
            self.header = header

    def _split_header(self, text: str) -> list[str]:
        if not self._quotes:
            return text.split(self._separator)
        try:
            return next(csv.reader([text], delimiter=self._separator), [])
        except csv.Error as error:
            raise DataError(f"{self._file}: the header cannot be read: {error}.") from None

    def columns(self, indices: list[int]) -> Table:
        """The named columns as strings, "" where a field is empty.

        Raises DataError, with the line, when a line has the wrong number of fields.
        """
        if not self._body.strip(b"\r\n"):
            raise DataError(f"{self._file}: there is a header but not one interaction below it.")
        if self._quotes and b'"' in self._body:
            return self._quoted(indices)
        step = len(self._separator)  # "::" is ":" with an empty field between each two
        lines = self._check_fields(step * (len(self.header) - 1))
        body = self._body
        if lines is not None:
            body = b"\n".join(line for line in body.split(b"\n") if line not in (b"", b"\r"))
        names = [f"c{number}" for number in range(step * (len(self.header) - 1) + 1)]
        try:
            frame = pl.read_csv(
                io.BytesIO(body), has_header=False, separator=self._separator[0], quote_char=None,
                schema=dict.fromkeys(names, pl.String), empty_string_is_null=False,
                columns=None if step > 1 else sorted(indices),
            )  # fmt: skip
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise DataError(f"{self._file}: cannot be parsed: {_first_line(error)}.") from None
        first = self._line

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

    def _check_fields(self, expected: int) -> LongArray | None:
        """Line number of each line that is not blank, or None when none is blank."""
        lines: list[LongArray] = []
        blanks = 0
        number, start = self._line, 0
        separator = ord(self._separator[0])
        while start < len(self._body):
            cut = self._body.find(b"\n", start + _CHUNK)
            stop = len(self._body) if cut < 0 else cut + 1
            chunk = np.frombuffer(self._body, np.uint8, stop - start, start)
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

    def _quoted(self, indices: list[int]) -> Table:
        values: list[list[str]] = [[] for _ in indices]
        lines = array("q")
        reader = csv.reader(
            io.StringIO(self._body.decode(), newline=""), delimiter=self._separator, strict=True
        )
        before = self._line
        try:
            for fields in reader:
                if len(fields) > 0:
                    if len(fields) != len(self.header):
                        self._wrong_fields(before, len(fields) - 1)
                    lines.append(before)
                    for column, index in zip(values, indices, strict=True):
                        column.append(fields[index])
                before = self._line + reader.line_num
        except csv.Error as error:
            raise DataError(
                f"{self._file}, line {before}: {error}. Check the quotes on that line."
            ) from None
        names = [self.header[index] for index in indices]
        frame = pl.DataFrame(dict(zip(names, values, strict=True)), dict.fromkeys(names, pl.String))
        return Table(frame, lambda row: f"line {lines[row]}")


def _require_utf8(data: bytes, file: str) -> None:
    if data.isascii():
        return
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # byte order marks
        name, code = ("UTF-16", "utf-16") if wide else ("Latin-1", "latin1")
        raise DataError(
            f"{file}, line {line}: not UTF-8 text. If it is {name}, convert it with: "
            f"iconv -f {code} -t utf-8 OLD > NEW"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
