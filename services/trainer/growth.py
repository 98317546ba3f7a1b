"""How many interactions a log on disk holds and how many came, cheaply and again and again."""

from __future__ import annotations

import gzip
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_PARQUET = (".parquet", ".pq")
_Stamp = tuple[int, int]
"""Size, time of change in nanoseconds."""


@dataclass(frozen=True)
class Measure:
    """rows: lines of text files and rows of Parquet files, headers included, of all files at the
    path. came: of these, since the first look that was accepted. changed: seconds since the last
    file changed. settled: no file changed while we read."""

    rows: int
    came: int
    changed: float
    settled: bool


class Growth:
    """Remembers what each file had, by its size and time, so that only new files are read."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._stamps: dict[str, _Stamp] = {}
        self._accepted: tuple[dict[str, int], dict[str, _Stamp]] | None = None
        self._came = 0
        self._same_since = 0.0

    def measure(self, path: Path) -> Measure:
        """A file, or all files of a folder but hidden ones. Raises OSError if there are none, and
        what `count_rows` raises."""
        files = [path] if path.is_file() else sorted(
            found for found in path.rglob("*") if found.is_file() and found.name[0] != "."
        )  # fmt: skip
        if not files:
            raise FileNotFoundError(2, "there is no file of a log", str(path))
        rows: dict[str, int] = {}
        stamps: dict[str, _Stamp] = {}
        settled = True
        for file in files:
            name, before = str(file), _stamp(file)
            read = self._stamps.get(name) != before
            rows[name] = count_rows(file) if read else self._rows[name]
            stamps[name] = before
            settled = settled and _stamp(file) == before
        if stamps != self._stamps:
            self._same_since = time.monotonic()
        self._rows, self._stamps = rows, stamps
        # By our own clock too: a file's time may lie in the future.
        age = time.time() - max(changed for _, changed in stamps.values()) / 1e9
        changed = max(age, time.monotonic() - self._same_since)
        return Measure(sum(rows.values()), self._came + self._newer(), changed, settled)

    def accept(self) -> None:
        """What the last look found is whole: what comes counts from it. A file that is just being
        written over may look as if nearly all of it were gone."""
        self._came += self._newer()
        self._accepted = self._rows, self._stamps

    def _newer(self) -> int:
        """Rows that were in no file at the look that was accepted last."""
        if self._accepted is None:
            return 0
        rows, stamps = self._accepted
        known = set(stamps.values())
        found = 0
        for name, count in self._rows.items():
            before = rows.get(name, rows.get(name.removesuffix(".gz")))  # packed since
            if before is not None:
                found += new_rows(before, count)
            elif self._stamps[name] not in known:  # else it was renamed
                found += count
        return found


def new_rows(before: int, now: int) -> int:
    """Rows that came, by two counts. With less than half of them it is another log, all of it new;
    with a few less, some were removed."""
    if now >= before:
        return now - before
    return now if 2 * now < before else 0


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


def _stamp(file: Path) -> _Stamp:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
