"""The bytes of a text file, packed or not, a block of whole records at a time."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, cast

from forward_ofa.data.log import DataError

BLOCK_BYTES = 1 << 25
_LONGEST_RECORD = 1 << 29
_SAMPLE = 1 << 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_CONTAINERS = (
    (re.compile(rb"\x1f\x8b"), "a gzip file"),
    (re.compile(rb"PK\x03\x04"), "a zip archive (or a spreadsheet)"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "a bzip2 file"),
    (re.compile(rb"\xfd7zXZ\x00"), "an xz file"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd file"),
    (re.compile(rb"PAR1\x15"), "a Parquet file"),
)


def whole_lines(block: bytes) -> int:
    """Bytes up to the last end of line."""
    return block.rfind(b"\n") + 1


class TextBlocks:
    """A UTF-8 text, unpacked when its name ends in .gz, without byte order marks at its start.

    first: the first line that is not blank, without its end. unended: whether the last line has
    no line end; known when all blocks were read.
    Raises DataError when the file cannot be read or unpacked, is empty, or is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.unended = False
        head = b""
        with closing(unpacked(path)) as stream:
            for block in stream:
                head += block
                self._start = len(head) - len(head.lstrip(b"\r\n"))  # blank lines
                cut = head.find(b"\n", self._start)
                if cut >= 0 or len(head) > _LONGEST_RECORD:
                    break
            else:
                cut = -1
        if not head.strip():
            raise _empty(path)
        cut = len(head) if cut < 0 else cut
        self._line = 1 + head.count(b"\n", 0, self._start)
        self._after_first = cut + 1
        require_utf8(head[self._start : cut], str(path), self._line)
        self.first = head[self._start : cut].decode()
        self.sample = head[self._start : self._start + _SAMPLE]
        """The first bytes, cut anywhere."""

    def blocks(
        self, *, header: bool, whole: Callable[[bytes], int] = whole_lines
    ) -> Iterator[tuple[int, bytes]]:
        """(number of its first line, block) over the text, of which each block is whole records.

        header: leave out the first line. whole: how many bytes of a block are whole records.
        Raises DataError when the file is cut off, and for a record longer than half a gigabyte.
        """
        skip = self._after_first if header else self._start
        line, rest = self._line + int(header), b""
        with closing(unpacked(self._path)) as stream:
            for block in stream:
                gone = min(skip, len(block))
                skip -= gone
                rest += block[gone:]
                cut = whole(rest)
                if cut:
                    yield self._checked(line, rest[:cut])
                    line += rest.count(b"\n", 0, cut)
                    rest = rest[cut:]
                elif len(rest) > _LONGEST_RECORD:
                    raise DataError(
                        f"{self._path}, line {line}: a record of more than half a gigabyte begins "
                        "here. Is a quote left open, or is this another kind of file?"
                    )
        self.unended = not rest.endswith(b"\n") and bool(rest.strip(b"\r"))
        if rest:
            yield self._checked(line, rest)

    def _checked(self, line: int, block: bytes) -> tuple[int, bytes]:
        require_utf8(block, str(self._path), line)
        return line, block


def read_text_bytes(path: Path) -> bytes:
    """The whole of a small text, unpacked. Raises DataError when it is unreadable or empty."""
    data = b"".join(unpacked(path))
    if not data.strip():
        raise _empty(path)
    return data


def unpacked(path: Path) -> Generator[bytes]:
    """The bytes of a file in blocks, unpacked if its name ends in .gz, in capitals or not.

    Byte order marks are left out at the very start, however many; elsewhere they are text.
    Raises DataError when it cannot be read, or is packed in a way that its name does not say.
    """
    packed = path.suffix.lower() == ".gz"
    try:
        with path.open("rb") as raw:
            if packed and not (raw.peek(2) or _GZIP).startswith(_GZIP):
                raise DataError(
                    f"{path}: its name ends in .gz, but it is not a gzip file. Rename it to what "
                    "it is; if it should be one, copy it again."
                )
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            start = True
            while block := file.read(BLOCK_BYTES):
                if start:
                    _refuse_container(path, block, packed)
                    block = _without_marks(block)
                    start = not block
                if block:
                    yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}). Copy it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None


def container(head: bytes) -> str | None:
    """What a file is that begins with these bytes, if it is packed or Parquet: "a gzip file"."""
    return next((what for magic, what in _CONTAINERS if magic.match(head)), None)


def _refuse_container(path: Path, head: bytes, packed: bool) -> None:
    what = container(head)
    if what is None:
        return
    if packed:
        raise DataError(f"{path}: it holds {what}. Unpack it, and give what is in it.")
    endings = {"a gzip file": ".gz", "a Parquet file": ".parquet"}
    if what in endings:
        name = path.name + endings[what]
        advice = f"Rename it to {name!r}."
    else:
        advice = "Unpack it and give what is in it, or export it as CSV."
    raise DataError(f"{path}: it is {what}, not text. {advice}")


def _without_marks(block: bytes) -> bytes:
    while block.startswith(BYTE_ORDER_MARK):
        block = block.removeprefix(BYTE_ORDER_MARK)
    return block


def _empty(path: Path) -> DataError:
    return DataError(f"{path}: the file is empty. Give a log with one interaction a line.")


def require_utf8(data: bytes, file: str, line: int) -> None:
    """Raises DataError, with the line, for bytes that are not UTF-8; `line`: the first one's."""
    if data.isascii():
        return
    try:
        data.decode()
    except UnicodeDecodeError as error:
        number = line + data.count(b"\n", 0, error.start)
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))  # byte order marks
        name, code = ("UTF-16", "utf-16") if wide else ("Latin-1", "latin1")
        raise DataError(
            f"{file}, line {number}: not UTF-8 text. If it is {name}, convert it with: "
            f"iconv -f {code} -t utf-8 OLD > NEW"
        ) from None
