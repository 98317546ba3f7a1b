"""Named public data sets, from their official addresses, checked against their checksums.

A finished data set appears in the cache by one rename, so a folder that exists is complete.
An interrupted download leaves `<name>.zip.part`, and the next call goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from forward_ofa.data.log import DataError

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None)."""

Reason = Literal["no network", "interrupted", "http status", "checksum", "archive", "disk"]

TIMEOUT_SECONDS = 5.0  # to connect, and for each read
_CHUNK = 1 << 16


class DownloadError(DataError):
    """A data set could not be downloaded; `reason` says of what kind the failure is."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class RemoteDataset:
    """Where a data set comes from. md5 is the publisher's, in hex."""

    title: str
    url: str
    md5: str


_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
DATASETS: Mapping[str, RemoteDataset] = {
    "ml-100k": RemoteDataset(
        "MovieLens-100K", f"{_GROUPLENS}/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"
    ),
    "ml-1m": RemoteDataset(
        "MovieLens-1M", f"{_GROUPLENS}/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"
    ),
}


def fetch(
    name: str,
    cache_dir: Path,
    *,
    progress: Progress | None = None,
    datasets: Mapping[str, RemoteDataset] = DATASETS,
) -> Path:
    """The folder of a named data set, downloaded into `cache_dir` unless it is there already.

    Safe to call from several processes at once: one downloads, the others wait.
    Raises DataError for an unknown name and DownloadError for anything that goes wrong on the way.
    """
    if name not in datasets:
        raise DataError(f"{name!r} is not a known data set. Known: {', '.join(datasets)}.")
    remote, target = datasets[name], cache_dir / name
    try:
        with _locked(cache_dir, name):
            if not target.is_dir():
                archive = cache_dir / f"{name}.zip.part"
                _download(remote, archive, progress)
                _unpack(archive, target)
    except OSError as error:
        raise DownloadError("disk", f"{cache_dir}: cannot be written: {error}. Choose another "
                            "cache folder or free some space.") from None  # fmt: skip
    return target


@contextmanager
def _locked(cache_dir: Path, name: str) -> Iterator[None]:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(remote: RemoteDataset, part: Path, progress: Progress | None) -> None:
    resumed = part.exists() and part.stat().st_size > 0
    _transfer(remote.url, part, progress)
    if _md5(part) != remote.md5 and resumed:  # what was left over may be of another file
        part.unlink()
        _transfer(remote.url, part, progress)
    found = _md5(part)
    if found != remote.md5:
        part.unlink()
        raise DownloadError(
            "checksum",
            f"{remote.url}: the checksum is {found}, expected {remote.md5}. Something on the way "
            "altered it: try again, or download it yourself and give its folder.",
        )


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` what it lacks; on failure what has arrived stays for the next call."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "forward-ofa"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is missing, or `part` is of another file
            return
        raise DownloadError(
            "http status", f"{url}: the server answered {error.code} {error.reason}. Try again "
            "later, or download it yourself and give its folder.",
        ) from None  # fmt: skip
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        why = getattr(error, "reason", error)
        raise DownloadError(
            "no network", f"{url}: cannot be reached ({why}). Check the network, or give the "
            "folder or file of a log that is on disk.",
        ) from None  # fmt: skip
    with response:
        start = have if response.status == 206 else 0
        with part.open("ab" if start else "wb") as file:
            _copy(response, file.write, url, start, progress)
            file.flush()
            os.fsync(file.fileno())


def _copy(
    response: http.client.HTTPResponse, write: Callable[[bytes], int], url: str, start: int,
    progress: Progress | None,
) -> None:  # fmt: skip
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    done = start
    while True:
        try:
            block = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _interrupted(url, done, total, str(error)) from None
        if not block:
            break
        write(block)
        done += len(block)
        if progress is not None:
            progress(done, total)
    if total is not None and done < total:
        raise _interrupted(url, done, total, "the connection was closed")


def _interrupted(url: str, done: int, total: int | None, why: str) -> DownloadError:
    return DownloadError(
        "interrupted",
        f"{url}: stopped after {done:,} of {total or '?'} bytes ({why}). "
        "Run it again: it goes on from there.",
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest()  # fmt: skip


def _unpack(archive: Path, target: Path) -> None:
    """Unpack beside the target, then rename; a single top folder of the archive is the target.

    The archive is used up, whatever comes of it.
    """
    for stale in target.parent.glob(f".{target.name}-*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as package:
            for member in package.infolist():
                _refuse_escape(member, archive)
                if not member.is_dir():
                    _extract(package, member, work)
        tops = list(work.iterdir())
        root = tops[0] if len(tops) == 1 and tops[0].is_dir() else work
        root.chmod(0o755)  # mkdtemp made it private
        root.replace(target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise DownloadError(
            "archive", f"{archive.name}: not a usable zip archive ({error}). Try again, or "
            "download it yourself and give its folder.",
        ) from None  # fmt: skip
    finally:
        shutil.rmtree(work, ignore_errors=True)
        archive.unlink()


def _extract(package: zipfile.ZipFile, member: zipfile.ZipInfo, work: Path) -> None:
    path = work.joinpath(*PurePosixPath(member.filename).parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with package.open(member) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def _refuse_escape(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(member.filename)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or link:
        raise DownloadError(
            "archive",
            f"{archive.name}: refused, its member {member.filename!r} points outside the archive.",
        )
