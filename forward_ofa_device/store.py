"""What a device keeps on disk, so that a crash or a bad sector costs a download and no more.

    state/
      lock                     one process at a time
      history.jsonl            see history.py
      current.json             which version the last good network is of
      retry.json               see policy.py
      versions/v-{version}/
        {name}.json            digest of the blob, and what else belongs to it
        {name}-{digest}.blob   bundle, items-{shard}, network, candidates, known
        {name}.part            a download that is not complete, with {name}.part.json

A blob's name holds its digest, so replacing the small JSON file is the swap: before it
the old pair is whole, after it the new one is. Digests are checked when written and when
read; what does not match is renamed to *.corrupt and counts as absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from forward_ofa_device.errors import CorruptFile, StorageError

log = logging.getLogger(__name__)
_SHAREABLE = ("bundle", "items-")


@dataclass(frozen=True)
class Stored:
    """A verified blob, and the JSON object that was stored with it."""

    data: bytes
    info: dict[str, Any]


@dataclass(frozen=True)
class Partial:
    """A download that is not complete: `size` of `total` bytes are there."""

    sha256: str
    total: int
    size: int


class StateStore:
    """One state directory, held by one process at a time. Raises StorageError throughout.

    sync: wait until the disk has what is written. Without it a loss of power may cost files
    (they are noticed and fetched again); a crash of the process costs nothing either way.
    """

    def __init__(self, folder: Path, *, sync: bool = True) -> None:
        self.folder = Path(folder)
        self.sync = sync
        with _storage_errors(self.folder):
            _private(self.folder)
            _private(self.folder / "versions")
            self._lock = _take_lock(self.folder / "lock")
            try:
                for version in self.versions():
                    self._sweep(version)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Lets another process have the directory. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Small JSON files

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A file of the top folder; None if it is absent or was damaged (then set aside)."""
        return _read_object(self.folder / name)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        with _storage_errors(self.folder):
            write_atomic(self.folder / name, json.dumps(value).encode(), sync=self.sync)

    # Blobs

    def versions(self) -> list[str]:
        """The versions of which there is something."""
        found = (path.name for path in (self.folder / "versions").glob("v-*"))
        return sorted(unquote(name.removeprefix("v-")) for name in found)

    def names(self, version: str) -> list[str]:
        """The blobs of a version."""
        found = (path.name for path in self._version(version).glob("*.json"))
        return sorted(n.removesuffix(".json") for n in found if not n.endswith(".part.json"))

    def write(self, version: str, name: str, data: bytes, info: Mapping[str, Any]) -> None:
        """Replaces a blob in one step."""
        digest = hashlib.sha256(data).hexdigest()
        with _storage_errors(self.folder):
            self._version(version).mkdir(exist_ok=True, mode=0o700)
            write_atomic(self._blob(version, name, digest), data, sync=self.sync)
            self._point(version, name, digest, info)

    def read(self, version: str, name: str) -> Stored | None:
        """A blob whose digest is right; None if it is absent or was damaged (then set aside)."""
        with _storage_errors(self.folder):
            record = _read_object(self._pointer(version, name))
            if record is None:
                return None
            digest, info = str(record.get("sha256")), record.get("info")
            blob = self._blob(version, name, digest)
            try:
                data = blob.read_bytes()
            except FileNotFoundError:
                data = b""
            if not isinstance(info, dict) or hashlib.sha256(data).hexdigest() != digest:
                self.set_aside(version, name)
                return None
            return Stored(data, info)

    def set_aside(self, version: str, name: str) -> None:
        """Renames a damaged blob to *.corrupt, for a look later; it counts as absent then."""
        log.warning("%s of version %s is damaged on disk: set aside", name, version)
        pointer = self._pointer(version, name)
        with _storage_errors(self.folder):
            for blob in self._version(version).glob(f"{name}-*.blob"):
                if self._blob_name(blob) == name:
                    blob.replace(blob.with_name(f"{name}.corrupt"))
            pointer.unlink(missing_ok=True)

    def keep_only(self, versions: set[str]) -> None:
        """Removes every other version."""
        with _storage_errors(self.folder):
            for version in set(self.versions()) - versions:
                shutil.rmtree(self._version(version))

    # Downloads

    def partial(self, version: str, name: str) -> Partial | None:
        """The incomplete download of a blob, if there is one."""
        part, note = self._part(version, name)
        record = _read_object(note)
        if record is None or not part.exists():
            return None
        size, total = part.stat().st_size, record.get("total")
        if not isinstance(total, int) or size > total:
            self.drop_partial(version, name)
            return None
        return Partial(str(record.get("sha256")), total, size)

    def partial_version(self, name: str) -> str:
        """A version of which a download of this blob was begun; "" if there is none."""
        return next((v for v in reversed(self.versions()) if self.partial(v, name)), "")

    def begin_partial(self, version: str, name: str, sha256: str, total: int) -> None:
        """Starts a download anew."""
        part, note = self._part(version, name)
        with _storage_errors(self.folder):
            self._version(version).mkdir(exist_ok=True, mode=0o700)
            note.unlink(missing_ok=True)
            part.write_bytes(b"")
            text = json.dumps({"sha256": sha256, "total": total})
            write_atomic(note, text.encode(), sync=self.sync)

    def append_partial(self, version: str, name: str, data: bytes) -> None:
        with _storage_errors(self.folder), self._part(version, name)[0].open("ab") as file:
            file.write(data)

    def finish_partial(self, version: str, name: str) -> None:
        """Makes a complete download the blob. Raises CorruptFile, and drops the download,
        if its digest is not the announced one."""
        partial = self.partial(version, name)
        part, note = self._part(version, name)
        with _storage_errors(self.folder):
            data = part.read_bytes()
            if partial is None or hashlib.sha256(data).hexdigest() != partial.sha256:
                self.drop_partial(version, name)
                raise CorruptFile(
                    f"{name} of version {version} arrived with another digest than announced; "
                    "it is fetched again from the start"
                )
            if self.sync:
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
            part.replace(self._blob(version, name, partial.sha256))
            self._point(version, name, partial.sha256, {})
            note.unlink(missing_ok=True)

    def drop_partial(self, version: str, name: str) -> None:
        with _storage_errors(self.folder):
            for path in self._part(version, name):
                path.unlink(missing_ok=True)

    # Paths

    def _version(self, version: str) -> Path:
        return self.folder / "versions" / f"v-{quote(version, safe='')}"

    def _pointer(self, version: str, name: str) -> Path:
        return self._version(version) / f"{name}.json"

    def _blob(self, version: str, name: str, digest: str) -> Path:
        # Quoted, since a damaged pointer may hold anything.
        return self._version(version) / f"{name}-{quote(digest[:16], safe='')}.blob"

    def _blob_name(self, blob: Path) -> str:
        return blob.name.rsplit("-", 1)[0]

    def _part(self, version: str, name: str) -> tuple[Path, Path]:
        folder = self._version(version)
        return folder / f"{name}.part", folder / f"{name}.part.json"

    def _point(self, version: str, name: str, digest: str, info: Mapping[str, Any]) -> None:
        record = {"sha256": digest, "info": dict(info)}
        write_atomic(self._pointer(version, name), json.dumps(record).encode(), sync=self.sync)
        current = self._blob(version, name, digest)
        for blob in self._version(version).glob(f"{name}-*.blob"):
            if blob != current and self._blob_name(blob) == name:
                blob.unlink()

    def _sweep(self, version: str) -> None:
        """Removes what a crash left: temporary files, and blobs that no pointer names."""
        folder = self._version(version)
        for path in folder.glob("*.tmp"):
            path.unlink()
        named = set()
        for name in self.names(version):
            record = _read_object(self._pointer(version, name)) or {}
            named.add(self._blob(version, name, str(record.get("sha256"))))
        for blob in folder.glob("*.blob"):
            if blob not in named:
                blob.unlink()


def share_bundle(source: Path, target: Path) -> None:
    """Gives a new state directory the bundle and item shards of another one, on disk.

    Files are hard-linked where the file system can: blobs are never changed in place. The
    source may be in use: what disappears meanwhile is left out, and fetched when needed.
    """
    for folder in (target, target / "versions"):
        _private(folder)
    for path in sorted((source / "versions").glob("v-*/*")):
        if not path.name.startswith(_SHAREABLE) or path.suffix not in (".blob", ".json"):
            continue
        copy = target / path.relative_to(source)
        _private(copy.parent)
        if copy.exists() or path.name.endswith(".part.json"):
            continue
        with contextlib.suppress(FileNotFoundError):
            try:
                os.link(path, copy)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(path, copy)


def write_atomic(path: Path, data: bytes, *, sync: bool) -> None:
    """The file is the old one or the new one, never a part of either, whatever happens.

    Whatever includes a loss of power with `sync`, which waits for the disk.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    temporary.replace(path)
    if not sync:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_object(path: Path) -> dict[str, Any] | None:
    with _storage_errors(path):
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            log.warning("%s is damaged: set aside", path)
            path.replace(path.with_name(path.name + ".corrupt"))
            return None
        return value


def _private(folder: Path) -> None:
    """Only the user who made it can look into it. One that is there keeps its mode."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _take_lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StorageError(
            f"{path.parent} is in use by another Device: close it, or use another state directory"
        ) from None
    return lock


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot use the state directory at {path}: {error.strerror or error}. "
            "It needs a writable directory with free space"
        ) from error
