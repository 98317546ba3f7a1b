"""Titles of items, from the files that lie beside a log. They only make reports readable."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from forward_ofa.data.bytesource import read_text_bytes, unpacked
from forward_ofa.data.columns import ITEM_SYNONYMS, TITLE_SYNONYMS, find_column, to_ids
from forward_ofa.data.jsonlines import JsonLines
from forward_ofa.data.log import DataError
from forward_ofa.data.parquet import ParquetFile
from forward_ofa.data.text import long_fields

TITLE_FILES = (
    "u.item", "movies.dat", "movies.csv", "items.csv", "titles.csv", "items.tsv",
    "items.parquet", "movies.parquet",
)  # fmt: skip


_META_ENDINGS = (".jsonl.gz", ".jsonl", ".json.gz", ".json")


def is_title_file(file: Path) -> bool:
    """Whether a file holds titles by its name, and so is no log."""
    return file.name in TITLE_FILES or file.name.startswith("meta_")


def title_files(log_file: Path) -> list[Path]:
    """Files beside a log that may hold its titles, the likeliest first."""
    stem = log_file.name.partition(".")[0]
    # Amazon: reviews_Books_5.json.gz, ratings_Books.csv, Books.csv.gz all go with meta_Books.*
    product = re.sub(r"^(reviews|ratings)_|_\d+(core)?$", "", stem)
    names = [f"{stem}.item", *TITLE_FILES, *(f"meta_{product}{end}" for end in _META_ENDINGS)]
    paths = [log_file.with_name(name) for name in names]
    return [path for path in paths if path != log_file and path.is_file()]


def find_titles(log_file: Path) -> dict[str, str]:
    """Item id -> title from the first usable file beside the log; {} when there is none.

    Raises DataError when such a file is there but damaged: a silent loss would be puzzling.
    """
    for path in title_files(log_file):
        if _is_blank(path):
            raise DataError(
                f"{path}: the file is empty, and by its name it holds the titles of the items. "
                "Copy or export it again, or remove it: titles only make reports readable."
            )
        titles = _read_titles(path)
        if titles:
            return titles
    return {}


def _is_blank(path: Path) -> bool:
    if path.suffix == ".parquet":
        return path.stat().st_size == 0
    return not any(block.strip() for block in unpacked(path))


def _read_titles(path: Path) -> dict[str, str]:
    if path.suffix == ".parquet":
        return _parquet_titles(path)
    if path.name.startswith("meta_"):
        return _meta_titles(path)
    data = read_text_bytes(path)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # the encoding of the older MovieLens releases
    if path.suffix == ".dat":
        rows = [line.split("::") for line in text.splitlines()]
        return _pairs(rows, 0, 1)
    if path.name == "u.item":
        return _pairs([line.split("|") for line in text.splitlines()], 0, 1)
    if path.suffix == ".item":
        rows = [line.split("\t") for line in text.splitlines()]
        header = [name.partition(":")[0] for name in rows[0]]
        return _by_header(header, rows[1:])
    return _csv_titles(path, text)


def _csv_titles(path: Path, text: str) -> dict[str, str]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    try:
        with long_fields():
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read: {error}. Repair or remove it.") from None
    return _by_header(rows[0], rows[1:])


def _by_header(header: list[str], rows: list[list[str]]) -> dict[str, str]:
    item, title = find_column(header, ITEM_SYNONYMS), find_column(header, TITLE_SYNONYMS)
    return {} if item is None or title is None else _pairs(rows, item, title)


def _pairs(rows: list[list[str]], item: int, title: int) -> dict[str, str]:
    return {
        row[item]: row[title].strip()
        for row in rows
        if len(row) > max(item, title) and row[title].strip()
    }


def _meta_titles(path: Path) -> dict[str, str]:
    """Of an Amazon metadata file: JSON, or Python dicts in the 2014 release."""
    titles: dict[str, str] = {}
    for record in JsonLines(path).objects():
        item, title = record.get("parent_asin") or record.get("asin"), record.get("title")
        if isinstance(item, str) and isinstance(title, str) and title.strip():
            # Half a surrogate pair, which JSON allows, could not be printed.
            titles[item] = title.strip().encode(errors="replace").decode()
    return titles


def _parquet_titles(path: Path) -> dict[str, str]:
    file = ParquetFile(path)
    item, title = find_column(file.header, ITEM_SYNONYMS), find_column(file.header, TITLE_SYNONYMS)
    if item is None or title is None:
        return {}
    found: dict[str, str] = {}
    for table in file.parts([item, title]):
        ids = to_ids(table, file.header[item], str(path)).to_list()
        titles = table.frame[file.header[title]].to_list()
        found |= {key: str(value).strip() for key, value in zip(ids, titles, strict=True) if value}
    return found
