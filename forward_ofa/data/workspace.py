"""Where arrays grow: in memory, or in files that are then memory-mapped.

Everything that has an entry an interaction or a user goes through here, so that a log larger than
memory takes the same steps as a small one; only the workspace differs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray

_DECODED_AT_ONCE = 1 << 16


class Column:
    """A one-dimensional array that is written from front to back, then read.

    path: its file, or None to keep it in memory. Raises OSError when the disk is full.
    """

    def __init__(self, dtype: DTypeLike, path: Path | None) -> None:
        self._dtype, self._path = np.dtype(dtype), path
        self._parts: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None if path is None else path.open("wb")

    def append(self, values: NDArray[Any]) -> None:
        """Adds values at the end."""
        part = np.ascontiguousarray(values, dtype=self._dtype)
        if self._file is None:
            self._parts.append(part)
        else:
            self._file.write(part.data.cast("B") if len(part) else b"")

    def finish(self) -> NDArray[Any]:
        """All that was appended; nothing can be appended after."""
        if self._file is None:
            parts, self._parts = self._parts, []
            if len(parts) == 1:
                return parts[0]
            return np.concatenate(parts) if parts else np.empty(0, self._dtype)
        assert self._path is not None
        self._file.close()
        return open_array(self._path, self._dtype)


def open_array(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """A file of raw little-endian values as a read-only, memory-mapped array."""
    if path.stat().st_size == 0:  # cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


class IdTable(Sequence[str]):
    """External ids in order; id i is the UTF-8 text blob[offsets[i]:offsets[i + 1]].

    offsets: int64 [n + 1]. blob: uint8 [bytes]. Either may be memory-mapped.
    """

    def __init__(self, offsets: NDArray[np.int64], blob: NDArray[np.uint8]) -> None:
        self.offsets, self.blob = offsets, blob

    @classmethod
    def of(cls, ids: Sequence[str] | pl.Series) -> IdTable:
        """The same ids, in memory."""
        column = IdColumn(Workspace(), "ids")
        column.append(ids if isinstance(ids, pl.Series) else pl.Series(list(ids), dtype=pl.String))
        return column.finish()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._decoded(start, max(start, stop))[::step] if step > 0 else [
                self[row] for row in range(start, stop, step)
            ]  # fmt: skip
        row = range(len(self))[index]  # raises IndexError; counts from the end if negative
        return self.blob[self.offsets[row] : self.offsets[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _DECODED_AT_ONCE):
            yield from self._decoded(start, min(start + _DECODED_AT_ONCE, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IdTable({self[:3]!r}{', ...' if len(self) > 3 else ''}: {len(self)})"

    def _decoded(self, start: int, stop: int) -> list[str]:
        ends = (self.offsets[start : stop + 1] - self.offsets[start]).tolist()
        text = self.blob[self.offsets[start] : self.offsets[stop]].tobytes()
        return [text[a:b].decode() for a, b in pairwise(ends)]


class IdColumn:
    """An IdTable that is written from front to back."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self._offsets = workspace.column(f"{name}.offsets", np.int64)
        self._blob = workspace.column(f"{name}.text", np.uint8)
        self._bytes = 0
        self._offsets.append(np.zeros(1, np.int64))

    def append(self, ids: pl.Series) -> None:
        """Adds ids at the end."""
        if len(ids):
            ends = self._bytes + np.cumsum(ids.str.len_bytes().to_numpy(), dtype=np.int64)
            self._offsets.append(ends)
            self._bytes = int(ends[-1])
            text = "".join(ids.to_list()).encode()
            self._blob.append(np.frombuffer(text, np.uint8))

    def finish(self) -> IdTable:
        """All ids that were appended."""
        return IdTable(self._offsets.finish(), self._blob.finish())


class Workspace:
    """Hands out columns: in memory, or as files in `folder`, which it makes.

    The folder is the caller's to remove; arrays that are mapped stay usable until then, and on
    Linux after.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def column(self, name: str, dtype: DTypeLike) -> Column:
        """A new column; one of the same name is overwritten."""
        return Column(dtype, None if self.folder is None else self.folder / name)

    def inside(self, name: str) -> Workspace:
        """A workspace of its own inside this one."""
        return Workspace(None if self.folder is None else self.folder / name)

    def discard(self) -> None:
        """Removes the files. Arrays that are still mapped stay readable (POSIX)."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
