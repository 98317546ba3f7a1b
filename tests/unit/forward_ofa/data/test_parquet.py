"""Parquet: time zones that polars does not know, and faults that are not called damage."""

from __future__ import annotations

import gzip
import os
from datetime import UTC
from pathlib import Path

import polars as pl
import pytest

from forward_ofa.data import DataError, read_log
from forward_ofa.data.parquet import ParquetFile
from tests.support.parquet import MOMENTS, STAND_IN, parquet_of, with_zone

ANY_ZONE = "POLARS_IGNORE_TIMEZONE_PARSE_ERROR"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has read no Parquet file yet."""
    monkeypatch.delenv(ANY_ZONE, raising=False)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("zone", ["+05:30", "-08:00", "UTC+01", "Xsrael", "UTC", "Asia/Kolkata"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_of_any_zone_are_the_moments_that_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], zone: str, unit: str
) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(with_zone(zone, unit))
    log = read_log(path)
    expected = [round(moment.replace(tzinfo=UTC).timestamp() * 1e6) for moment in MOMENTS]
    assert log.timestamps.tolist() == expected
    assert log.item_ids == ["1", "2"]
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.usefixtures("fresh")
def test_a_zone_of_a_column_that_is_not_used_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    times = pl.Series(MOMENTS).dt.replace_time_zone(STAND_IN)
    frame = pl.DataFrame({"user": ["a", "a"], "item": [1, 2], "time": [5, 6], "seen": times})
    path.write_bytes(parquet_of(frame, STAND_IN, "+05:30"))
    assert read_log(path).timestamps.tolist() == [5, 6]


def test_a_missing_time_of_a_strange_zone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    times = pl.Series([MOMENTS[0], None]).dt.replace_time_zone(STAND_IN)
    frame = pl.DataFrame({"user": ["a", "a"], "item": [1, 2], "time": times})
    path.write_bytes(parquet_of(frame, STAND_IN, "+05:30"))
    with pytest.raises(DataError, match="row 2: column 'time' has 'None', which is empty"):
        read_log(path)


def test_a_panic_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(with_zone("+05:30"))
    monkeypatch.setenv(ANY_ZONE, "0")  # whoever set it meant it
    with pytest.raises(DataError, match="not a readable Parquet file"):
        ParquetFile(path)
    monkeypatch.setenv(ANY_ZONE, "1")
    table = ParquetFile(path)
    monkeypatch.setenv(ANY_ZONE, "0")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(table.parts([0]))


def test_two_columns_of_one_name_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    frame = pl.DataFrame({"user": [1], "item": [2], "time": [3], "seen": [4]})
    path.write_bytes(parquet_of(frame, "seen", "user"))
    with pytest.raises(DataError, match="'user' has more than one occurrence") as refused:
        read_log(path)
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize("where", ["open", "scan"])
def test_what_may_not_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(with_zone("UTC"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    table = ParquetFile(path)
    monkeypatch.setattr(*((Path, "open") if where == "open" else (pl, "scan_parquet")), refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as refused:
        list((ParquetFile(path) if where == "open" else table).parts([0]))
    assert "damaged" not in str(refused.value)


def test_a_file_that_is_gone_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(with_zone("UTC"))
    table = ParquetFile(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file") as refused:
        list(table.parts([0]))
    assert "damaged" not in str(refused.value)


def test_a_packed_file_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(gzip.compress(with_zone("UTC")))
    with pytest.raises(DataError, match="not a readable Parquet file but a gzip file"):
        read_log(path)
