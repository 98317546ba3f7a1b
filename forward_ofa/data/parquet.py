"""Parquet columns, with errors a person can act on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from forward_ofa.data.bytesource import container
from forward_ofa.data.columns import Table, counted
from forward_ofa.data.log import ROWS_AT_ONCE, DataError

_ANY_ZONE = "POLARS_IGNORE_TIMEZONE_PARSE_ERROR"
_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


class ParquetFile:
    """A Parquet file, whose columns keep their type. Raises DataError when it cannot be read.

    Times with a time zone are given as UTC, which is what the file holds: the zone says only how
    to show them.
    """

    unended = False  # a Parquet file that is cut off cannot be read

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header = _schema(path).names()

    def has_rows(self) -> bool:
        """Whether there is one, by its footer. Raises DataError when it cannot be read."""
        return row_count(self._path) > 0

    def parts(self, indices: list[int]) -> Iterator[Table]:
        """The columns at these indices. Raises DataError when unreadable or empty."""
        names = [self.header[index] for index in indices]
        start, rows = 0, ROWS_AT_ONCE // 2
        while True:
            try:
                lazy = pl.scan_parquet(self._path, glob=False, hive_partitioning=False)
                frame = lazy.select(names).slice(start, rows).collect()
            except _FAULTS as error:
                raise _unreadable(self._path, error) from None
            if frame.height == 0:
                break
            yield Table(_without_zones(frame), counted("row", start + 1))
            start += frame.height
        if start == 0:
            raise DataError(
                f"{self._path}: the file has no rows. Give a log with one interaction a row."
            )


def row_count(path: Path) -> int:
    """Rows of a Parquet file, by its footer. Raises DataError when it cannot be read."""
    _schema(path)
    try:
        found = pl.scan_parquet(path, glob=False, hive_partitioning=False).select(pl.len())
        return int(found.collect().item())
    except _FAULTS as error:
        raise _unreadable(path, error) from None


def _schema(path: Path) -> pl.Schema:
    # Else polars panics at zones that it does not know, "+05:30" among them, in any column. It
    # looks at this each time it opens a file, so it need not be set before polars is imported.
    os.environ.setdefault(_ANY_ZONE, "1")
    try:
        with path.open("rb") as file:
            _refuse_packed(path, file.peek(16))
            return pl.Schema(pl.read_parquet_schema(file))
    except _FAULTS as error:
        raise _unreadable(path, error) from None


def _without_zones(frame: pl.DataFrame) -> pl.DataFrame:
    """Moments in UTC, of which no zone must be known to show one."""
    return frame.with_columns(
        frame[name].to_physical().cast(pl.Datetime(kind.time_unit)).alias(name)
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Datetime) and kind.time_zone is not None
    )


def _refuse_packed(path: Path, head: bytes) -> None:
    what = container(head)
    if what is not None and not head.startswith(b"PAR1"):
        raise DataError(
            f"{path}: not a readable Parquet file but {what}. Unpack it, or give it the name of "
            "what it is."
        )


def _unreadable(path: Path, error: BaseException) -> DataError:
    detail = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    if isinstance(error, OSError):
        return DataError(f"{path}: cannot be read: {error.strerror or detail}.")
    if isinstance(error, pl.exceptions.DuplicateError):
        return DataError(f"{path}: {detail}. Rename one of them.")
    if isinstance(error, pl.exceptions.PanicException):
        detail = "a part of it makes no sense"  # what the reader's code assumed helps nobody
    return DataError(
        f"{path}: not a readable Parquet file ({detail}). "
        "It may be cut off or damaged: copy or export it again."
    )
