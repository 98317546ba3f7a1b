"""In which layout a file of a log is.

`u.data` (tabs: user item rating time), `*.dat` ("::": user, item, rating, time), `*.inter`
(RecBole), `*.csv`, `*.tsv`, `*.txt` (separator recognised), `*.json`, `*.jsonl`, `*.ndjson` (one
object a line), each also `.gz`, and `*.parquet`, `*.pq`. Amazon's ratings without a header line are
recognised by their values. Which files of a folder are the log: `folders`.
"""

from __future__ import annotations

import re
from pathlib import Path

from forward_ofa.data.columns import ColumnNames, TableFile, UnknownColumns
from forward_ofa.data.jsonlines import JsonLines
from forward_ofa.data.log import DataError
from forward_ofa.data.parquet import ParquetFile
from forward_ofa.data.text import DelimitedText

PARQUET = (".parquet", ".pq")
JSON = (".json", ".jsonl", ".ndjson")
TEXT = (".csv", ".tsv", ".txt")
MOVIELENS = (".data", ".dat")
INTER = ".inter"
_MOVIELENS_HEADER = ["user_id", "item_id", "rating", "timestamp"]
_FORMATS = (
    "u.data, *.dat, *.inter, *.csv, *.tsv, *.txt, *.json, *.jsonl, *.ndjson (each also .gz), "
    "*.parquet"
)


class InterFile(DelimitedText):
    """A RecBole .inter, whose header has NAME:TYPE. lists: the names of columns of lists."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, separator="\t", quotes=False)
        typed = [column.partition(":") for column in self.header]
        self.header = [name for name, _, _ in typed]
        self.lists = [name for name, _, kind in typed if kind.strip().endswith("_seq")]


def open_table(file: Path, names: ColumnNames) -> tuple[TableFile, str]:
    """A file as a table, and what its layout is called. Raises DataError."""
    suffix = suffix_of(file)
    if names.header is not None and suffix not in TEXT:
        raise UnknownColumns(f"{file}: --header is for a CSV; this file names its columns.")
    if suffix in PARQUET:
        return ParquetFile(file), "Parquet file"
    if suffix in JSON:
        return JsonLines(file), "file of JSON lines"
    if suffix in MOVIELENS:
        if names.given():
            raise DataError(
                f"{file}: this format has no header, its columns are fixed (user, item, rating, "
                "time). Leave out --user-column, --item-column and --time-column."
            )
        separator = "\t" if suffix == ".data" else "::"
        text = DelimitedText(file, separator=separator, quotes=False, header=_MOVIELENS_HEADER)
        return text, f"MovieLens {'u.data' if suffix == '.data' else 'ratings.dat'} file"
    if suffix == INTER:
        return InterFile(file), "RecBole .inter file"
    if suffix in TEXT:
        return _open_delimited(file, suffix, names)
    raise DataError(f"{file}: unknown format. Readable: {_FORMATS}. Convert or rename the file.")


def _open_delimited(file: Path, suffix: str, names: ColumnNames) -> tuple[TableFile, str]:
    text = DelimitedText(file, separator="\t" if suffix == ".tsv" else None)
    if names.header is not None:
        if len(names.header) != len(text.header):
            raise UnknownColumns(
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


def suffix_of(file: Path) -> str:
    """Of the unpacked file, in lower case."""
    return Path(file.name.lower().removesuffix(".gz")).suffix
