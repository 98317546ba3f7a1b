"""The items that the user touched: on the device only, bounded, one JSON string a line.

A touch appends one line, without waiting for the disk: a power loss costs the last
touches at most, and a torn line (also of a full disk) costs itself.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path

from forward_ofa_device.errors import StorageError
from forward_ofa_device.store import write_atomic

log = logging.getLogger(__name__)
MAX_ID_LENGTH = 512


class History:
    """Item ids, oldest first; the oldest are forgotten beyond `limit`.

    Raises StorageError if the file is there and cannot be read.
    """

    def __init__(self, path: Path, limit: int, *, sync: bool = True) -> None:
        self._path = path
        self._sync = sync
        self._items: deque[str] = deque()
        self._counts: Counter[str] = Counter()
        self._limit = limit
        lines = _read(path).split(b"\n")
        whole = [item for item in map(_item, lines[:-1]) if item is not None]
        self._remember(whole)
        self._lines = len(whole)
        self._torn = bool(lines[-1])
        if lines[-1] or len(whole) < len(lines) - 1:
            log.warning("the history has damaged lines: dropped")
            self._compact()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._counts

    def items(self) -> tuple[str, ...]:
        return tuple(self._items)

    def seen(self) -> frozenset[str]:
        return frozenset(self._counts)

    def add(self, item_ids: Iterable[str]) -> list[str]:
        """Those that were not there before, each once. Raises ValueError for what is no item id,
        StorageError if it cannot be written."""
        added = [_checked(item) for item in item_ids]
        text = "".join(json.dumps(item) + "\n" for item in added)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + text if self._torn else text)
            self._torn = False
        except OSError as error:
            self._torn = True
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error
        new = [item for item in dict.fromkeys(added) if item not in self._counts]
        self._remember(added)
        self._lines += len(added)
        if self._lines > 2 * self._limit:
            self._compact()
        return new

    def _remember(self, items: Iterable[str]) -> None:
        for item in items:
            self._items.append(item)
            self._counts[item] += 1
        while len(self._items) > self._limit:
            oldest = self._items.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def _compact(self) -> None:
        """Leaves the file as it is if that fails: it holds all that is needed, and more."""
        text = "".join(json.dumps(item) + "\n" for item in self._items)
        try:
            write_atomic(self._path, text.encode(), sync=self._sync)
        except OSError as error:
            log.warning("the history could not be compacted: %s", error)
            return
        self._lines, self._torn = len(self._items), False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _item(line: bytes) -> str | None:
    try:
        return _checked(json.loads(line))
    except ValueError:
        return None


def _checked(item_id: object) -> str:
    if not isinstance(item_id, str) or not 0 < len(item_id) <= MAX_ID_LENGTH:
        raise ValueError(
            f"{item_id!r:.80} is no item id: use the log's own ids, as text of at most "
            f"{MAX_ID_LENGTH} characters"
        )
    return item_id
