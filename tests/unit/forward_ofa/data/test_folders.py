"""Folders: what of them is the log, what is left out and said, and what is refused."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import polars as pl
import pytest

from forward_ofa.data import ColumnNames, DataError, InteractionLog, read_log

HEADER = "user,item,time\n"
BODY = "".join(f"{user},{item},{user + item}\n" for user in range(20) for item in range(20))
JSON = '{"user_id": "a", "item_id": 1, "timestamp": 5}\n'
INTER = "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def left_out(log: InteractionLog) -> list[str]:
    return [note for note in log.notes if note.startswith("left out")]


def parquet(folder: Path) -> bytes:
    path = folder / "whole"
    pl.DataFrame({"user": ["a"], "item": ["b"], "time": [1]}).write_parquet(path)
    data = path.read_bytes()
    path.unlink()
    return data


def damaged(folder: Path, name: str) -> bytes:
    """The content of a part of this name that cannot be read."""
    if name.endswith(".gz"):
        return gzip.compress((HEADER + BODY).encode())[:-20]
    if name.endswith(".parquet"):
        return parquet(folder)[:-20]
    if name.endswith(".jsonl"):
        return (JSON[10:] + JSON).encode()
    if name.endswith(".inter"):
        return b"\xe9" + INTER.encode()
    if name.endswith(".json"):
        return f"[{JSON}]".encode()
    return (HEADER + BODY).encode("utf-16")


@pytest.mark.parametrize(
    "name", ["b.csv", "b.csv.gz", "b.parquet", "b.jsonl", "b.json", "b.inter", "b.txt"]
)
def test_a_part_that_cannot_be_read_is_an_error_and_not_left_out(tmp_path: Path, name: str) -> None:
    whole = {".parquet": parquet(tmp_path), ".jsonl": JSON.encode(), ".json": JSON.encode()}
    whole |= {".inter": INTER.encode(), ".gz": gzip.compress((HEADER + BODY).encode())}
    suffix = Path(name).suffix
    for good in ("a", "c"):
        part = tmp_path / name.replace("b", good, 1)
        part.write_bytes(whole.get(suffix, (HEADER + BODY).encode()))
    assert len(read_log(tmp_path)) > 1
    bad = tmp_path / name
    bad.write_bytes(damaged(tmp_path, name))
    with pytest.raises(DataError) as alone:
        read_log(bad)
    with pytest.raises(DataError) as together:
        read_log(tmp_path)
    assert str(together.value) == str(alone.value) and str(bad) in str(alone.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("name", ["b.csv", "b.parquet"])
def test_a_part_that_may_not_be_read_is_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.csv", HEADER + BODY)
    write(tmp_path / name, HEADER + BODY).chmod(0)
    with pytest.raises(DataError, match=rf"{name}: .*[Pp]ermission"):
        read_log(tmp_path)


def test_a_part_with_a_column_twice_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + BODY)
    write(tmp_path / "b.csv", "user,user,item,time\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"b\.csv: two columns are called 'user'"):
        read_log(tmp_path)


def test_what_is_left_out_is_said_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + BODY)
    write(tmp_path / "b.csv", "")
    write(tmp_path / "c.csv.gz", "\n\n")
    write(tmp_path / "d.parquet", "")
    write(tmp_path / "e.csv", HEADER + "\n")
    pl.DataFrame(schema={"user": int, "item": int, "time": int}).write_parquet(tmp_path / "f.pq")
    write(tmp_path / "people.csv", "user_id,age\n1,30\n")
    write(tmp_path / "settings.json", '{\n  "a": 1\n}\n')
    write(tmp_path / "old.dat", "1::2::3::4\n")
    (tmp_path / "readme.txt").write_bytes("Größe".encode("latin-1"))
    assert left_out(read_log(tmp_path)) == [
        "left out b.csv, c.csv.gz, d.parquet, e.csv, f.pq: without rows",
        "left out old.dat: of such files only u.data and ratings.dat are read from a folder",
        "left out people.csv: without a user, an item and a time column that are known",
        "left out settings.json: one JSON object over several lines, not one a line",
    ]


def test_settings_that_are_cut_off_may_be_a_part(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + BODY)
    path = write(tmp_path / "settings.json", '{\n  "a": 1\n')
    for content in (path.read_bytes(), JSON.encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"settings\.json, line 1: not "):
            read_log(tmp_path)


def test_with_a_header_given_files_of_other_columns_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", BODY)
    write(tmp_path / "b.csv", BODY.replace("1", "5"))
    write(tmp_path / "c.csv", "1,2\n")
    write(tmp_path / "d.jsonl", JSON)
    log = read_log(tmp_path, ColumnNames(header=("user", "item", "time")))
    assert len(log) == 800
    assert left_out(log) == ["left out c.csv, d.jsonl: without the columns that --header names"]


def test_many_that_are_left_out_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + BODY)
    for number in range(1, 13):
        write(tmp_path / f"empty-{number}.csv", "")
    assert left_out(read_log(tmp_path)) == [
        "left out empty-1.csv, empty-2.csv, empty-3.csv, empty-4.csv, empty-5.csv and 7 more: "
        "without rows"
    ]


def test_an_official_name_does_not_hide_other_data(tmp_path: Path) -> None:
    text = "userId,movieId,rating,timestamp\n1,2,3,4\n"
    log = write(tmp_path / "ratings.csv", text)
    for name in ("movies", "users", "tags", "links", "genome-scores", "genome-tags"):
        write(tmp_path / f"{name}.csv", "movieId,title\n2,Two\n")
    write(tmp_path / "README.txt", "about")
    write(tmp_path / "doc" / "README.txt", "about")
    assert left_out(read_log(tmp_path)) == []
    write(tmp_path / "ratings-2024.csv", text.replace("2,3", "5,3"))
    write(tmp_path / "day=2" / "x.parquet", "not looked at")
    found = read_log(tmp_path)
    assert len(found) == 1
    assert left_out(found) == [
        "left out day=2/x.parquet, ratings-2024.csv: beside ratings.csv nothing else is read, as "
        "in a MovieLens release"
    ]
    assert left_out(read_log(log)) == []


def test_side_files_of_older_releases_are_not_mentioned(tmp_path: Path) -> None:
    write(tmp_path / "u.data", "1\t2\t3\t4\n")
    for name in ("README", "u.item", "u.user", "u.genre", "u.occupation", "u.info", "u1.base",
                 "ub.test", "mku.sh", "allbut.pl"):  # fmt: skip
        write(tmp_path / name, "1|2\n")
    assert left_out(read_log(tmp_path)) == []
    (tmp_path / "u.data").unlink()
    write(tmp_path / "ratings.dat", "1::2::3::4\n")
    for name in ("users.dat", "tags.dat", "movies.dat"):
        write(tmp_path / name, "1::a::b\n")
    assert left_out(read_log(tmp_path)) == []


@pytest.mark.parametrize(
    ("first", "second"), [("ratings.csv", "u.data"), ("ratings.csv", "ratings.csv.gz")]
)
def test_two_official_names_are_refused(tmp_path: Path, first: str, second: str) -> None:
    for name in (first, second):
        separator = "\t" if name == "u.data" else ","
        write(tmp_path / name, separator.join(["user_id", "item_id", "rating", "timestamp\n"]))
    with pytest.raises(DataError, match=rf"{first} and {second} could each be .*{first}\.$"):
        read_log(tmp_path)


def test_recbole_does_not_hide_other_data(tmp_path: Path) -> None:
    write(tmp_path / "a.inter", INTER)
    write(tmp_path / "a.item", "item_id:token\ttitle:token\n2\tTwo\n")
    assert left_out(read_log(tmp_path)) == []
    write(tmp_path / "b.csv", HEADER + BODY)
    assert left_out(read_log(tmp_path)) == [
        "left out b.csv: beside a .inter file no other format is read"
    ]


def test_sub_folders_with_data_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + BODY)
    for name in ("images/1.png", ".git/a.csv", "_tmp/a.csv", "seen/_tmp/a.csv", "doc/readme.txt"):
        write(tmp_path / name, HEADER)
    assert left_out(read_log(tmp_path)) == []
    write(tmp_path / "sub" / "b.csv", HEADER + BODY)
    write(tmp_path / "more" / "2024" / "b.parquet", "")
    assert left_out(read_log(tmp_path)) == [
        "left out more/, sub/: of sub-folders only those called key=value are read"
    ]
    (tmp_path / "a.csv").unlink()
    with pytest.raises(DataError, match=r"there is: doc/, images/, more/, seen/, sub/\. Give the"):
        read_log(tmp_path)


def test_json_parts_need_to_agree_only_on_what_is_used(tmp_path: Path) -> None:
    write(tmp_path / "p0.jsonl", JSON)
    write(tmp_path / "p1.jsonl", JSON.replace("{", '{"vote": 3, ').replace('"a"', '"b"'))
    log = read_log(tmp_path)
    assert list(log.user_ids) == ["a", "b"] and not left_out(log)
    write(tmp_path / "p2.jsonl", JSON.replace("user_id", "user"))
    with pytest.raises(DataError, match="They differ in format or columns"):
        read_log(tmp_path)


def test_archives_and_spreadsheets_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + BODY)
    for name in ("more.csv.zip", "old.xlsx", "rest.csv.zst"):
        (tmp_path / name).write_bytes(b"x")
    names = "more.csv.zip, old.xlsx, rest.csv.zst"
    assert left_out(read_log(tmp_path)) == [
        f"left out {names}: a format that is not read, unpack or convert it"
    ]


def test_a_list_of_items_in_a_later_part_is_refused(tmp_path: Path) -> None:
    for name, kind in (("a", "token"), ("b", "token_seq")):
        header = f"user_id:token\titem_id:{kind}\ttimestamp:float"
        (tmp_path / f"{name}.inter").write_text(f"{header}\n1\t2\t3\n")
    with pytest.raises(DataError, match=r"b\.inter: column 'item_id' is a list"):
        read_log(tmp_path)
