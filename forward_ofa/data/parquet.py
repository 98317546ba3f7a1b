"""Parquet columns, with errors a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from forward_ofa.data.columns import Table, counted
from forward_ofa.data.log import ROWS_AT_ONCE, DataError


class ParquetFile:
    """A Parquet file, whose columns keep their type. Raises DataError when it cannot be read."""

    unended = False  # a Parquet file that is cut off cannot be read

    def __init__(self, path: Path) -> None:
        self._path = path
        self.header = _schema(path).names()

    def parts(self, indices: list[int]) -> Iterator[Table]:
        """The columns at these indices. Raises DataError when unreadable or empty."""
        names = [self.header[index] for index in indices]
        start, rows = 0, ROWS_AT_ONCE // 2
        while True:
            try:
                lazy = pl.scan_parquet(self._path, glob=False, hive_partitioning=False)
                frame = lazy.select(names).slice(start, rows).collect()
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
                raise _unreadable(self._path, error) from None
            if frame.height == 0:
                break
            yield Table(frame, counted("row", start + 1))
            start += frame.height
        if start == 0:
            raise DataError(
                f"{self._path}: the file has no rows. Give a log with one interaction a row."
            )


def _schema(path: Path) -> pl.Schema:
    try:
        with path.open("rb") as file:
            return pl.Schema(pl.read_parquet_schema(file))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> DataError:
    detail = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    if isinstance(error, pl.exceptions.PanicException):
        detail = "a part of it makes no sense"  # what the reader's code assumed helps nobody
    return DataError(
        f"{path}: not a readable Parquet file ({detail}). "
        "It may be cut off or damaged: copy or export it again."
    )
