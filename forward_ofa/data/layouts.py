"""Which files on disk are the log, and in which layout each of them is.

A file:    `u.data` (tabs: user item rating time), `*.dat` ("::": user, item, rating, time),
           `*.inter` (RecBole), `*.csv`, `*.tsv`, `*.txt` (separator recognised), `*.json`,
           `*.jsonl`, `*.ndjson` (one object a line), each also `.gz`, and `*.parquet`, `*.pq`.
           Amazon's ratings without a header line are recognised by their values.
A folder:  an official MovieLens release (`u.data`, `ratings.dat` or `ratings.csv`), or exactly one
           `.inter`, or exactly one table with a user, an item and a time column, or several tables
           of one layout and the same columns, which are read one after the other, sorted by name
           with numbers by value, but train before valid before test. Folders called `key=value`
           below count as the folder itself.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forward_ofa.data.columns import ColumnNames, TableFile, resolve
from forward_ofa.data.jsonlines import JsonLines
from forward_ofa.data.log import DataError
from forward_ofa.data.parquet import ParquetFile
from forward_ofa.data.text import DelimitedText
from forward_ofa.data.titles import is_title_file

_MOVIELENS_HEADER = ["user_id", "item_id", "rating", "timestamp"]
_OFFICIAL = ("u.data", "ratings.dat", "ratings.csv")
_PARQUET = (".parquet", ".pq")
_JSON = (".json", ".jsonl", ".ndjson")
_TEXT = (".csv", ".tsv", ".txt")
_NAMED = 10
_FORMATS = (
    "u.data, *.dat, *.inter, *.csv, *.tsv, *.txt, *.json, *.jsonl, *.ndjson (each also .gz), "
    "*.parquet"
)


@dataclass(frozen=True)
class LogFiles:
    """The files of a log, in their order; kind: what they are, for people. notes: what a person
    should know of the choice."""

    files: list[Path]
    kind: str
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for reports."""
        if len(self.files) == 1:
            return f"{self.kind} {self.files[0]}"
        return f"{len(self.files)} parts, each a {self.kind}, in {self.files[0].parent}"


def find_log(path: Path, names: ColumnNames) -> LogFiles:
    """The log at a path, a file or a folder. Raises DataError when there is none or several."""
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Check the path.")
        files, notes = _find_in_folder(path, names) if is_folder(path) else ([path], ())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read: {error}.") from None
    return LogFiles(files, open_table(files[0], names)[1], notes)


def is_folder(path: Path) -> bool:
    """True for a folder, False for a regular file, links followed.

    Raises OSError if it is not there, DataError if it is neither: to open a pipe may wait for
    ever, and a device such as /dev/zero never ends.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise DataError(
            f"{path}: neither a regular file nor a folder but a pipe, a socket or a device, and a "
            "log is read more than once. Write it to a file, and give that."
        )
    return stat.S_ISDIR(mode)


def open_table(file: Path, names: ColumnNames) -> tuple[TableFile, str]:
    """A file as a table, and what its layout is called. Raises DataError."""
    suffix = _suffix(file)
    if names.header is not None and suffix not in _TEXT:
        raise DataError(f"{file}: --header is for a CSV; this file names its columns.")
    if suffix in _PARQUET:
        return ParquetFile(file), "Parquet file"
    if suffix in _JSON:
        return JsonLines(file), "file of JSON lines"
    if suffix in (".data", ".dat"):
        if names.given():
            raise DataError(
                f"{file}: this format has no header, its columns are fixed (user, item, rating, "
                "time). Leave out --user-column, --item-column and --time-column."
            )
        separator = "\t" if suffix == ".data" else "::"
        text = DelimitedText(file, separator=separator, quotes=False, header=_MOVIELENS_HEADER)
        return text, f"MovieLens {'u.data' if suffix == '.data' else 'ratings.dat'} file"
    if suffix == ".inter":
        text = DelimitedText(file, separator="\t", quotes=False)
        text.header = [column.partition(":")[0] for column in text.header]
        return text, "RecBole .inter file"
    if suffix in _TEXT:
        return _open_delimited(file, suffix, names)
    raise DataError(f"{file}: unknown format. Readable: {_FORMATS}. Convert or rename the file.")


def _open_delimited(file: Path, suffix: str, names: ColumnNames) -> tuple[TableFile, str]:
    text = DelimitedText(file, separator="\t" if suffix == ".tsv" else None)
    if names.header is not None:
        if len(names.header) != len(text.header):
            raise DataError(
                f"{file}: --header has {len(names.header)} names, the first line has "
                f"{len(text.header)} fields."
            )
        text.name_columns(list(names.header))
    elif not names.given():
        amazon = amazon_columns(text.sample)
        if amazon is not None:
            text.name_columns(amazon)
            return text, f"Amazon ratings file ({', '.join(amazon)}; no header)"
    return text, "table in text file"


def amazon_columns(sample: bytes) -> list[str] | None:
    """The columns of an Amazon ratings CSV, which has no header: the 2014 release begins with the
    user, the 2018 release with the item. None when it is none of them.

    Told apart by the values: all item ids (ASIN) have ten characters, user ids begin with A and
    have ten to 21, not all ten.
    """
    lines = sample.decode(errors="replace").splitlines()
    rows = [line.split(",") for line in (lines[:-1] if len(lines) > 1 else lines)]
    if any(len(row) != 4 or not _rating_and_time(row[2], row[3]) for row in rows):
        return None
    item = [all(re.fullmatch(r"[0-9A-Z]{10}", row[side]) for row in rows) for side in (0, 1)]
    user = [all(re.fullmatch(r"A[0-9A-Z]{9,20}", row[side]) for row in rows) for side in (0, 1)]
    if user[0] and item[1] and not item[0]:
        return ["user_id", "item_id", "rating", "timestamp"]
    if user[1] and item[0] and not item[1]:
        return ["item_id", "user_id", "rating", "timestamp"]
    return None


def _rating_and_time(rating: str, time: str) -> bool:
    return bool(re.fullmatch(r"[1-5](\.0)?", rating) and re.fullmatch(r"\d{8,10}", time))


def _suffix(file: Path) -> str:
    """Of the unpacked file, in lower case."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _find_in_folder(folder: Path, names: ColumnNames) -> tuple[list[Path], tuple[str, ...]]:
    """The files of the log, and notes on tables that are none."""
    for official in _OFFICIAL:
        for name in (official, f"{official}.gz"):
            if (folder / name).is_file():
                return [folder / name], ()
    files = sorted(_files(folder), key=_in_order)
    logs = [file for file in files if _suffix(file) == ".inter"]
    tables: list[Path] = []
    if not logs:
        tables = [
            file for file in files
            if _suffix(file) in _PARQUET + _JSON + _TEXT and not is_title_file(file)
        ]  # fmt: skip
        logs = tables if len(tables) == 1 else [f for f in tables if _columns(f, names)]
    if len(logs) > 1 and len({(_suffix(f), _columns(f, names)) for f in logs}) > 1:
        found = ", ".join(sorted(file.name for file in logs)[:10])
        raise DataError(
            f"{folder}: several files could be the log: {found}. They differ in format or "
            "columns, so they are not parts of one log. Give one of them."
        )
    if logs:
        return logs, _left_out([file for file in tables if file not in logs])
    found = ", ".join(file.name for file in files[:10]) or "no files"
    raise DataError(
        f"{folder}: no interaction log found. Looked for {', '.join(_OFFICIAL)}, .inter files, "
        f"or tables (Parquet, CSV, TSV, JSON lines) with user, item and time columns; there is: "
        f"{found}. Give the file itself, and --user-column, --item-column, --time-column if needed."
    )


def _left_out(tables: list[Path]) -> tuple[str, ...]:
    if not tables:
        return ()
    found = ", ".join(file.name for file in tables[:_NAMED])
    more = f" and {len(tables) - _NAMED:,} more" if len(tables) > _NAMED else ""
    return (f"left out {found}{more}: without a user, an item and a time column that are known",)


def _files(folder: Path) -> Iterator[Path]:
    """Files in a folder and in the folders `key=value` below, without hidden ones and markers.

    Raises DataError for a link to nothing, which may stand for a part, and for a part that is no
    regular file.
    """
    for path in folder.iterdir():
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            if "=" in path.name:
                yield from _files(path)
        elif path.is_file():
            yield path
        elif path.is_symlink() and not path.exists():
            raise DataError(
                f"{path}: a link to {path.readlink()}, which is not there. Bring the file back or "
                "remove the link."
            )
        elif _suffix(path) in _PARQUET + _JSON + _TEXT + (".inter",):
            is_folder(path)  # says what it is: without this part the log would be another one


def _in_order(file: Path) -> list[tuple[int, int | str]]:
    """Sorts numbers by value, and train before valid before test."""
    split = {"train": "0", "valid": "1", "validation": "1", "test": "2"}
    pieces = re.findall(r"\d+|[a-z]+|[^a-z\d]+", str(file).lower())
    return [
        (0, int(piece)) if piece.isdecimal() else (1, split.get(piece, piece)) for piece in pieces
    ]


def _columns(file: Path, names: ColumnNames) -> tuple[str, ...]:
    """The names of all columns of a file that has user, item and time, else ()."""
    try:
        table, _ = open_table(file, names)
        resolve(table.header, names, str(file))
    except DataError:
        return ()
    return tuple(sorted(table.header)) if isinstance(table, JsonLines) else tuple(table.header)
