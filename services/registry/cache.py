"""Local copies of the versions of a registry that is elsewhere.

    <id>-<digest>/         files of one version, each placed by one rename after its digest
                           was found right; the digest is the manifest's
    <id>-<digest>.lock     locked, shared, by every process that holds the version open
    .staging-*             exports on their way out

Several processes may share a cache. Nothing in it is needed: what is missing or damaged is
fetched again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from services.errors import Fault
from services.registry.contract import MANIFEST, PublishedVersion, VersionManifest
from services.registry.sealing import new_staging, random_name
from services.runtime.files import write_atomically

Fetch = Callable[[str, Path], None]
"""Writes a file of the version to a path. Raises FileNotFoundError, RegistryUnavailable."""


class Lease:
    """While it lives, no process removes the copy."""

    def __init__(self, path: Path) -> None:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        weakref.finalize(self, os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_SH)
        os.utime(handle)


class CachedVersion(PublishedVersion):
    """A version whose files are fetched when they are used first."""

    def __init__(self, root: Path, manifest: VersionManifest, fetch: Fetch, lease: Lease) -> None:
        super().__init__(root, manifest)
        self._fetch, self._lease = fetch, lease

    def _verify(self, name: str) -> None:
        if not self.has(name):
            raise self.corrupt(name, "not in the manifest")
        try:
            super()._verify(name)
        except Fault:
            self._download(name)

    def _download(self, name: str) -> None:
        target, entry = self.root / name, self.manifest.files[name]
        arriving = self.root / f".arriving-{random_name()}"
        try:
            self._fetch(name, arriving)
            with arriving.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if (arriving.stat().st_size, digest) != (entry.bytes, entry.sha256):
                raise self.corrupt(name, "it arrived with another size or digest")
            arriving.chmod(0o444)
            target.parent.mkdir(parents=True, exist_ok=True)
            arriving.replace(target)
        except FileNotFoundError as error:
            raise self.corrupt(name, "missing in the registry") from error
        finally:
            arriving.unlink(missing_ok=True)


class VersionCache:
    """A folder of copies. limit: bytes it may hold; copies in use are kept even beyond it."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path:
        """Where `staging` makes its folders."""
        return self._folder

    def staging(self) -> Path:
        """A new empty folder for an export."""
        return new_staging(self._folder)

    def open(self, manifest: VersionManifest, text: str, fetch: Fetch) -> CachedVersion:
        """The local copy of a version, empty at first. text: its manifest.json."""
        key = _key(manifest.version, text)
        lease = Lease(self._folder / f"{key}.lock")
        self._make_room(key, sum(entry.bytes for entry in manifest.files.values()))
        root = self._folder / key
        root.mkdir(exist_ok=True)
        for left in root.glob(".arriving-*"):
            _remove_if_old(left)
        if _read(root / MANIFEST) != text:
            write_atomically(root / MANIFEST, text)
        return CachedVersion(root, manifest, fetch, lease)

    def adopt(self, staging: Path, version: str, text: str) -> None:
        """What was just published from here need not be fetched."""
        with contextlib.suppress(OSError):
            staging.rename(self._folder / _key(version, text))
        shutil.rmtree(staging, ignore_errors=True)

    def _make_room(self, coming: str, size: int) -> None:
        """Removes the copies opened longest ago, but none that a process holds open."""
        copies = [path for path in self._folder.iterdir() if path.name[:1] != "." and path.is_dir()]
        sizes = {path: _bytes_of(path) for path in copies if path.name != coming}
        total = size + sum(sizes.values())
        for path in sorted(sizes, key=self._opened_at):
            if total <= self._limit:
                return
            if self._remove(path):
                total -= sizes[path]

    def _opened_at(self, path: Path) -> float:
        try:
            return path.with_name(f"{path.name}.lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _remove(self, path: Path) -> bool:
        # The lock's file stays: another process may be waiting for it.
        with path.with_name(f"{path.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            gone = self._folder / f".removed-{random_name()}"
            with contextlib.suppress(FileNotFoundError):
                path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True


def _key(version: str, text: str) -> str:
    return f"{version}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _remove_if_old(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink()
