"""Read an interaction log from what is on disk.

A file:    `u.data` (tabs: user item rating time), `*.dat` ("::": user, item, rating, time),
           `*.inter` (RecBole), `*.csv`, `*.tsv`, `*.txt` (separator recognised), each also `.gz`,
           and `*.parquet`.
A folder:  an official MovieLens release (`u.data`, `ratings.dat` or `ratings.csv`), or one with
           exactly one `.inter`, or exactly one table with a user, an item and a time column.

Titles come from `u.item`, `movies.dat`, `movies.csv`, `items.*` or `<name>.item` beside the log.
"""

from __future__ import annotations

from pathlib import Path

from forward_ofa.data.columns import ColumnNames, Table, resolve, to_ids, to_timestamps
from forward_ofa.data.log import DataError, InteractionLog
from forward_ofa.data.parquet import parquet_columns, parquet_header
from forward_ofa.data.text import DelimitedText, read_bytes
from forward_ofa.data.titles import TITLE_FILES, find_titles

_MOVIELENS_HEADER = ["user_id", "item_id", "rating", "timestamp"]
_OFFICIAL = ("u.data", "ratings.dat", "ratings.csv")
_TABLES = (".parquet", ".pq", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
_FORMATS = "u.data, *.dat, *.inter, *.csv, *.tsv, *.txt (each also .gz), *.parquet"


def read_log(path: Path, columns: ColumnNames | None = None) -> InteractionLog:
    """Read the log at `path`, a file or a folder (formats: see the module).

    Raises DataError for anything that is not a usable log, saying where and what to do.
    """
    names = columns or ColumnNames()
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Check the path.")
        file = _find_in_folder(path, names) if path.is_dir() else path
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path}: cannot be read: {error}.") from None
    header, table, kind = _read_table(file, names)
    user, item, time = header
    users = to_ids(table, user, str(file))
    items = to_ids(table, item, str(file))
    timestamps = to_timestamps(table, time, str(file))
    name = path.resolve().name
    return InteractionLog.from_ids(
        users, items, timestamps, titles=find_titles(file),
        name=name if path.is_dir() else name.partition(".")[0] or name,
        source=f"{kind} {file}",
    )  # fmt: skip


def _read_table(file: Path, names: ColumnNames) -> tuple[tuple[str, str, str], Table, str]:
    """The names of the user, item and time columns, the table with them, and the format's name."""
    suffix = _suffix(file)
    if suffix in (".parquet", ".pq"):
        header = parquet_header(file)
        indices = resolve(header, names, str(file))
        return _named(header, indices), parquet_columns(file, list(indices)), "Parquet file"
    text, kind = _open_text(file, suffix)
    if kind.startswith("MovieLens") and names.given():
        raise DataError(
            f"{file}: this format has no header, its columns are fixed (user, item, rating, time). "
            "Leave out --user-column, --item-column and --time-column."
        )
    indices = resolve(text.header, names, str(file))
    return _named(text.header, indices), text.columns(list(indices)), kind


def _named(header: list[str], indices: tuple[int, int, int]) -> tuple[str, str, str]:
    user, item, time = (header[index] for index in indices)
    return user, item, time


def _open_text(file: Path, suffix: str) -> tuple[DelimitedText, str]:
    name = str(file)
    plain = suffix.removesuffix(".gz")
    if plain == ".data":
        text = DelimitedText(
            read_bytes(file), name, separator="\t", quotes=False, header=_MOVIELENS_HEADER
        )
        return text, "MovieLens u.data file"
    if plain == ".dat":
        text = DelimitedText(
            read_bytes(file), name, separator="::", quotes=False, header=_MOVIELENS_HEADER
        )
        return text, "MovieLens ratings.dat file"
    if plain == ".inter":
        text = DelimitedText(read_bytes(file), name, separator="\t", quotes=False)
        text.header = [column.partition(":")[0] for column in text.header]
        return text, "RecBole .inter file"
    if suffix in _TABLES:
        separator = "\t" if plain == ".tsv" else None
        return DelimitedText(read_bytes(file), name, separator=separator), "table in text file"
    raise DataError(f"{file}: unknown format. Readable: {_FORMATS}. Convert or rename the file.")


def _suffix(file: Path) -> str:
    name = file.name.lower()
    if name.endswith(".gz"):
        return Path(name.removesuffix(".gz")).suffix + ".gz"
    return Path(name).suffix


def _find_in_folder(folder: Path, names: ColumnNames) -> Path:
    for official in _OFFICIAL:
        if (folder / official).is_file():
            return folder / official
    files = sorted(file for file in folder.iterdir() if file.is_file())
    inter = [file for file in files if file.name.endswith((".inter", ".inter.gz"))]
    if len(inter) == 1:
        return inter[0]
    tables = [file for file in files if _suffix(file) in _TABLES and file.name not in TITLE_FILES]
    logs = inter or (tables if len(tables) == 1 else [f for f in tables if _is_log(f, names)])
    if len(logs) == 1:
        return logs[0]
    if logs:
        found = ", ".join(file.name for file in logs[:10])
        raise DataError(f"{folder}: several files could be the log: {found}. Give one of them.")
    found = ", ".join(file.name for file in files[:10]) or "no files"
    raise DataError(
        f"{folder}: no interaction log found. Looked for {', '.join(_OFFICIAL)}, one .inter file, "
        f"or one table (Parquet, CSV, TSV) with user, item and time columns; there is: {found}. "
        "Give the file itself, and --user-column, --item-column, --time-column if needed."
    )


def _is_log(file: Path, names: ColumnNames) -> bool:
    try:
        if _suffix(file) in (".parquet", ".pq"):
            resolve(parquet_header(file), names, str(file))
        else:
            resolve(_open_text(file, _suffix(file))[0].header, names, str(file))
    except DataError:
        return False
    return True
