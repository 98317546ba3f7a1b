"""Official layouts, as small files: each gives the rows, or says what to do."""

from __future__ import annotations

import gzip
import json
import os
import socket
from pathlib import Path

import polars as pl
import pytest

from forward_ofa.data import (
    ColumnNames,
    DataError,
    InteractionLog,
    load,
    load_dataset,
    read_log,
)

AMAZON = [
    ("A2HD75EMZR8QLN", "0700099867", 1341792000),
    ("A3UR8NLLY1ZHCX", "B00000JL6V", 1372550400),
    ("A1INA0F5CWW3J4", "B00000JL6V", 1403913600),
]
BY_USER = sorted(AMAZON)


def rows_of(log: InteractionLog) -> list[tuple[str, str, int]]:
    return [
        (log.user_ids[u], log.item_ids[i], int(t))
        for u, i, t in zip(log.users, log.items, log.timestamps, strict=True)
    ]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def reviews(loose: bool = False) -> str:
    records = [
        {"reviewerID": user, "asin": item, "helpful": [8, 12], "reviewText": 'It\'s "good"',
         "overall": 1.0, "unixReviewTime": time, "reviewTime": "07 9, 2012"}
        for user, item, time in AMAZON
    ]  # fmt: skip
    return "".join((repr(r) if loose else json.dumps(r)) + "\n" for r in records)


def test_amazon_2014_ratings_without_a_header(tmp_path: Path) -> None:
    text = "".join(f"{user},{item},5.0,{time}\n" for user, item, time in AMAZON)
    log = read_log(write(tmp_path / "ratings_Video_Games.csv", text))
    assert rows_of(log) == BY_USER
    assert "user_id, item_id, rating, timestamp; no header" in log.source


def test_amazon_2018_ratings_begin_with_the_item(tmp_path: Path) -> None:
    text = "".join(f"{item},{user},5.0,{time}\n" for user, item, time in AMAZON)
    log = read_log(write(tmp_path / "Video_Games.csv", text))
    assert rows_of(log) == BY_USER
    assert "item_id, user_id, rating, timestamp; no header" in log.source


def test_amazon_ratings_that_could_be_either_way_are_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "A000000001,A000000002,5.0,1341792000\n" * 3)
    with pytest.raises(DataError, match="--header"):
        read_log(path)
    names = ColumnNames(header=("item_id", "user_id", "rating", "timestamp"))
    assert rows_of(read_log(path, names))[0] == ("A000000002", "A000000001", 1341792000)
    with pytest.raises(DataError, match="2 names, the first line has 4 fields"):
        read_log(path, ColumnNames(header=("user_id", "item_id")))
    with pytest.raises(DataError, match="--header is for a CSV"):
        read_log(write(tmp_path / "u.data", "1\t2\t3\t4\n"), ColumnNames(header=("a",)))


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("name", ["reviews_Games_5.json.gz", "reviews_Games_5.json"])
def test_amazon_2014_and_2018_reviews_with_titles(tmp_path: Path, name: str, loose: bool) -> None:
    path = write(tmp_path / name, reviews(loose))
    meta = (
        "{'asin': 'B00000JL6V', 'title': \"Rollo's \\\"quest\\\"\", 'price': 1.5}\n{'asin': 'X'}\n"
    )
    write(tmp_path / "meta_Games.json.gz", meta)
    for log in (read_log(path), read_log(tmp_path)):
        assert rows_of(log) == BY_USER
        assert log.titles == {"B00000JL6V": 'Rollo\'s "quest"'}


def test_amazon_2023_files(tmp_path: Path) -> None:
    header = "user_id,parent_asin,rating,timestamp\n"
    text = header + "".join(f"{u},{i},5.0,{t}000\n" for u, i, t in AMAZON)
    log = read_log(write(tmp_path / "a" / "Video_Games.csv.gz", text))
    assert rows_of(log) == [(user, item, time * 1000) for user, item, time in BY_USER]
    lines = "".join(
        json.dumps({"rating": 5.0, "title": "Fine", "asin": "VARIANT", "parent_asin": i,
                    "user_id": u, "timestamp": t * 1000, "verified_purchase": True}) + "\n"
        for u, i, t in AMAZON
    )  # fmt: skip
    write(tmp_path / "b" / "meta_Video_Games.jsonl.gz",
          json.dumps({"title": "Quest", "parent_asin": "B00000JL6V"}) + "\n")  # fmt: skip
    log = read_log(write(tmp_path / "b" / "Video_Games.jsonl.gz", lines))
    assert rows_of(log) == [(user, item, time * 1000) for user, item, time in BY_USER]
    assert log.titles == {"B00000JL6V": "Quest"}


def test_benchmark_splits_are_one_log(tmp_path: Path) -> None:
    header = "user_id,parent_asin,rating,timestamp\n"
    for name, row in (("valid", "A,2,5,7\n"), ("test", "A,3,5,7\n"), ("train", "A,1,5,7\n")):
        write(tmp_path / f"Games.{name}.csv.gz", header + row)
    log = read_log(tmp_path)
    assert [item for _, item, _ in rows_of(log)] == ["1", "2", "3"]
    assert log.source.startswith("3 parts, each a table in text file")


@pytest.mark.parametrize("form", ["csv", "parquet", "csv.gz", "jsonl"])
def test_parts_in_a_folder_are_read_in_order(tmp_path: Path, form: str) -> None:
    for number in range(12):
        frame = pl.DataFrame({"user": ["u"], "item": [number], "time": [5]})
        path = tmp_path / f"day={number // 6}" / f"part-{number}.{form}"
        path.parent.mkdir(exist_ok=True)
        if form == "parquet":
            frame.write_parquet(path)
        elif form == "jsonl":
            frame.write_ndjson(path)
        else:
            write(path, frame.write_csv())
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-0.crc").write_bytes(b"x")
    assert [item for _, item, _ in rows_of(read_log(tmp_path))] == [str(n) for n in range(12)]


def test_a_link_to_nothing_among_the_parts_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").symlink_to("/nonexistent/b.csv")
    for _ in range(2):  # alone, and beside a good part
        with pytest.raises(DataError, match=r"b\.csv: a link to /nonexistent/b\.csv, which is not"):
            read_log(tmp_path)
        write(tmp_path / "a.csv", "user,item,time\n1,2,3\n")
    (tmp_path / "b.csv").unlink()
    (tmp_path / ".b.csv").symlink_to("/nonexistent/b.csv")
    (tmp_path / "c.csv").symlink_to(
        write(tmp_path / "elsewhere" / "c.csv", "user,item,time\n1,4,5\n")
    )
    assert [item for _, item, _ in rows_of(read_log(tmp_path))] == ["2", "4"]


def test_parts_must_agree_on_their_times(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "user,item,time\n1,2,3\n")
    write(tmp_path / "b.csv", "user,item,time\n1,2,2024-01-01\n")
    with pytest.raises(DataError, match=r"a\.csv has times as numbers, .*b\.csv as dates"):
        read_log(tmp_path)


def test_times_must_agree_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forward_ofa.data.bytesource.BLOCK_BYTES", 64)
    body = "1,2,2024-01-01\n" * 20 + "1,2,5\n" * 20
    with pytest.raises(DataError, match=r"line \d+: .*a number, where the rows before have a date"):
        read_log(write(tmp_path / "x.csv", "user,item,time\n" + body))


def test_movielens_10m_and_latest(tmp_path: Path) -> None:
    write(tmp_path / "ml-10M100K" / "ratings.dat", "1::122::5::838985046\n1::185::4.5::838983525\n")
    write(tmp_path / "ml-10M100K" / "movies.dat", "122::Boomerang (1992)::Comedy|Romance\n")
    log = read_log(tmp_path / "ml-10M100K")
    assert rows_of(log) == [("1", "185", 838983525), ("1", "122", 838985046)]
    assert log.titles == {"122": "Boomerang (1992)"}
    latest = tmp_path / "ml-latest-small"
    write(latest / "ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n")
    write(latest / "links.csv", "movieId,imdbId,tmdbId\n1,0114709,862\n")
    write(latest / "tags.csv", "userId,movieId,tag,timestamp\n2,60756,funny,1445714994\n")
    write(latest / "movies.csv", "movieId,title,genres\n1,Toy Story (1995),Adventure\n")
    log = read_log(latest)
    assert rows_of(log) == [("1", "1", 964982703)] and log.titles == {"1": "Toy Story (1995)"}


JSON = '{"user_id": "a", "item_id": 1, "timestamp": 5}\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" + JSON + "]", "a JSON array; .*jq -c"),
        (JSON + '{"user_id": "a", "item_id"', "line 2: not a JSON object.*cut off"),
        (JSON + "\n" + JSON.replace("1", "null"), "line 3: 'item_id' is missing or null"),
        (JSON + '{"user_id": "a"}\n', "line 2: 'item_id' is missing"),
        (JSON + JSON.replace("1", "[1]"), "line 2: 'item_id' has"),
        (JSON + "5\n", "line 2: not a JSON object but '5'"),
        (JSON + JSON.replace('"a"', '"  "'), "line 2: column 'user_id' has '  '"),
        (JSON + JSON.replace("5", "NaN"), "line 2: .*'nan', which is not a number"),
        ("hello\n", "line 1: not a JSON object"),
        ("{'user_id': __import__('os').getpid(), 'item_id': 1, 'time': 2}\n", "not a JSON object"),
        (JSON.replace("user_id", "x"), "no user column"),
        ("", "the file is empty"),
    ],
)
def test_bad_json_lines(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_log(write(tmp_path / "x.jsonl", text))


@pytest.mark.parametrize("value", ['{"a": 1}', "{}", "[1]", "true", "false"])
@pytest.mark.parametrize("ahead", [0, 200])
def test_json_ids_that_are_no_ids_are_refused_wherever_they_stand(
    tmp_path: Path, value: str, ahead: int
) -> None:
    text = JSON * ahead + JSON.replace('"a"', value) + JSON
    with pytest.raises(DataError, match=rf"line {ahead + 1}: 'user_id' has .*neither text nor"):
        read_log(write(tmp_path / "x.jsonl", text))


def test_json_text_that_looks_like_another_value_is_text(tmp_path: Path) -> None:
    ids = ["true", "[deleted]", "{}"]
    text = JSON * 200 + "".join(JSON.replace('"a"', json.dumps(name)) for name in ids)
    assert set(read_log(write(tmp_path / "x.jsonl", text)).user_ids) == {"a", *ids}


def test_json_without_a_last_line_end_is_whole(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "x.jsonl", JSON.replace("5", "50") + JSON.strip()))
    assert len(log) == 2 and not log.notes


def test_json_ids_of_all_kinds_are_read_alike_fast_and_slowly(tmp_path: Path) -> None:
    body = JSON + JSON.replace('"a"', "12345678901234567890") + JSON.replace("5", "5.5")
    fast = read_log(write(tmp_path / "x.jsonl", body))
    slow = read_log(write(tmp_path / "y.jsonl", body.replace("\n", "\n\n")))
    assert rows_of(fast) == rows_of(slow)
    assert rows_of(fast)[0] == ("a", "1", 5_000_000)


def test_quoted_records_are_not_cut_between_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forward_ofa.data.bytesource.BLOCK_BYTES", 32)
    rows = [("u", f'line\n{n},"x"', n) for n in range(40)]
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    path = write(tmp_path / "x.csv", frame.write_csv())
    assert rows_of(read_log(path)) == rows
    lines = path.read_text().splitlines()
    with pytest.raises(DataError, match=rf"line {len(lines) - 1}: .*quotes"):
        read_log(write(path, "\n".join(lines[:-1])))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_refused_unopened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    for call in (
        lambda: read_log(path),
        lambda: load_dataset(str(path), tmp_path / "cache"),
        lambda: load(str(path), tmp_path / "cache"),
    ):
        with pytest.raises(DataError, match=r"log.csv: neither a regular file nor a folder"):
            call()


def test_a_part_that_is_no_file_is_not_left_out(tmp_path: Path) -> None:
    for name in ("part-1.csv", "part-2.csv"):
        write(tmp_path / "log" / name, "user,item,time\n1,2,3\n")
    os.mkfifo(tmp_path / "log" / "readme.txt.old")  # of no readable format
    other = write(tmp_path / "elsewhere.csv", "user,item,time\n4,5,6\n")
    third = tmp_path / "log" / "part-3.csv"
    third.symlink_to(other)
    assert len(read_log(tmp_path / "log")) == 3
    third.unlink()
    os.mkfifo(third)
    with pytest.raises(DataError, match=r"part-3.csv: neither a regular file"):
        read_log(tmp_path / "log")
