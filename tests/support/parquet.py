"""Parquet files that polars would not write: with time zones that it does not know."""

from __future__ import annotations

import base64
import io
import re
from datetime import datetime

import polars as pl

MOMENTS = [datetime(2024, 1, 31, 20, 0, 0, 250_000), datetime(2024, 7, 1, 12)]
STAND_IN = "Israel"  # as long as "+05:30"


def parquet_of(frame: pl.DataFrame, old: str, new: str) -> bytes:
    """The frame as a Parquet file in which a text, also of the Arrow schema, is another."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    whole = buffer.getvalue()
    for match in re.finditer(rb"[A-Za-z0-9+/]{80,}={0,2}", whole):
        schema = base64.b64decode(match.group()).replace(old.encode(), new.encode())
        whole = whole.replace(match.group(), base64.b64encode(schema))
    assert len(whole) == len(buffer.getvalue())
    return whole.replace(old.encode(), new.encode())


def with_zone(zone: str, unit: str = "us") -> bytes:
    """Two rows with user, item and time, which has this time zone."""
    column = pl.Series(MOMENTS, dtype=pl.Datetime(unit)).dt.replace_time_zone("UTC")
    times = column.dt.convert_time_zone(STAND_IN if len(zone) == len(STAND_IN) else zone)
    frame = pl.DataFrame({"user": ["a", "a"], "item": [1, 2], "time": times})
    return parquet_of(frame, STAND_IN, zone if len(zone) == len(STAND_IN) else STAND_IN)
