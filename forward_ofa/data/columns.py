"""Which columns hold user, item and time, and how their values become ids and timestamps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
import polars as pl

from forward_ofa.data.log import DataError, LongArray

# Compared with the header in lower case, without punctuation: "userId", "user_id" and "User ID"
# are all "userid". The first synonym that is present wins, so the more specific stand first:
# milliseconds before seconds, Amazon's parent product before its variant.
USER_SYNONYMS = (
    "userid", "user", "uid", "customerid", "customer", "reviewerid", "reviewer", "visitorid",
    "visitor", "memberid", "accountid", "clientid", "deviceid", "username", "sessionid", "session",
)  # fmt: skip
ITEM_SYNONYMS = (
    "itemid", "item", "iid", "movieid", "movie", "parentasin", "asin", "productid", "product",
    "bookid", "isbn", "gameid", "trackid", "songid", "artistid", "videoid", "newsid", "articleid",
    "businessid", "stockcode", "sku",
)  # fmt: skip
TIME_SYNONYMS = (
    "timestampms", "timestamp", "unixreviewtime", "unixtime", "time", "datetime", "date", "ts",
    "eventtime", "createdat", "reviewtime", "invoicedate", "purchasedate", "orderdate",
)  # fmt: skip
TITLE_SYNONYMS = (
    "title", "movietitle", "itemtitle", "producttitle", "itemname", "productname", "name",
    "description",
)  # fmt: skip

# Only to say that they are not used.
RATING_SYNONYMS = (
    "rating", "ratings", "starrating", "reviewrating", "userrating", "overall", "stars",
)  # fmt: skip

_MISSING_TIMES = ("", "null", "NULL", "None", "<NA>")
MISSING_IDS = (*_MISSING_TIMES, "nan", "NaN", "NAN")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UnknownColumns(DataError):
    """A file can be read, but its columns are not those of a log, or not those that were named."""


@dataclass(frozen=True)
class ColumnNames:
    """Names of the columns to read; None means: recognise it among the documented synonyms.

    header: names of all columns of a text that has no header line, in their order.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    header: tuple[str, ...] | None = None

    def given(self) -> bool:
        """Whether any column was named."""
        return any((self.user, self.item, self.timestamp, self.header))


@dataclass(frozen=True)
class Table:
    """Columns as read, and how to name the place of a row (counted from 0) to a person."""

    frame: pl.DataFrame
    place: Callable[[int], str]


def counted(what: str, first: int) -> Callable[[int], str]:
    """Places of rows by number: "line 12" for row 10 of rows that begin in line 2."""
    return lambda row: f"{what} {first + row}"


class TableFile(Protocol):
    """A file whose columns are known by name and read a part at a time."""

    @property
    def header(self) -> list[str]: ...

    @property
    def unended(self) -> bool:
        """Whether its last line has no line end and may be cut off; known when all was read."""

    def has_rows(self) -> bool:
        """Whether there is anything below the header."""

    def parts(self, indices: list[int]) -> Iterator[Table]:
        """These columns, some millions of rows at most at a time, in the order of the file."""


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_column(header: list[str], synonyms: tuple[str, ...]) -> int | None:
    """Index of the column that carries the best synonym, or None."""
    normal = [_normal(name) for name in header]
    return next((normal.index(synonym) for synonym in synonyms if synonym in normal), None)


def resolve(header: list[str], names: ColumnNames, file: str) -> tuple[int, int, int]:
    """Indices of the user, item and time columns.

    Raises DataError that names the columns found and the option to use: UnknownColumns if one of
    the three is not there.
    """
    wanted = (
        (names.user, USER_SYNONYMS, "user", "--user-column"),
        (names.item, ITEM_SYNONYMS, "item", "--item-column"),
        (names.timestamp, TIME_SYNONYMS, "time", "--time-column"),
    )
    found: list[int] = []
    problems: list[str] = []
    for given, synonyms, role, option in wanted:
        if given is not None:
            index = header.index(given) if given in header else None
        else:
            index = find_column(header, synonyms)
        if index is not None:
            found.append(index)
        elif given is not None:
            problems.append(f"{option} {given!r} is not one of its columns")
        else:
            problems.append(f"no {role} column was recognised (name it with {option})")
    if problems:
        columns = ", ".join(repr(name[:40]) for name in header[:20])
        more = f" and {len(header) - 20} more" if len(header) > 20 else ""
        raise UnknownColumns(
            f"{file}: {'; '.join(problems)}. Columns found: {columns}{more}.{_no_header(header)}"
        )
    for index in found:
        if header.count(header[index]) > 1:
            raise DataError(
                f"{file}: two columns are called {header[index]!r}. Rename one of them."
            )
    if len(set(found)) < len(found):
        raise DataError(
            f"{file}: user, item and time must be three different columns, got "
            f"{', '.join(repr(header[index]) for index in found)}. "
            "Set --user-column, --item-column and --time-column."
        )
    return found[0], found[1], found[2]


def _no_header(header: list[str]) -> str:
    if any(re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", name) for name in header):
        return (
            " The first line looks like data: name all columns with --header, "
            "e.g. user_id,item_id,rating,timestamp."
        )
    return ""


def to_ids(table: Table, column: str, file: str) -> pl.Series:
    """External ids as strings; whole floats lose their '.0'.

    Raises DataError, with the place, for a missing, blank, NaN or fractional id.
    """
    series = table.frame[column]
    if series.dtype.is_float():
        series = series.fill_nan(None)
        fractional = (series.round(0) != series) | (series.abs() >= 2.0**53)
        _refuse(table, fractional, column, file, "is not a whole number; an id must be one")
        series = series.cast(pl.Int64)
    elif not (series.dtype.is_integer() or series.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(
            f"{file}: column {column!r} has type {series.dtype}; ids must be integers or strings. "
            "Convert it, or name another column."
        )
    series = series.cast(pl.String)
    missing = series.is_null() | series.is_in(MISSING_IDS) | (series.str.strip_chars() == "")
    _refuse(table, missing, column, file, "is empty or NaN; drop such rows or fill in the id")
    return series


class TimeReader:
    """Timestamps of one log, part by part; what the parts say must fit together.

    Whole numbers stay in their unit. Fractional numbers, dates and ISO 8601 strings become
    microseconds (since 1970 for dates; without an offset they are taken as UTC).
    """

    def __init__(self, column: str, file: str) -> None:
        self._column, self._file = column, file
        self._numbers: bool | None = None  # or moments; None: nothing was read yet

    @property
    def are_numbers(self) -> bool:
        """Whether the times read so far are numbers and not dates."""
        return self._numbers is not False

    def read(self, table: Table) -> tuple[LongArray, bool]:
        """(int64 [n], whether these are microseconds).

        Raises DataError, with the place, for a missing or unreadable value.
        """
        series = table.frame[self._column]
        if series.dtype in (pl.Categorical, pl.Enum):
            series = series.cast(pl.String)
        missing = series.is_null()
        if series.dtype == pl.String:
            series = series.str.strip_chars()
            missing |= series.is_in(_MISSING_TIMES)
        self._refuse(table, missing, "is empty; drop such rows or fill in the time")
        if series.dtype == pl.String:
            return self._from_strings(table, series)
        if series.dtype in (pl.Datetime, pl.Date):
            self._expect(table, numbers=False)
            return series.cast(pl.Datetime("us")).cast(pl.Int64).to_numpy(), True
        if series.dtype.is_numeric():
            return self._from_numbers(table, series)
        raise DataError(
            f"{self._file}: column {self._column!r} has type {series.dtype}; a time must be a "
            "number, a date or an ISO 8601 string. Convert it, or name another column with "
            "--time-column."
        )

    def _refuse(self, table: Table, wrong: pl.Series, why: str) -> None:
        _refuse(table, wrong, self._column, self._file, why)

    def _expect(self, table: Table, *, numbers: bool) -> None:
        if self._numbers is (not numbers):
            kinds = ("a number", "a date") if numbers else ("a date", "a number")
            why = f"is {kinds[0]}, where the rows before have {kinds[1]}"
            self._refuse(table, pl.Series([True]), why)
        self._numbers = numbers

    def _from_numbers(self, table: Table, series: pl.Series) -> tuple[LongArray, bool]:
        self._expect(table, numbers=True)
        message = "is not a time that fits 64 bits"
        if series.dtype.is_integer():
            whole = series.cast(pl.Int64, strict=False)
            self._refuse(table, whole.is_null(), message)
            return whole.to_numpy(), False
        values = series.cast(pl.Float64).to_numpy()
        why = "is not a number; drop such rows or fill in the time"
        self._refuse(table, pl.Series(np.isnan(values)), why)
        integral = bool(np.all(values == np.floor(values)))
        limit = 2.0**62 if integral else 2.0**62 / 1e6
        wrong = pl.Series(~(np.abs(values) < limit))
        self._refuse(table, wrong, message)
        return (values if integral else np.round(values * 1e6)).astype(np.int64), not integral

    def _from_strings(self, table: Table, series: pl.Series) -> tuple[LongArray, bool]:
        whole = series.cast(pl.Int64, strict=False)
        if whole.null_count() == 0:
            return self._from_numbers(table, whole)
        number = series.cast(pl.Float64, strict=False)
        if number.null_count() == 0:
            return self._from_numbers(table, number)
        if number[0] is not None or self._numbers:
            self._refuse(table, number.is_null(), "is not a number, unlike the first one")
        self._expect(table, numbers=False)
        return self._from_iso(table, series), True

    def _from_iso(self, table: Table, series: pl.Series) -> LongArray:
        micros = np.empty(len(series), dtype=np.int64)
        for row, text in enumerate(series):
            try:
                moment = datetime.fromisoformat(text)
                aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
                micros[row] = (aware - _EPOCH) // _MICROSECOND
            except (ValueError, OverflowError):
                raise DataError(
                    f"{self._file}, {table.place(row)}: column {self._column!r} has {text[:40]!r}, "
                    "which is neither a number nor an ISO 8601 time such as 2024-05-31T18:00:00Z. "
                    "Convert it, or name another column with --time-column."
                ) from None
        return micros


def _refuse(table: Table, wrong: pl.Series, column: str, file: str, why: str) -> None:
    rows = wrong.fill_null(False).arg_true()
    if len(rows):
        row = int(rows[0])
        value = str(table.frame[column][row])[:40]
        others = f" (and {len(rows) - 1:,} more rows)" if len(rows) > 1 else ""
        raise DataError(f"{file}, {table.place(row)}: column {column!r} has {value!r}, which {why}"
                        f"{others}.")  # fmt: skip
