"""Delimited text: the fast way and the one for quotes follow the same rules."""

from __future__ import annotations

import csv
import threading
from pathlib import Path

import pytest

from forward_ofa.data import DataError
from forward_ofa.data.text import DelimitedText, long_fields

HEADER = b"user,item,time\n"


def read(path: Path, content: bytes) -> list[tuple[str, ...]]:
    path.write_bytes(content)
    return [row for part in DelimitedText(path).parts([0, 1, 2]) for row in part.frame.rows()]


QUOTED_ROW = b'"z",9,9\n'  # makes its block one with quotes


@pytest.mark.parametrize("behind", [b"", QUOTED_ROW], ids=["plain", "quotes"])
class TestBothWays:
    def test_a_byte_order_mark_inside_is_text(self, tmp_path: Path, behind: bytes) -> None:
        row = "\ufeffa,\ufeffb,1\n".encode()
        rows = read(tmp_path / "x.csv", HEADER + row * 3 + behind)
        assert rows[:3] == [("\ufeffa", "\ufeffb", "1")] * 3

    @pytest.mark.parametrize("marks", [1, 2, 3])
    def test_byte_order_marks_at_the_start_are_not(
        self, tmp_path: Path, marks: int, behind: bytes
    ) -> None:
        start = "\ufeff".encode() * marks
        assert read(tmp_path / "x.csv", start + HEADER + b"a,b,1\n" + behind)[0] == ("a", "b", "1")
        path = tmp_path / "u.data"
        path.write_bytes(start + b"1\t2\t3\t4\n")
        table = DelimitedText(path, separator="\t", quotes=False, header=["u", "i", "r", "t"])
        assert [part.frame.rows() for part in table.parts([0, 1])] == [[("1", "2")]]

    @pytest.mark.parametrize("field", [b"x\ry", b"\rx", b"x\r"])
    def test_a_carriage_return_inside_a_field_is_refused(
        self, tmp_path: Path, field: bytes, behind: bytes
    ) -> None:
        content = HEADER + b"a,b,1\r\n\n" + b"a," + field + b",1\n" + behind
        with pytest.raises(DataError, match=r"x.csv, line 4: a carriage return alone"):
            read(tmp_path / "x.csv", content)

    @pytest.mark.parametrize("end", [b"\r\n", b"\r\r\n", b"\r\r\r\n"])
    def test_carriage_returns_before_the_line_feed_end_the_line(
        self, tmp_path: Path, end: bytes, behind: bytes
    ) -> None:
        lines = [b"user,item,time", b"a,b,1", b"", b"c,d,2", behind.strip(), b"e,f,3"]
        rows = read(tmp_path / "x.csv", end.join(lines) + end)
        assert [row for row in rows if row[0] != "z"] == [
            ("a", "b", "1"), ("c", "d", "2"), ("e", "f", "3"),
        ]  # fmt: skip


def test_a_carriage_return_across_the_parts_that_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forward_ofa.data.text._COMPARED", 1)
    assert read(tmp_path / "x.csv", HEADER + b"a,b,1\r\nc,d,2\r\n")[1] == ("c", "d", "2")
    with pytest.raises(DataError, match="line 3: a carriage return alone"):
        read(tmp_path / "x.csv", HEADER + b"a,b,1\r\nc,\rd,2\r\n")


def test_carriage_returns_in_quotes_are_text_and_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    content = HEADER + b'a,"x\ry\r\rz",1\na,"x\r\ny",2\n'
    assert read(path, content) == [("a", "x\ry\r\rz", "1"), ("a", "x\r\ny", "2")]
    with pytest.raises(DataError, match="line 5: 2 fields where 3"):
        read(path, content + b"a,b\n")


def test_a_long_quoted_field_is_read(tmp_path: Path) -> None:
    text = "word, " * 50_000
    row = f'a,b,1,"{text}"\n'.encode()
    path = tmp_path / "x.csv"
    path.write_bytes(b"user,item,time,review\n" + row * 3)
    before = csv.field_size_limit()
    rows = [row for part in DelimitedText(path).parts([0, 3]) for row in part.frame.rows()]
    assert rows == [("a", text)] * 3
    assert csv.field_size_limit() == before


def test_a_field_without_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forward_ofa.data.text._LONGEST_FIELD", 1000)
    with pytest.raises(DataError, match=r"line 3: field larger than field limit.*Check the quotes"):
        read(tmp_path / "x.csv", HEADER + b'a,b,1\na,"' + b"x" * 1001 + b'",1\n')
    assert csv.field_size_limit() > 1000


def test_the_limit_of_the_csv_module_is_put_back_by_every_thread() -> None:
    before = csv.field_size_limit()
    inside = threading.Barrier(2, timeout=0.2)  # two can never be inside together

    def work() -> None:
        with long_fields():
            try:
                inside.wait()
            except threading.BrokenBarrierError:
                return
            raise AssertionError("both were inside")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"1::66:1::3::9", "line 2: fields must be separated by '::', and there is a ':' too many"),
        (b"1:x::2:3::4", "line 2: fields must be separated by '::'"),
        (b"1::2:::3::4", "line 2: fields must be separated by '::'"),
        (b"1::2::3", "line 2: 3 fields where 4 are expected"),
        (b"1::2::3::4::5", "line 2: 5 fields where 4 are expected"),
        (b"1::2:3", "line 2: 2 fields where 4 are expected"),
    ],
)
def test_wrong_separators_are_told(tmp_path: Path, row: bytes, expected: str) -> None:
    path = tmp_path / "ratings.dat"
    path.write_bytes(b"1::2::3::4\n" + row + b"\n")
    table = DelimitedText(path, separator="::", quotes=False, header=["u", "i", "r", "t"])
    with pytest.raises(DataError, match=expected):
        list(table.parts([0, 1, 3]))
