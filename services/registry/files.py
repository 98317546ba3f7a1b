"""A registry in a folder.

    versions/<id>/    a published version: never changes
    versions/.*       work in progress, invisible to readers
    labels/<name>     the id that a label points at

Every change is one rename, so a crash at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path

from services.errors import Fault, Reason
from services.registry.contract import (
    MANIFEST,
    REQUIRED,
    RETRIEVAL_INDEX,
    PublishedVersion,
    RegistryError,
    VersionManifest,
    is_label,
    is_version_id,
    shard_file,
)

_DRAFT = "version.json"
_ABANDONED_SECONDS = 24 * 3600


class FileRegistry:
    """Keeps `contract.Registry` in a folder of a local or shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._versions = root / "versions"
        self._labels = root / "labels"

    def staging(self) -> Path:
        """A new empty folder beside the versions, for an export to write into.

        It has to end with a `version.json`: a manifest without "files". Folders of
        processes that have died are removed.
        """
        self._clean()
        path = self._versions / f".staging-{socket.gethostname()}-{os.getpid()}-{_random()}"
        path.mkdir(parents=True)
        return path

    def publish(self, staging: Path) -> str:
        """Raises RegistryError if the folder is incomplete or the version exists."""
        draft = _read_draft(staging)
        version = draft.version
        if self.exists(version):
            raise RegistryError(
                f"version {version} exists already: versions never change, publish a new one"
            )
        if staging.parent != self._versions:
            copy = self.staging()
            shutil.copytree(staging, copy, dirs_exist_ok=True)
            staging = copy
        try:
            _seal(staging, draft)
            staging.rename(self._versions / version)
        except OSError as error:
            raise RegistryError(f"version {version} could not be published: {error}") from error
        _sync_folder(self._versions)
        return version

    def versions(self) -> list[VersionManifest]:
        """Oldest first, without the damaged ones."""
        whole, _ = self._look()
        return sorted(whole, key=lambda manifest: (manifest.created, manifest.version))

    def damaged(self) -> dict[str, str]:
        """Version -> what is wrong with it."""
        return self._look()[1]

    def _look(self) -> tuple[list[VersionManifest], dict[str, str]]:
        whole, damaged = [], {}
        for path in self._versions.iterdir() if self._versions.is_dir() else ():
            if not is_version_id(path.name):
                continue
            try:
                whole.append(self.open(path.name).manifest)
            except Fault as fault:
                known = fault.reason is Reason.CORRUPT_VERSION
                damaged[path.name] = f"{fault.text} ({fault.detail})" if known else "no manifest"
        return whole, damaged

    def exists(self, version: str) -> bool:
        return is_version_id(version) and (self._versions / version / MANIFEST).is_file()

    def open(self, version: str) -> PublishedVersion:
        """Raises Fault UNKNOWN_VERSION or CORRUPT_VERSION, naming the file."""
        if not self.exists(version):
            raise Fault(
                Reason.UNKNOWN_VERSION,
                version=version[:64],
                current_version=self.current() or "",
            )
        root = self._versions / version
        try:
            manifest = VersionManifest.from_json((root / MANIFEST).read_text())
            if manifest.version != version:
                raise ValueError(f"it says it is version {manifest.version}")
        except (OSError, ValueError) as error:
            raise Fault(
                Reason.CORRUPT_VERSION, version=version, file=MANIFEST, detail=str(error)
            ) from error
        opened = PublishedVersion(root, manifest)
        for name, entry in manifest.files.items():
            path = root / name
            if not path.is_file() or path.stat().st_size != entry.bytes:
                raise opened.corrupt(name, "missing, or not of the manifest's size")
        for name in _required(manifest):
            if not opened.has(name):
                raise opened.corrupt(name, "not in the manifest")
        return opened

    def label(self, name: str, version: str) -> None:
        """Raises RegistryError for a bad name, and what `open` and `verify` raise."""
        if not is_label(name):
            raise RegistryError(f"{name!r} is no label: use lower-case letters, digits and -")
        self.open(version).verify()
        self._labels.mkdir(parents=True, exist_ok=True)
        _write_atomically(self._labels / name, version + "\n")

    def labels(self) -> dict[str, str]:
        """Label -> version. Files that are no labels are left out."""
        names = [path.name for path in self._labels.iterdir()] if self._labels.is_dir() else []
        found = ((name, self.current(name)) for name in sorted(names) if is_label(name))
        return {name: version for name, version in found if version is not None}

    def current(self, name: str = "stable") -> str | None:
        """Where a label points; None if there is no such label."""
        try:
            version = (self._labels / name).read_text().strip() if is_label(name) else ""
        except (OSError, UnicodeDecodeError):
            return None
        return version if is_version_id(version) else None

    def remove(self, version: str) -> None:
        """Raises RegistryError if a label points at it or there is none."""
        pointing = [name for name, target in self.labels().items() if target == version]
        if pointing:
            raise RegistryError(
                f"version {version} is labelled {', '.join(pointing)}: move the label first"
            )
        if not is_version_id(version) or not (self._versions / version).is_dir():
            raise RegistryError(f"there is no version {version[:64]!r}")
        # Renamed first, so that no reader ever sees half of it.
        gone = self._versions / f".removed-{_random()}"
        (self._versions / version).rename(gone)
        _sync_folder(self._versions)
        shutil.rmtree(gone)

    def _clean(self) -> None:
        for path in self._versions.glob(".*") if self._versions.is_dir() else ():
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _random() -> str:
    return secrets.token_hex(6)


def _is_abandoned(path: Path) -> bool:
    if path.name.startswith(".removed-"):
        return True
    host, _, rest = path.name.removeprefix(".staging-").rpartition("-")[0].rpartition("-")
    if host == socket.gethostname() and rest.isdecimal():
        try:
            os.kill(int(rest), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    return False


def _required(manifest: VersionManifest) -> list[str]:
    index = [RETRIEVAL_INDEX] if manifest.retrieval.is_approximate else []
    return [*REQUIRED, *index, *(shard_file(shard) for shard in range(manifest.shards))]


def _read_draft(staging: Path) -> VersionManifest:
    try:
        draft = VersionManifest.from_json((staging / _DRAFT).read_text())
    except FileNotFoundError as error:
        raise RegistryError(f"{staging} has no {_DRAFT}: the export did not end") from error
    except ValueError as error:
        raise RegistryError(f"{staging / _DRAFT} is not usable: {error}") from error
    missing = [name for name in _required(draft) if not (staging / name).is_file()]
    if missing:
        raise RegistryError(f"{staging} is incomplete: {', '.join(missing)} missing")
    return draft


def _seal(staging: Path, draft: VersionManifest) -> None:
    """Digests, manifest, and everything on disk for good."""
    files = {}
    for path in sorted(staging.rglob("*")):
        if path.is_symlink():
            raise RegistryError(f"{path} is a link: a version holds its own files")
        if path.is_file() and path.name != _DRAFT:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                os.fsync(stream.fileno())
            name = path.relative_to(staging).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": digest}
            path.chmod(0o444)
    raw = json.loads((staging / _DRAFT).read_text())
    _write_atomically(staging / MANIFEST, json.dumps({**raw, "files": files}, indent=1) + "\n")
    (staging / _DRAFT).unlink()
    for folder in (*(path for path in staging.rglob("*") if path.is_dir()), staging):
        _sync_folder(folder)


def _write_atomically(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
