"""Logs that grow, and the file that says which."""

from __future__ import annotations

import gzip
import os
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from forward_ofa.data import DataError
from services.trainer.growth import Growth, count_rows, new_rows
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


def test_a_log_that_is_not_there_yet_counts_from_the_files_folder_and_a_named_set_is_refused(
    tmp_path: Path,
):
    path = tmp_path / "schedules.toml"
    path.write_text(GOOD)
    (schedule,) = read_schedules(path)
    assert schedule.job.data == str(tmp_path / "log")
    for name in ("ml-100k", "synthetic"):
        path.write_text(GOOD.replace('"log"', f'"{name}"'))
        with pytest.raises(BadSchedules, match=f"{name} is no log that grows"):
            read_schedules(path)
        (tmp_path / name).mkdir()
        assert read_schedules(path)[0].job.data == str(tmp_path / name)


def test_rows_that_came_by_two_counts():
    assert new_rows(0, 100) == 100 and new_rows(250, 350) == 100 and new_rows(5, 5) == 0
    assert new_rows(2564, 2561) == 0  # some were removed
    assert new_rows(5000, 100) == 100  # another log


def rows(path: Path, count: int) -> Path:
    path.write_text("1,2,3\n" * count)
    return path


def test_of_a_window_that_moves_what_comes_counts_and_not_what_leaves(tmp_path: Path):
    growth = Growth()
    for day in range(3):
        rows(tmp_path / f"{day}.csv", 50 + day)
    assert growth.measure(tmp_path).came == 0
    growth.accept()
    for day in range(3, 6):
        rows(tmp_path / f"{day}.csv", 50 + day)
        (tmp_path / f"{day - 3}.csv").unlink()
        measure = growth.measure(tmp_path)
        growth.accept()
    assert measure.rows == 53 + 54 + 55 and measure.came == 53 + 54 + 55
    # The oldest is packed, the newest renamed: nothing came.
    packed = (tmp_path / "3.csv").read_bytes()
    (tmp_path / "3.csv.gz").write_bytes(gzip.compress(packed))
    (tmp_path / "3.csv").unlink()
    (tmp_path / "5.csv").rename(tmp_path / "newest.csv")
    assert growth.measure(tmp_path) == replace(measure, changed=pytest.approx(0, abs=60))


def test_a_file_that_is_written_over_is_not_taken_for_new_while_it_is_short(tmp_path: Path):
    path, growth = rows(tmp_path / "a.csv", 1000), Growth()
    growth.measure(path)
    growth.accept()
    rows(path, 100)
    assert growth.measure(path).came == 100  # another log, if it stays so: nobody accepted it
    rows(path, 1005)
    assert growth.measure(path).came == 5


def test_a_time_in_the_future_settles_by_our_own_clock(tmp_path: Path, monkeypatch):
    path, growth, clock = rows(tmp_path / "a.csv", 3), Growth(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    os.utime(path, (time.time() + 1e6, time.time() + 1e6))
    assert growth.measure(path).changed == 0
    clock[0] += 30
    assert growth.measure(path).changed == 30
    rows(path, 4)
    os.utime(path, (time.time() + 2e6, time.time() + 2e6))
    assert growth.measure(path).changed == 0


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
        (GOOD, "schedule = 3", "tables, not schedule = 3"),
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
