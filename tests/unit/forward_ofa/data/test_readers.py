"""Readers: every format gives the same log, and every bad input a DataError that helps."""

from __future__ import annotations

import gzip
import io
import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forward_ofa.data import ColumnNames, DataError, InteractionLog, read_log

Row = tuple[str, str, int]


def in_order(rows: list[Row]) -> list[Row]:
    """By user (shorter ids first), then time; ties as they are."""
    return sorted(rows, key=lambda row: (len(row[0]), row[0], row[2]))


def rows_of(log: InteractionLog) -> list[Row]:
    return [
        (log.user_ids[u], log.item_ids[i], int(t))
        for u, i, t in zip(log.users, log.items, log.timestamps, strict=True)
    ]


def write_csv(folder: Path, rows: list[Row]) -> Path:
    path = folder / "log.csv"
    pl.DataFrame(rows, schema=["userId", "movieId", "timestamp"], orient="row").write_csv(path)
    return path


def write_gz(folder: Path, rows: list[Row]) -> Path:
    path = folder / "packed.csv.gz"
    path.write_bytes(gzip.compress(write_csv(folder, rows).read_bytes()))
    return path


def write_inter(folder: Path, rows: list[Row]) -> Path:
    path = folder / "log.inter"
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += [f"{user}\t{item}\t1.0\t{time}" for user, item, time in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return path


def write_dat(folder: Path, rows: list[Row]) -> Path:
    path = folder / "ratings.dat"
    text = "".join(f"{user}::{item}::5::{time}\n" for user, item, time in rows)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def write_u_data(folder: Path, rows: list[Row]) -> Path:
    path = folder / "u.data"
    text = "".join(f"{user}\t{item}\t5\t{time}\r\n" for user, item, time in rows)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def write_parquet(folder: Path, rows: list[Row]) -> Path:
    path = folder / "log.parquet"
    pl.DataFrame(rows, schema=["uid", "asin", "ts"], orient="row").write_parquet(path)
    return path


WRITERS = [write_csv, write_gz, write_inter, write_dat, write_u_data, write_parquet]
MISSING = {"nan", "NaN", "NAN", "null", "NULL", "None", "<NA>"}
PLAIN = st.text(
    st.characters(codec="utf-8", exclude_characters='\t\n\r:"', exclude_categories=["Cs"]),
    min_size=1, max_size=8,
).filter(lambda text: text.strip() and text not in MISSING)  # fmt: skip
QUOTABLE = st.text(
    st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=8
).filter(str.strip)
TIMES = st.integers(-(2**40), 2**40)
FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("write", WRITERS)
@FEW
@given(rows=st.lists(st.tuples(PLAIN, PLAIN, TIMES), min_size=1, max_size=30))
def test_every_format_gives_back_the_rows(tmp_path: Path, write, rows: list[Row]) -> None:
    assert rows_of(read_log(write(tmp_path, rows))) == in_order(rows)


@FEW
@given(rows=st.lists(st.tuples(QUOTABLE, QUOTABLE, TIMES), min_size=1, max_size=20))
def test_csv_with_quotes_and_newlines_in_ids(tmp_path: Path, rows: list[Row]) -> None:
    rows = [row for row in rows if not {row[0], row[1]} & MISSING] or [("a", 'b "c"\n,', 1)]
    assert rows_of(read_log(write_csv(tmp_path, rows))) == in_order(rows)


@pytest.mark.parametrize(
    "name", ["x.csv", "x.csv.gz", "x.tsv", "x.inter", "u.data", "ratings.dat", "x.parquet", "x.txt"]
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.text('1,\t:;|"\n\rauseritmd_ e', max_size=120).map(str.encode),
        st.text('1,\t:"\n\r.-eZ', max_size=80).map(
            lambda text: b"user_id,item_id,timestamp\n" + text.encode()
        ),
        st.text('1,\t:"\n\r.-eZ', max_size=80).map(
            lambda text: b"user_id\titem_id\ttimestamp\n" + text.encode()
        ),
    )
)
def test_garbage_raises_only_data_errors(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") and len(data) % 2 else data)
    try:
        log = read_log(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert len(log) > 0 and all(log.user_ids) and all(log.item_ids)


@FEW
@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), bits=st.integers(1, 255))
def test_damaged_parquet_raises_only_data_errors(
    tmp_path: Path, cut: int, flip: int, bits: int
) -> None:
    buffer = io.BytesIO()
    pl.DataFrame({"user": [1, 2], "item": ["a", "b"], "time": [3, 4]}).write_parquet(buffer)
    whole = bytearray(buffer.getvalue())
    path = tmp_path / "x.parquet"
    path.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_log(path)
    whole[flip % len(whole)] ^= bits
    path.write_bytes(whole)
    try:
        read_log(path)
    except DataError as error:
        assert str(path) in str(error)


GOOD = "user_id,item_id,rating,timestamp\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("e.csv", b"", "the file is empty"),
        ("e.csv", b"\n\n", "the file is empty"),
        ("e.csv", GOOD.encode(), "not one interaction"),
        ("e.csv", b"user_id,title,when\n1,2,3\n", "--item-column.*--time-column.*'title', 'when'"),
        (
            "e.csv",
            b"1,31,2.5,1260759144\n1,29,3.0,1260759179\n",
            "looks like data: name all columns with --header",
        ),
        ("e.csv", (GOOD + "1,2,3,4\n1,2,3\n").encode(), "line 3: 3 fields where 4"),
        ("e.csv", (GOOD + "1,2,3,4\n\n1,2,3,4,5\n").encode(), "line 4: 5 fields where 4"),
        ("e.csv", (GOOD + '1,"2\n2",3,4\n1,2,3\n').encode(), "line 4: 3 fields where 4"),
        ("e.csv", (GOOD + '1,2,3,4\n1,"2,3,4\n').encode(), "line 3: .*quotes"),
        ("e.csv", (GOOD + "1,2,3,4\n\n1,2,3,\n").encode(), "line 4: column 'timestamp'.*is empty"),
        ("e.csv", (GOOD + "1,2,3,4\n1,2,3,soon\n").encode(), "line 3: .*'soon'.*not a number"),
        ("e.csv", (GOOD + "1,2,3,soon\n").encode(), "line 2: .*neither a number nor an ISO"),
        ("e.csv", (GOOD + "1,2,3,1e300\n").encode(), "line 2: .*64 bits"),
        ("e.csv", (GOOD + "1,2,3,inf\n").encode(), "line 2: .*64 bits"),
        ("e.csv", (GOOD + "1,2,3,4\n,2,3,4\n").encode(), "line 3: column 'user_id'.*empty or NaN"),
        ("e.csv", (GOOD + "1,nan,3,4\n").encode(), "line 2: column 'item_id' has 'nan'"),
        ("e.csv", (GOOD + "1,2,3,4\n  ,2,3,4\n").encode(), "line 3: column 'user_id' has '  '"),
        ("e.csv", (GOOD + '1,"\t",3,4\n').encode(), "line 2: column 'item_id'.*empty or NaN"),
        ("e.csv", (GOOD + "1,2,3,4\n1,2,3,NaN\n").encode(), "line 3: .*'NaN', which is not a num"),
        ("e.csv", (GOOD + "1,2,3,null\n").encode(), "line 2: .*'null', which is empty"),
        ("e.csv", (GOOD + "1,é,3,4\n").encode("latin-1"), "line 2: not UTF-8.*iconv"),
        ("e.csv", GOOD.encode("utf-16"), "not UTF-8.*UTF-16.*iconv -f utf-16"),
        ("e.csv", (GOOD + "1,2,3,4\n").replace("\n", "\r").encode(), "carriage return.*tr "),
        ("e.csv.gz", gzip.compress(GOOD.encode())[:-9], "not a complete gzip file"),
        ("u.data", b"1\t2\t3\t4\n1\t2\t3\n", "line 2: 3 fields where 4"),
        ("ratings.dat", b"1::2::3::4\n1::2::3\n", "line 2: 3 fields where 4"),
        ("ratings.dat", b"1::2::3::4\n1:x::2:3::4\n", "line 2: fields must be separated by '::'"),
        ("e.doc", b"PK", "unknown format"),
        ("e.parquet", b"PAR1", "not a readable Parquet file"),
    ],
)
def test_bad_text(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_log(path)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ({"user": [1, None], "item": [1, 2], "time": [1, 2]}, "row 2: column 'user'"),
        ({"user": [1.0, float("nan")], "item": [1, 2], "time": [1, 2]}, "row 2: column 'user'"),
        ({"user": [1.0, 1.5], "item": [1, 2], "time": [1, 2]}, "row 2: .*whole number"),
        ({"user": [1, 2], "item": [1, 2], "time": [1, None]}, "row 2: column 'time'"),
        (
            {"user": [1, 2], "item": [1, 2], "time": [1.0, float("nan")]},
            "row 2: column 'time' has 'nan', which is not a number",
        ),
        ({"user": ["a", " "], "item": [1, 2], "time": [1, 2]}, "row 2: .*' ', which is empty"),
        ({"user": [True, False], "item": [1, 2], "time": [1, 2]}, "ids must be integers or str"),
        ({"user": [1, 2], "item": [1, 2], "time": ["2024-01-01", "?"]}, "row 2: .*ISO 8601"),
        ({"user": [[1], [2]], "item": [1, 2], "time": [1, 2]}, "ids must be integers or strings"),
        ({"user": [1, 2], "item": [1, 2], "time": [[1], [2]]}, "a time must be a number"),
        ({"user": [], "item": [], "time": []}, "no rows"),
        ({"a": [1], "b": [1]}, "--user-column.*'a', 'b'"),
    ],
)
def test_bad_parquet(tmp_path: Path, frame: dict[str, list[object]], expected: str) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame(frame).write_parquet(path)
    with pytest.raises(DataError, match=expected):
        read_log(path)


def test_missing_path_and_strange_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_log(tmp_path / "absent.csv")
    with pytest.raises(DataError):
        read_log(Path("nul\0byte.csv"))
    with pytest.raises(DataError):
        read_log(tmp_path / ("x" * 5000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [("a", "b", 1)])
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        read_log(path)


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("who;what;user_id;when\na;b;z;5\n", encoding="utf-8")
    log = read_log(path, ColumnNames(user="who", item="what", timestamp="when"))
    assert rows_of(log) == [("a", "b", 5)]
    with pytest.raises(DataError, match="--user-column 'whom' is not one"):
        read_log(path, ColumnNames(user="whom", item="what", timestamp="when"))
    with pytest.raises(DataError, match="three different columns"):
        read_log(path, ColumnNames(user="who", item="who", timestamp="when"))
    with pytest.raises(DataError, match="columns are fixed"):
        read_log(write_dat(tmp_path, [("a", "b", 1)]), ColumnNames(user="who"))


def test_times_of_all_kinds_keep_their_order(tmp_path: Path) -> None:
    moments = [datetime(2024, 1, day, 12, tzinfo=UTC) for day in (3, 1, 2)]
    forms: dict[str, list[object]] = {
        "datetime": list(moments),
        "date": [moment.date() for moment in moments],
        "iso": [moment.isoformat() for moment in moments],
        "zulu": ["2024-01-03T12:00:00Z", "2024-01-01T12:00:00Z", "2024-01-02 12:00:00"],
        "float": [moment.timestamp() + 0.25 for moment in moments],
        "text": [f"{moment.timestamp():.1f}" for moment in moments],
    }
    for name, values in forms.items():
        path = tmp_path / f"{name}.parquet"
        pl.DataFrame({"user": ["a"] * 3, "item": [7, 8, 9], "time": values}).write_parquet(path)
        log = read_log(path)
        assert [log.item_ids[item] for item in log.items] == ["8", "9", "7"], name


def test_milliseconds_win_over_seconds_and_whole_floats_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    frame = {"user_id": [3.0], "parent_asin": ["B"], "asin": ["A"], "timestamp": [1]}
    pl.DataFrame(frame | {"timestamp_ms": [1500]}).write_parquet(path)
    assert rows_of(read_log(path)) == [("3", "B", 1500)]


def test_codes_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [("10", "b", 1), ("9", "a", 2), ("2", "c", 3)]
    first = read_log(write_csv(tmp_path, rows))
    second = read_log(write_csv(tmp_path, rows[::-1]))
    assert first.user_ids == second.user_ids == ["2", "9", "10"]
    assert rows_of(first) == rows_of(second) == in_order(rows)


def test_titles_beside_the_log(tmp_path: Path) -> None:
    write_u_data(tmp_path, [("1", "10", 5), ("1", "11", 6)])
    (tmp_path / "u.item").write_bytes("10|Amélie (2001)|x\n99|Other|y\n".encode("latin-1"))
    log = read_log(tmp_path)
    assert log.titles == {"10": "Amélie (2001)"}
    assert log.name == tmp_path.name


@pytest.mark.parametrize("name", ["items.csv", "u.item", "log.item", "meta_log.jsonl"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_of_titles_is_named_as_one(tmp_path: Path, name: str, content: str) -> None:
    path = write_csv(tmp_path, [("1", "10", 5)])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: .*empty, .* titles .*or remove it") as caught:
        read_log(path)
    assert "interaction" not in str(caught.value)


def test_recbole_lists_of_items_are_said_not_to_be_read(tmp_path: Path) -> None:
    path = tmp_path / "log.inter"
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\treview:token_seq\ttime:float\n"
    path.write_text(header + "1\t7 8\t9\tso so\t5\n")
    log = read_log(path)
    assert rows_of(log) == [("1", "9", 5)]
    assert log.notes == [
        "the items in column 'item_id_list' are not read: a row is one interaction, that of "
        "'item_id'"
    ]
    path.write_text(header.replace("item_id:token", "item_id:token_seq") + "1\t7 8\t9\tso so\t5\n")
    with pytest.raises(DataError, match="'item_id' is a list of items"):
        read_log(path)


def test_recbole_folder_with_item_file(tmp_path: Path) -> None:
    write_inter(tmp_path, [("1", "10", 5)])
    (tmp_path / "log.item").write_text(
        'item_id:token\tmovie_title:token_seq\n10\t"Quoted" Title\n', encoding="utf-8"
    )
    assert read_log(tmp_path).titles == {"10": '"Quoted" Title'}


def test_folder_with_a_log_and_other_tables(tmp_path: Path) -> None:
    write_parquet(tmp_path, [("1", "10", 5)])
    (tmp_path / "README.txt").write_text("about", encoding="utf-8")
    (tmp_path / "people.csv").write_text("user_id,age\n1,30\n", encoding="utf-8")
    pl.DataFrame({"item_id": ["10"], "title": ["Ten"]}).write_parquet(tmp_path / "items.parquet")
    log = read_log(tmp_path)
    assert rows_of(log) == [("1", "10", 5)]
    assert log.titles == {"10": "Ten"}
    assert any(note.startswith("left out people.csv: without a user") for note in log.notes)


def test_a_part_with_other_columns_is_said(tmp_path: Path) -> None:
    for name, header in (("a", "user,item,time"), ("b", "who,sku,at"), ("c", "user,item,time")):
        (tmp_path / f"{name}.csv").write_text(f"{header}\n1,2,3\n", encoding="utf-8")
    log = read_log(tmp_path)
    assert len(log) == 2
    assert any(note.startswith("left out b.csv: without") for note in log.notes)


def test_that_ratings_are_not_used_is_said(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [("1", "2", 3)])
    assert read_log(path).notes == []
    for write in (write_u_data, write_dat, write_inter):
        assert read_log(write(tmp_path, [("1", "2", 3)])).notes == [RATINGS]
    path = tmp_path / "x.jsonl"
    path.write_text('{"reviewerID": "a", "asin": "b", "overall": 1.0, "unixReviewTime": 3}\n')
    assert read_log(path).notes == [RATINGS.replace("'rating'", "'overall'")]
    path.write_text('{"user": "a", "rating": "b", "time": 3}\n')
    assert read_log(path, ColumnNames(item="rating")).notes == []


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,user,item,time\n1,2,3,4\n", encoding="utf-8")
    with pytest.raises(DataError, match="two columns are called 'user'"):
        read_log(path)


def test_folders_that_are_not_clear(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Looked for u\.data, ratings\.dat.*there is: no files"):
        read_log(tmp_path)
    (tmp_path / "notes.md").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"there is: notes\.md"):
        read_log(tmp_path)
    write_csv(tmp_path, [("1", "2", 3)])
    write_parquet(tmp_path, [("1", "2", 3)])
    with pytest.raises(DataError, match=r"several files.*log\.csv, log\.parquet"):
        read_log(tmp_path)


def test_official_csv_release(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "\ufeffuserId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n", encoding="utf-8"
    )
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n31,"American President, The (1995)",Drama\n', encoding="utf-8"
    )
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n", encoding="utf-8")
    log = read_log(tmp_path)
    assert rows_of(log) == [("1", "31", 1260759144)]
    assert log.titles == {"31": "American President, The (1995)"}


def test_fields_are_checked_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forward_ofa.data.text._CHUNK", 16)
    rows = [(str(number), "x", number) for number in range(50)]
    path = write_csv(tmp_path, rows)
    assert rows_of(read_log(path)) == in_order(rows)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[30] = "30,x"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="line 31: 2 fields where 3"):
        read_log(path)


LINES = GOOD + "1,2,3,964982703\n1,3,3,964982931\n"
UNENDED = "the last line of the log has no line end: the file may be cut off"
RATINGS = "ratings (column 'rating') are not used: each row is one interaction"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("block", [16, 1 << 25])
def test_a_last_line_without_its_end_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, quoted: bool, block: int
) -> None:
    monkeypatch.setattr("forward_ofa.data.bytesource.BLOCK_BYTES", block)
    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    text = LINES.replace(",2,", ',"2",') if quoted else LINES

    def read(content: str) -> InteractionLog:
        data = content.encode()
        # Two members, as files that were put one behind the other have.
        path.write_bytes(gzip.compress(data[:50]) + gzip.compress(data[50:]) if packed else data)
        return read_log(path)

    whole, unended = read(text), read(text.removesuffix("\n"))
    assert rows_of(unended) == rows_of(whole)
    assert (whole.notes, unended.notes) == ([RATINGS], [RATINGS, UNENDED])
    for cut in range(2, 10):
        with pytest.raises(
            DataError, match=r"line 3: .*no line end.*fewer digits than '964982703'"
        ):
            read(text[:-cut])


@pytest.mark.parametrize(
    ("before", "last", "cut_off"),
    [
        ("964982703.25", "964982931.5", False),
        ("964982703.25", "964982931", False),
        ("964982703.25", "96498293", True),
        ("2024-05-31T18:00:00.250Z", "2024-05-31T18:00:01Z", False),
        ("2024-05-31T18:00:00+02:00", "2024-05-31T18:00:01.5+02:00", False),
        ("2024-05-31T18:00:00Z", "2024-05-31T18:00", True),
        ("2024-05-31T18:00:00Z", "2024-05-31", True),
        ("9", "10", False),
    ],
)
def test_what_counts_as_a_time_that_is_cut_off(
    tmp_path: Path, before: str, last: str, cut_off: bool
) -> None:
    path = tmp_path / "x.csv"
    text = f"user,item,time\n1,2,{before}\n1,3,{last}"
    path.write_text(text)
    if cut_off:
        with pytest.raises(DataError, match="fewer digits"):
            read_log(path)
    else:
        assert read_log(path).notes == [UNENDED]
    path.write_text(text + "\n")
    assert read_log(path).notes == []


def test_a_cut_u_data_is_refused_and_one_row_is_not(tmp_path: Path) -> None:
    path = write_u_data(tmp_path, [("1", "2", 881250949), ("1", "3", 881250950)])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"line 2: .*fewer digits"):
        read_log(path)
    path.write_bytes(b"1\t2\t3\t881")
    assert read_log(path).notes == [RATINGS, UNENDED]


def test_the_part_without_a_line_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LINES.removesuffix("\n"))
    (tmp_path / "b.csv").write_text(GOOD + "2,3,3,7\n")
    log = read_log(tmp_path)
    assert log.notes == [
        RATINGS,
        "the last line of a.csv has no line end: the file may be cut off",
    ]
    (tmp_path / "b.csv").write_text(GOOD + "2,3,3,7\n2,4,3,10\n2,5,3,1")
    with pytest.raises(DataError, match=r"b\.csv, line 4: the last line"):
        read_log(tmp_path)
