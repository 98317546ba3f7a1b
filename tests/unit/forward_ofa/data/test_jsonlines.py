"""JSON lines: what polars reads a block at a time is what Python reads line by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forward_ofa.data import DataError, read_log
from forward_ofa.data import jsonlines as module
from forward_ofa.data.jsonlines import JsonLines

NAMES = ["user", "item", "time"]


def line_of(user: str = '"a"', item: str = "1", time: str = "5", more: str = "") -> str:
    return f'{{"user": {user}, "item": {item}, "time": {time}{more}}}\n'


def outcome(path: Path, text: str) -> list[tuple[str, ...]] | str:
    """All rows of the text, or the error without the file's name."""
    path.write_bytes(text.encode())
    try:
        table = JsonLines(path)
        indices = [table.header.index(name) for name in NAMES]
        return [row for part in table.parts(indices) for row in part.frame.rows()]
    except DataError as error:
        assert str(error).startswith(f"{path}, line ")
        return str(error).removeprefix(str(path))


def fast_and_slow(folder: Path, text: str) -> tuple[object, object]:
    """The text as it is; with a blank line, which polars does not count."""
    return outcome(folder / "x.jsonl", text), outcome(folder / "x.jsonl", text + "\n")


@pytest.fixture
def read_slowly(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first line of each block that was read line by line."""
    found: list[int] = []
    real = JsonLines._slowly

    def noted(self, names, line, block):
        found.append(line)
        return real(self, names, line, block)

    monkeypatch.setattr(JsonLines, "_slowly", noted)
    return found


ESCAPES = [r"\ud800", r"\udc00", r"\ud83d\ude00", r"\ue000", r"\u0000", r"\n", r"\\", r"\"",
           "é", "😀", "a", "-0", "1.0", "true", "[", "{", "\ufeff", "\x7f",
           '\\"user\\":']  # fmt: skip
TEXTS = st.lists(st.sampled_from(ESCAPES), max_size=4).map(lambda parts: f'"{"".join(parts)}"')
NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(-(2**80), 2**140).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**60), 2**60).map(lambda whole: repr(float(whole))),
    st.sampled_from(["0.0", "-0.0", "-0", "1e3", "1E+2", "1e400", "-1e-400", "NaN", "5e-324"]),
)
VALUES = st.one_of(
    NUMBERS, TEXTS, st.sampled_from(["null", "true", "false", "[]", '{"user": 1}', '"user"'])
)
KEYS = st.sampled_from([*NAMES, *NAMES, "other", "nested", "us\\ud800er"])
GOOD = st.builds(line_of, st.one_of(NUMBERS, TEXTS), st.one_of(NUMBERS, TEXTS), NUMBERS)
ANY = st.lists(st.tuples(KEYS, VALUES), max_size=4).map(
    lambda pairs: line_of(more="".join(f', "{key}" : {value}' for key, value in pairs))
)
ODD = st.lists(st.tuples(KEYS, VALUES), max_size=5).map(
    lambda pairs: "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}\n"
)


@pytest.mark.parametrize("lines", [GOOD, st.one_of(GOOD, ANY), st.one_of(GOOD, ANY, ODD)],
                         ids=["good", "more fields", "any"])  # fmt: skip
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_both_ways_agree(tmp_path: Path, lines, data) -> None:
    text = line_of() + "".join(data.draw(st.lists(lines, max_size=5)))
    fast, slow = fast_and_slow(tmp_path, text)
    assert fast == slow


@pytest.mark.parametrize("ahead", [0, 200])
def test_a_whole_number_is_one_id_however_it_is_written(
    tmp_path: Path, read_slowly: list[int], ahead: int
) -> None:
    numbers = ["1", "1.0", "1e0", "10E-1", "0.0", "0", "-7.0", "1e3"]
    text = line_of() * ahead + "".join(line_of(user=number) for number in numbers)
    for found in fast_and_slow(tmp_path, line_of() + text):
        users = [row[0] for row in found[ahead + 1 :]]
        assert users == ["1", "1", "1", "1", "0", "0", "-7", "1000"]
    assert read_slowly == [1]  # only the second time


def test_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    ids = ["1.0", "1", "-0", "-0.0", "1e3", "01"]
    text = "".join(line_of(user=json.dumps(name)) for name in ids)
    for found in fast_and_slow(tmp_path, text):
        assert [row[0] for row in found] == ids


def test_minus_zero_is_zero(tmp_path: Path) -> None:
    text = line_of(user="-0.0") + line_of(user="-0") + line_of(user='"-0"')
    for found in fast_and_slow(tmp_path, text):
        assert [row[0] for row in found] == ["0", "0", "-0"]


@pytest.mark.parametrize("half", [r"\ud800", r"a\ud800", r"\udc00", r"\ud800\ue000", r"\uD83Dx"])
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, half: str) -> None:
    text = line_of() * 200 + line_of(user=f'"{half}"')
    for found in fast_and_slow(tmp_path, text):
        assert str(found).startswith(", line 201: 'user' has ") and "surrogate" in str(found)
    elsewhere = line_of(more=f', "text": "{half}"')
    for found in fast_and_slow(tmp_path, elsewhere):
        assert found == [("a", "1", "5")]


def test_half_a_pair_in_a_python_dict_is_refused(tmp_path: Path) -> None:
    text = "{'user': 'a', 'item': '\\ud800', 'time': 5}\n"
    for found in fast_and_slow(tmp_path, text):
        assert "line 1: 'item' has" in str(found) and "surrogate" in str(found)


def test_half_a_pair_in_the_name_of_a_field_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line_of().replace("user", r"user\ud800"))
    with pytest.raises(DataError, match=r"line 1: .* is no name\."):
        read_log(path)


def test_whole_pairs_are_read_fast(tmp_path: Path, read_slowly: list[int]) -> None:
    text = line_of(user=r'"\ud83d\ude00"') + line_of(user='"😀"') + line_of(user=r'"\u0000"')
    fast, slow = fast_and_slow(tmp_path, text)
    assert fast == slow == [("😀", "1", "5"), ("😀", "1", "5"), ("\0", "1", "5")]
    assert read_slowly == [1]


@pytest.mark.parametrize("ahead", [0, 200])
def test_a_field_that_stands_twice_is_refused(tmp_path: Path, ahead: int) -> None:
    for twice in ('"a", "user": "b"', '"a", "user" :"a"', 'null, "user": "b"'):
        for found in fast_and_slow(tmp_path, line_of() * ahead + line_of(user=twice)):
            assert found == f", line {ahead + 1}: 'user' stands there twice. Keep one of them."
    unused = line_of() * ahead + line_of(more=', "x": 1, "x": 2')
    for found in fast_and_slow(tmp_path, unused):
        assert found == [("a", "1", "5")] * (ahead + 1)


def test_a_name_inside_other_fields_is_not_twice(tmp_path: Path, read_slowly: list[int]) -> None:
    as_value = line_of(more=r', "by": "user", "text": "\"user\": 1"')
    assert outcome(tmp_path / "x.jsonl", as_value) == [("a", "1", "5")]
    assert read_slowly == []
    nested = line_of(more=', "context": {"user": 3}')
    for found in fast_and_slow(tmp_path, nested):
        assert found == [("a", "1", "5")]


def test_names_that_are_not_ascii_are_read_fast(tmp_path: Path, read_slowly: list[int]) -> None:
    path = tmp_path / "x.jsonl"
    for escaped in (True, False):
        row = {"käufer": "a", "item": 1, "time": 5}
        path.write_bytes(json.dumps(row, ensure_ascii=escaped).encode())
        parts = list(JsonLines(path).parts([0, 1, 2]))
        assert [part.frame.rows() for part in parts] == [[("a", "1", "5")]]
    assert read_slowly == []


def test_a_number_that_64_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    for found in fast_and_slow(tmp_path, line_of() + line_of(user="1e400")):
        assert "line 2: 'user' has 'inf', which is no number" in str(found)


def test_the_log_is_the_same_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    text = "".join(line_of(user="7", item=f"{n % 8}.0" if n > 100 else str(n % 8), time=str(n))
                   for n in range(120))  # fmt: skip
    logs = []
    for content in (text, text.replace("\n", "\n\n")):
        path.write_text(content)
        logs.append(read_log(path))
    assert logs[0].item_ids == logs[1].item_ids == [str(n) for n in range(8)]
    assert logs[0].items.tolist() == logs[1].items.tolist()


def test_the_pattern_of_half_a_pair() -> None:
    halves = [rb"\ud800", rb"\uDBFFx", rb"\ud800\\udc00", rb"\ud83d\ud83d\ude00"]
    assert all(module._HALF_A_PAIR.search(text) for text in halves)
    assert not any(module._HALF_A_PAIR.search(text) for text in (rb"\ud83d\uDE00", rb"\ue000"))
