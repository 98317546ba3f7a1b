"""Downloads of named public data sets, resumed and checked.

A finished data set appears in the cache by one rename, so a folder that exists is complete. An
interrupted download leaves `NAME.part`, and the next call goes on from there, if the server says
that the file is still the same one (`NAME.part.tag` has its ETag or date). Where no digest is
published, that of the first download stays in `NAME.sha256`, and later ones must match it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Literal
from urllib.parse import urlsplit

from forward_ofa.data.log import DataError
from forward_ofa.data.named import DATASETS, RemoteDataset, suggest
from forward_ofa.locks import locked

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None)."""

Reason = Literal["no network", "interrupted", "http status", "checksum", "archive", "disk"]

TIMEOUT_SECONDS = 15.0  # to connect, and for each read
ATTEMPTS = 5  # in one call, as long as each brings something
PAUSE_SECONDS = 0.5  # before the second attempt, doubled for each further one
_CHUNK = 1 << 16


class DownloadError(DataError):
    """A data set could not be downloaded; `reason` says of what kind the failure is."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


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
        raise DataError(f"{name!r} is not a known data set. Known: {suggest(datasets)}.")
    remote, target = datasets[name], cache_dir / name
    try:
        with locked(cache_dir / f".{name}.lock", wait=True):
            if not target.is_dir():
                part = cache_dir / f"{name}.part"
                _download(remote, part, cache_dir / f"{name}.sha256", progress)
                if remote.url.endswith(".zip"):
                    _unpack(part, target)
                else:
                    _place(part, target, PurePosixPath(urlsplit(remote.url).path).name)
    except OSError as error:
        raise DownloadError(
            "disk", f"{cache_dir}: cannot be written: {error}. Choose another cache folder or free "
            "some space; what has arrived is kept.",
        ) from None  # fmt: skip
    return target


def _download(remote: RemoteDataset, part: Path, record: Path, progress: Progress | None) -> None:
    """Bring `part` to what the data set's address gives, and check it."""
    recorded = remote.digest is None and record.exists()
    expected = record.read_text().split()[0] if recorded else remote.digest
    resumed = part.exists() and part.stat().st_size > 0
    _insist(remote.url, part, progress, checked=expected is not None)
    if expected is not None and _digest(part, expected) != expected and resumed:
        _discard(part)  # what was left over may be of another file
        _insist(remote.url, part, progress, checked=True)
    if expected is None:
        _record(record, _digest(part, "sha256:"), remote.url)
    elif _digest(part, expected) != expected:
        found = _digest(part, expected)
        _discard(part)
        why = (
            f"It was another one at the first download: if the publisher has renewed it, remove "
            f"{record} to accept it."
            if recorded
            else "Something on the way altered it: try again, or download it yourself and give "
            "its folder."
        )
        raise DownloadError(
            "checksum", f"{remote.url}: the checksum is {found}, expected {expected}. {why}"
        )
    _tag(part).unlink(missing_ok=True)


def _insist(url: str, part: Path, progress: Progress | None, *, checked: bool) -> None:
    """Transfer, and go on after a cut for as long as each attempt brings something."""
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, progress, checked=checked)
            return
        except DownloadError as error:
            stuck = not part.exists() or part.stat().st_size <= before
            if error.reason != "interrupted" or stuck or attempt == ATTEMPTS - 1:
                raise
        time.sleep(PAUSE_SECONDS * 2**attempt)


def _transfer(url: str, part: Path, progress: Progress | None, *, checked: bool) -> None:
    """Append to `part` what it lacks; on failure what has arrived stays for the next call.

    checked: a digest will tell whether the halves fit, so a part without a tag may be resumed.
    """
    tag = _tag(part).read_text() if _tag(part).exists() else ""
    have = part.stat().st_size if part.exists() and (tag or checked) else 0
    request = urllib.request.Request(url, headers={"User-Agent": "forward-ofa"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag:
            request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is missing, or `part` is of another file
            if not checked and not _whole(error.headers.get("Content-Range", ""), have):
                _discard(part)
                raise _interrupted(url, 0, None, "the file has changed") from None
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
        told = response.headers.get("Content-Range", f"bytes {have}-")
        start = have if response.status == 206 and told.startswith(f"bytes {have}-") else 0
        if start != have and response.status == 206:
            _discard(part)
            raise _interrupted(url, 0, None, "the server sent another part than was asked for")
        _remember_tag(part, response.headers)
        with part.open("ab" if start else "wb") as file:
            _copy(response, file, url, start, progress)
            file.flush()
            os.fsync(file.fileno())


def _copy(
    response: http.client.HTTPResponse, file: IO[bytes], url: str, start: int,
    progress: Progress | None,
) -> None:  # fmt: skip
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    free = shutil.disk_usage(Path(file.name).parent).free
    if total is not None and total - start > free:
        raise OSError(
            errno.ENOSPC, f"{total - start:,} bytes are to come, {free:,} are free", file.name
        )
    done = start
    while True:
        try:
            block = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _interrupted(url, done, total, str(error)) from None
        if not block:
            break
        file.write(block)
        done += len(block)
        if progress is not None:
            progress(done, total)
    if total is not None and done < total:
        raise _interrupted(url, done, total, "the connection was closed")


def _interrupted(url: str, done: int, total: int | None, why: str) -> DownloadError:
    of = "?" if total is None else f"{total:,}"
    return DownloadError(
        "interrupted",
        f"{url}: stopped after {done:,} of {of} bytes ({why}). "
        "Run it again: it goes on from there.",
    )


def _whole(content_range: str, have: int) -> bool:
    """Whether the answer to a range beyond the end says that the file has `have` bytes."""
    return content_range == f"bytes */{have}"


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _remember_tag(part: Path, headers: Message) -> None:
    """What identifies the file on the server: a strong ETag, else its date."""
    tag = headers.get("ETag", "")
    tag = headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    if tag:
        _tag(part).write_text(tag)
    else:
        _tag(part).unlink(missing_ok=True)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _record(record: Path, digest: str, url: str) -> None:
    temporary = record.with_name(f".{record.name}")
    temporary.write_text(f"{digest} {url}\n")
    temporary.replace(record)


def _digest(path: Path, like: str) -> str:
    """The digest of a file, by the algorithm of the digest `like`: "md5:HEX"."""
    algorithm = like.partition(":")[0]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{found.hexdigest()}"


def _place(part: Path, target: Path, name: str) -> None:
    """A data set of one file: a folder with it, under its own name."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    work.chmod(0o755)  # mkdtemp made it private
    part.replace(work / name)
    work.replace(target)


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
