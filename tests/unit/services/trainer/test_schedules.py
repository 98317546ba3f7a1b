"""Logs that grow, and the file that says which."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import polars as pl
import pytest

from forward_ofa.data import DataError
from services.trainer.growth import Growth, count_rows
from services.trainer.schedules import BadSchedules, read_schedules
from tests.support.parquet import with_zone

GOOD = """
[[schedule]]
name = "shop"
look_seconds = 5
min_new_rows = 100
[schedule.job]
data = "log"
label = "canary"
percent = 5
[schedule.job.settings]
"device_rec.epochs" = 3
warm_start = false
"""


def test_rows_of_all_kinds_of_files(tmp_path: Path):
    (tmp_path / "a.csv").write_text("user,item,time\n1,2,3\n4,5,6")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"1,2,3\n" * 50))
    pl.DataFrame({"user": [1, 2, 3]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / ".hidden").write_text("not\na\nlog\n")
    assert Growth().measure(tmp_path).rows == 3 + 50 + 3


def test_a_parquet_file_with_times_of_a_zone_that_is_only_an_offset(tmp_path: Path):
    (tmp_path / "log.parquet").write_bytes(with_zone("+05:30"))
    assert count_rows(tmp_path / "log.parquet") == 2


def test_only_what_changed_is_read_again(tmp_path: Path):
    old, growth = tmp_path / "a.csv", Growth()
    old.write_text("1\n2\n")
    stamp = old.stat()
    assert growth.measure(tmp_path).rows == 2
    # Same size and time: not read. A real log does not do that.
    old.write_text("123\n")
    os.utime(old, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (tmp_path / "b.csv").write_text("1\n2\n3\n")
    assert growth.measure(tmp_path).rows == 5
    os.utime(old)
    measure = growth.measure(tmp_path)
    assert measure.rows == 4 and measure.settled and measure.changed < 60


@pytest.mark.parametrize("name", ["log.csv.gz", "log.parquet"])
def test_a_file_that_is_cut_off_is_no_log(tmp_path: Path, name: str):
    whole = tmp_path / f"whole-{name}"
    if name.endswith(".gz"):
        whole.write_bytes(gzip.compress(os.urandom(2000)))
    else:
        pl.DataFrame({"user": list(range(1000))}).write_parquet(whole)
    cut = tmp_path / name
    cut.write_bytes(whole.read_bytes()[:-100])
    assert count_rows(whole) >= 1
    with pytest.raises((OSError, DataError), match="cut off"):
        count_rows(cut)


def test_no_file_is_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Growth().measure(tmp_path)


def test_a_schedule_is_read(tmp_path: Path):
    path = tmp_path / "schedules.toml"
    path.write_text(GOOD)
    (tmp_path / "log").mkdir()
    (schedule,) = read_schedules(path)
    assert schedule.job.data == str(tmp_path / "log")
    assert schedule.job.settings == {"device_rec.epochs": "3", "warm_start": "false"}
    assert schedule.due(100, None) and not schedule.due(99, None)
    assert schedule.due(350, 250) and not schedule.due(349, 250)
    assert schedule.due(100, 5000)  # a log that was replaced


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('name = "shop"', "", "lacks"),
        ('name = "shop"', 'name = "Shop!"', "small letters"),
        ("look_seconds = 5", "look_seconds = 0", "look_seconds"),
        ("look_seconds = 5", "look_seconds = true", "number of seconds, not True"),
        ("look_seconds = 5", "settle_seconds = inf", "settle_seconds must be a number"),
        ("look_seconds = 5", "every = 5", "shop: the schedule has an unknown key 'every'"),
        ("min_new_rows = 100", "min_new_rows = nan", "whole number"),
        ("min_new_rows = 100", "min_new_rows = 1.5", "whole number"),
        ("min_new_rows = 100", 'min_new_rows = "a"', "whole number"),
        ("percent = 5", "foo = 5", "its job has an unknown key 'foo'"),
        ("percent = 5", "recipe = 3", "recipe must be text, not 3"),
        ("percent = 5", "percent = true", "percent must be a number"),
        ("percent = 5", "log = 5", "log must be a table"),
        ("percent = 5", "percent = 500", "canary's share"),
        ('label = "canary"', "label = 5", "label"),
        ('data = "log"', "", "lacks"),
        ('data = "log"', 'data = ""', "path is empty"),
        ('data = "log"', 'data = "~nobody-here/log"', "Check the name after ~"),
        ("[[schedule]]", "[schedules]", "only have"),
        ("[[schedule]]", "[[", "cannot be read"),
        ('"device_rec.epochs" = 3', '"device_rec.epochs" = 0', "at least 1"),
        (GOOD, GOOD + GOOD, "same name"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str, text: str):
    path = tmp_path / "schedules.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(BadSchedules, match=text):
        read_schedules(path)


def test_time_since_the_last_change(tmp_path: Path):
    path = tmp_path / "log.csv"
    path.write_text("1\n")
    os.utime(path, (time.time() - 100, time.time() - 100))
    assert 99 < Growth().measure(path).changed < 200
