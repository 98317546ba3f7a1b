"""Which files on disk are the log.

A file is the log by itself. Of a folder it is an official MovieLens release (exactly one of
`u.data`, `ratings.dat`, `ratings.csv`), else its `.inter` files, else its tables with a user, an
item and a time column. Several are parts if they have one layout and the same columns (JSON lines:
the same names of user, item and time), and are read one after the other, sorted by name with
numbers by value, but train before valid before test. Folders called `key=value` below count as the
folder itself. What could be data and is not read is named in a note, a part without rows too; what
cannot be read is an error and never left out, for it may be a part.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from forward_ofa.data.bytesource import unpacked
from forward_ofa.data.columns import (
    ITEM_SYNONYMS,
    RATING_SYNONYMS,
    ColumnNames,
    TableFile,
    UnknownColumns,
    find_column,
    resolve,
)
from forward_ofa.data.jsonlines import JsonLines
from forward_ofa.data.layouts import (
    INTER,
    JSON,
    MOVIELENS,
    PARQUET,
    TEXT,
    InterFile,
    open_table,
    suffix_of,
)
from forward_ofa.data.log import DataError
from forward_ofa.data.titles import is_title_file

_OFFICIAL = ("u.data", "ratings.dat", "ratings.csv")
_TABLES = (*PARQUET, *JSON, *TEXT)
_READABLE = (*_TABLES, *MOVIELENS, INTER)
# What lies beside the ratings of a MovieLens release, without the files of titles.
_MOVIELENS_SIDE = re.compile(r"(movies|users|tags|links|genome-[a-z]+)\.(csv|dat)(\.gz)?")
_ABOUT = re.compile(r"(readme.*|licen[cs]e|copying|changelog|citation)\.txt(\.gz)?")
# What a log may be packed or kept in that is not read.
_UNREAD = (".zip", ".zst", ".bz2", ".xz", ".7z", ".tar", ".tgz", ".xlsx", ".xls", ".arrow", ".orc")
_NO_ROWS = "without rows"
_NAMED = 5
_LOOKED_AT = 10_000  # files of a sub-folder
_LONGEST_DOCUMENT = 1 << 20


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
    table, kind = open_table(files[0], names)
    unused = list(_unused_columns(table, names, str(files[0])))
    if isinstance(table, InterFile):  # types of its parts may differ where their names do not
        for file in files[1:]:
            unused += _unused_columns(InterFile(file), names, str(file))
    return LogFiles(files, kind, (*notes, *dict.fromkeys(unused)))


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


def _unused_columns(table: TableFile, names: ColumnNames, file: str) -> Iterator[str]:
    """Notes on what a person may think is used and is not. Raises DataError."""
    used = resolve(table.header, names, file)
    if isinstance(table, InterFile):
        yield from _unused_lists(table, table.header[used[1]], file)
    rating = find_column(table.header, RATING_SYNONYMS)
    if rating is not None and rating not in used:
        column = table.header[rating]
        yield f"ratings (column {column!r}) are not used: each row is one interaction"


def _unused_lists(table: InterFile, item: str, file: str) -> Iterator[str]:
    if item in table.lists:
        raise DataError(
            f"{file}: column {item!r} is a list of items, and a row must be one interaction. Name "
            "another column with --item-column, or write one row for each item."
        )
    for name in table.lists:
        one = re.sub(r"_(list|seq|sequence|history)$", "", name)
        if find_column([one], ITEM_SYNONYMS) is not None:
            yield (
                f"the items in column {name!r} are not read: a row is one interaction, "
                f"that of {item!r}"
            )


def _find_in_folder(folder: Path, names: ColumnNames) -> tuple[list[Path], tuple[str, ...]]:
    """The files of the log, and notes on what could be data and is not read."""
    present = sorted(_entries(folder), key=_in_order)
    official = _official(folder, present)
    if official is not None:
        rest = [path for path in present if not _MOVIELENS_SIDE.fullmatch(path.name.lower())]
        why = f"beside {official.name} nothing else is read, as in a MovieLens release"
        return [official], _left_out(folder, rest, {official}, {}, why)
    files = [path for path in present if _may_be_part(path)]
    candidates = [file for file in files if suffix_of(file) == INTER]
    why = "beside a .inter file no other format is read"
    if not candidates:
        candidates = [f for f in files if suffix_of(f) in _TABLES and _could_be_data(f)]
        why = f"of such files only {_OFFICIAL[0]} and {_OFFICIAL[1]} are read from a folder"
    logs, reasons = (candidates, {}) if len(candidates) == 1 else _parts(folder, candidates, names)
    if logs:
        return logs, _left_out(folder, present, set(logs), reasons, why)
    found = ", ".join(_shown(path, folder) for path in present[:10]) or "no files"
    raise DataError(
        f"{folder}: no interaction log found. Looked for {', '.join(_OFFICIAL)}, .inter files, "
        f"or tables (Parquet, CSV, TSV, JSON lines) with user, item and time columns; there is: "
        f"{found}. Give the file itself, and --user-column, --item-column, --time-column if needed."
    )


def _official(folder: Path, present: list[Path]) -> Path | None:
    """The file that is the log by its official name. Raises DataError if there are two."""
    names = {name + end for name in _OFFICIAL for end in ("", ".gz")}
    found = [path for path in present if path.name in names and path.parent == folder]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise DataError(
            f"{folder}: {' and '.join(path.name for path in found)} could each be the log, of "
            f"which there must be one. Give the file itself, for example {found[0]}."
        )
    return found[0] if found else None


def _parts(
    folder: Path, candidates: list[Path], names: ColumnNames
) -> tuple[list[Path], dict[Path, str]]:
    """Those of several files that are parts of one log, and why each of the others is none.

    Raises DataError if they do not fit together, or one cannot be read.
    """
    looked = {file: _layout(file, names) for file in candidates}
    reasons = {file: found for file, found in looked.items() if isinstance(found, str)}
    logs = [file for file in candidates if file not in reasons]
    if len({looked[file] for file in logs}) > 1:
        found = ", ".join(sorted(file.name for file in logs)[:10])
        raise DataError(
            f"{folder}: several files could be the log: {found}. They differ in format or "
            "columns, so they are not parts of one log. Give one of them."
        )
    return logs, reasons


def _layout(file: Path, names: ColumnNames) -> tuple[str, ...] | str:
    """What all parts of a log have in common; or, of a file that is no part of one, why.

    Raises DataError, as when it is read alone, for a file that cannot be read: nobody knows that
    what is in it is not needed.
    """
    try:
        table, _ = open_table(file, names)
        used = resolve(table.header, names, str(file))
    except UnknownColumns:
        if names.header is not None:
            return "without the columns that --header names"
        return "without a user, an item and a time column that are known"
    except DataError:
        if _is_empty(file):  # in a folder that grows, the next part
            return _NO_ROWS
        if _is_document(file):
            return "one JSON object over several lines, not one a line"
        raise
    if not table.has_rows():
        return _NO_ROWS
    if isinstance(table, JsonLines):  # other keys may be absent from the first object
        return suffix_of(file), *(table.header[index] for index in used)
    return suffix_of(file), *table.header


def _is_empty(file: Path) -> bool:
    try:
        return not any(block.strip() for block in unpacked(file))
    except DataError:
        return False


def _is_document(file: Path) -> bool:
    """Whether a .json is one object, as settings are: JSON lines do not read so, damaged or not."""
    if not file.name.lower().endswith(".json") or file.stat().st_size > _LONGEST_DOCUMENT:
        return False
    try:
        return isinstance(json.loads(file.read_text("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _left_out(
    folder: Path, present: Iterable[Path], logs: set[Path], reasons: Mapping[Path, str], why: str
) -> tuple[str, ...]:
    """Notes on what is present, could be data and is not in the log; why: unless in `reasons`."""
    found: dict[str, list[str]] = {}
    for path in present:
        if path.is_dir():
            if _holds_data(path):
                reason = "of sub-folders only those called key=value are read"
                found.setdefault(reason, []).append(_shown(path, folder))
        elif path not in logs and _is_packed(path):
            found.setdefault("a format that is not read, unpack or convert it", []).append(
                _shown(path, folder)
            )
        elif path not in logs and _could_be_data(path):
            found.setdefault(reasons.get(path, why), []).append(_shown(path, folder))
    return tuple(f"left out {_few(names)}: {reason}" for reason, names in found.items())


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shown(path: Path, folder: Path) -> str:
    return f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}"


def _could_be_data(path: Path) -> bool:
    """Whether a name is that of a log, and not that of titles or of a text about the log."""
    about = _ABOUT.fullmatch(path.name.lower())
    return suffix_of(path) in _READABLE and not is_title_file(path) and not about


def _is_packed(path: Path) -> bool:
    return suffix_of(path) in _UNREAD


def _holds_data(folder: Path) -> bool:
    """Whether one of the first files in and below a folder could be data."""

    def below() -> Iterator[Path]:
        for _, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith((".", "_"))]
            yield from (Path(name) for name in files if not name.startswith((".", "_")))

    return any(_could_be_data(file) or _is_packed(file) for file in islice(below(), _LOOKED_AT))


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder and in the folders `key=value` below, without hidden ones and markers."""
    for path in folder.iterdir():
        if path.name.startswith((".", "_")):
            continue
        if "=" in path.name and path.is_dir():
            yield from _entries(path)
        else:
            yield path


def _may_be_part(path: Path) -> bool:
    """Whether it is a file, links followed.

    Raises DataError for a link to nothing, which may stand for a part, and for a part that is no
    regular file.
    """
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path}: a link to {path.readlink()}, which is not there. Bring the file back or "
            "remove the link."
        )
    if not path.is_dir() and suffix_of(path) in (*_TABLES, INTER):
        is_folder(path)  # says what it is: without this part the log would be another one
    return path.is_file()


def _in_order(file: Path) -> list[tuple[int, int | str]]:
    """Sorts numbers by value, and train before valid before test."""
    split = {"train": "0", "valid": "1", "validation": "1", "test": "2"}
    pieces = re.findall(r"\d+|[a-z]+|[^a-z\d]+", str(file).lower())
    return [
        (0, int(piece)) if piece.isdecimal() else (1, split.get(piece, piece)) for piece in pieces
    ]
