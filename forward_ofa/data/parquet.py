"""Parquet columns, with errors a person can act on."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from forward_ofa.data.columns import Table
from forward_ofa.data.log import DataError


def parquet_header(path: Path) -> list[str]:
    """Column names of a Parquet file. Raises DataError when it cannot be read."""
    return _schema(path).names()


def parquet_columns(path: Path, indices: list[int]) -> Table:
    """The columns at these indices, of whatever type. Raises DataError when unreadable or empty."""
    names = _schema(path).names()
    try:
        with path.open("rb") as file:
            frame = pl.read_parquet(file, columns=[names[index] for index in indices])
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(path, error) from None
    if frame.height == 0:
        raise DataError(f"{path}: the file has no rows. Give a log with one interaction a row.")
    return Table(frame, lambda row: f"row {row + 1}")


def _schema(path: Path) -> pl.Schema:
    try:
        with path.open("rb") as file:
            return pl.Schema(pl.read_parquet_schema(file))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> DataError:
    detail = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return DataError(
        f"{path}: not a readable Parquet file ({detail}). "
        "It may be cut off or damaged: copy or export it again."
    )
