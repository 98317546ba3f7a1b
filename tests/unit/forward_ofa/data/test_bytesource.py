"""Packed files: unpacked where the name says so, else said to be what they are."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import polars as pl
import pytest

from forward_ofa.data import DataError, read_log

CSV = b"user,item,time\na,1,5\n"
JSON = b'{"user": "a", "item": 1, "time": 5}\n'


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("log.csv", content)
    return buffer.getvalue()


def parquet(_: bytes) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"user": ["a"], "item": [1], "time": [5]}).write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["A.CSV.GZ", "a.csv.Gz", "a.jsonl.GZ", "U.JSON.gz"])
def test_a_name_in_capitals_is_unpacked_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(JSON if "JSON" in name.upper() else CSV))
    log = read_log(path)
    assert (log.user_ids, log.item_ids) == (["a"], ["1"])


@pytest.mark.parametrize(
    ("pack", "expected"),
    [
        (gzip.compress, r"it is a gzip file, not text. Rename it to '{name}.gz'"),
        (zipped, "it is a zip archive .*not text. Unpack it"),
        (bz2.compress, "it is a bzip2 file, not text. Unpack it"),
        (lzma.compress, "it is an xz file, not text. Unpack it"),
        (parquet, r"it is a Parquet file, not text. Rename it to '{name}.parquet'"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "u.data"])
def test_what_a_name_does_not_say_is_said(tmp_path: Path, pack, expected: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pack(CSV))
    with pytest.raises(DataError, match=expected.format(name=name)) as refused:
        read_log(path)
    assert "iconv" not in str(refused.value)


def test_a_text_that_is_called_gz_and_what_is_packed_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(CSV)
    with pytest.raises(DataError, match=r"ends in \.gz, but it is not a gzip file\. Rename it"):
        read_log(path)
    path.write_bytes(gzip.compress(gzip.compress(CSV)))
    with pytest.raises(DataError, match=r"it holds a gzip file\. Unpack it"):
        read_log(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        read_log(path)


def test_ids_that_begin_like_a_packed_file_are_text(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_bytes(b"BZh9\tPK1\t3\t4\nPAR1\tPK1\t3\t5\n")
    assert read_log(path).user_ids == ["BZh9", "PAR1"]
