"""How many interactions a log on disk holds, cheaply and again and again while it grows."""

from __future__ import annotations

import gzip
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class Measure:
    """rows: lines of text files and rows of Parquet files, headers included, of all files at the
    path. changed: seconds since the last one changed. settled: no file changed while we read."""

    rows: int
    changed: float
    settled: bool


class Growth:
    """Remembers what each file had, by its size and time, so that only new files are read."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], int] = {}

    def measure(self, path: Path) -> Measure:
        """A file, or all files of a folder but hidden ones. Raises OSError if there are none, and
        what `count_rows` raises."""
        files = [path] if path.is_file() else sorted(
            found for found in path.rglob("*") if found.is_file() and found.name[0] != "."
        )  # fmt: skip
        if not files:
            raise FileNotFoundError(2, "there is no file of a log", str(path))
        seen: dict[tuple[str, int, int], int] = {}
        newest, settled = 0.0, True
        for file in files:
            before = _key(file)
            count = self._known.get(before)
            seen[before] = count_rows(file) if count is None else count
            settled = settled and _key(file) == before
            newest = max(newest, before[2] / 1e9)
        self._known = seen
        return Measure(sum(seen.values()), max(0.0, time.time() - newest), settled)


def count_rows(file: Path) -> int:
    """Lines, or rows of a Parquet file. Raises OSError or DataError for a file that cannot be read,
    also for a compressed one that is cut off."""
    name = file.name.lower()
    if name.endswith(_PARQUET):
        from forward_ofa.data.parquet import row_count

        return row_count(file)
    lines, last = 0, b"\n"
    try:
        with gzip.open(file, "rb") if name.endswith(".gz") else file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                lines += chunk.count(b"\n")
                last = chunk[-1:]
    except (EOFError, zlib.error) as error:
        raise OSError(None, f"is cut off or damaged: {error}", str(file)) from error
    return lines + (last != b"\n")


def _key(file: Path) -> tuple[str, int, int]:
    found = file.stat()
    return str(file), found.st_size, found.st_mtime_ns
