"""A registry in an object store, or anything else that fsspec reaches by a URL.

    versions/<id>/manifest.json     written last, removed first: a version exists iff it does
    versions/<id>/<digest>/...      its files; the digest is that of the manifest's file list
    labels/<name>                   where a label points, see `labels`

An upload that was cut off, or a second publisher of the same id with other content, never
touches the files that a manifest names. Needed of the store: an object appears whole. Where
it can also refuse to replace one (S3, Google and Azure can), the first publisher of an id
wins, always; elsewhere nearly always.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from services.errors import Fault, Reason
from services.registry.cache import VersionCache
from services.registry.contract import (
    MANIFEST,
    PublishedVersion,
    RegistryError,
    RegistryUnavailable,
    VersionManifest,
    is_label,
    is_version_id,
    required_files,
)
from services.registry.labels import LabelledRegistry
from services.registry.sealing import ABANDONED_SECONDS, own_staging, read_draft, seal

_Sizes = dict[str, int]
"""File -> bytes, of what lies below versions/<id>/."""


class RemoteRegistry(LabelledRegistry):
    """Keeps `contract.Registry` below `root` of a file system, with copies in `cache`.

    location: for messages. `fs` must not remember listings: others publish too.
    """

    def __init__(
        self, location: str, fs: AbstractFileSystem, root: str, cache: VersionCache
    ) -> None:
        self.location = location
        self._fs, self._root, self._cache = fs, root.rstrip("/"), cache

    def check(self) -> None:
        """Raises RegistryError unless something was published here."""
        if not self._names("versions") and not self._names("labels"):
            raise RegistryError(
                f"there is no registry at {self.location}: check the address, or publish a "
                "version first"
            )

    def staging(self) -> Path:
        """A local folder in the cache. Removes what a day ago began to arrive here and never
        became a version."""
        self._remove_abandoned()
        return self._cache.staging()

    def publish(self, staging: Path) -> str:
        """Raises RegistryError if the folder is incomplete or the version exists."""
        version = read_draft(staging).version
        if self.exists(version):
            raise self._exists_already(version)
        staging = own_staging(staging, self._cache.folder)
        manifest = seal(staging)
        text = (staging / MANIFEST).read_text()
        prefix = _prefix(manifest)
        with self._asking():
            for name in manifest.files:
                self._fs.put_file(str(staging / name), self._path(version, prefix, name))
        arrived = self._sizes(version)
        for name, entry in manifest.files.items():
            if arrived.get(f"{prefix}/{name}") != entry.bytes:
                raise RegistryUnavailable(
                    f"version {version} could not be published in {self.location}: {name} did "
                    "not arrive whole. Publish again"
                )
        self._create_manifest(version, text)
        self._cache.adopt(staging, version, text)
        return version

    def versions(self) -> list[VersionManifest]:
        """Oldest first, without the damaged ones."""
        whole, _ = self._look()
        return sorted(whole, key=lambda manifest: (manifest.created, manifest.version))

    def damaged(self) -> dict[str, str]:
        """Version -> what is wrong with it."""
        return self._look()[1]

    def exists(self, version: str) -> bool:
        return is_version_id(version) and self._manifest_text(version) is not None

    def open(self, version: str) -> PublishedVersion:
        """Raises Fault UNKNOWN_VERSION or CORRUPT_VERSION, naming the file."""
        text = self._manifest_text(version) if is_version_id(version) else None
        if text is None:
            raise Fault(
                Reason.UNKNOWN_VERSION,
                version=version[:64],
                current_version=self.current() or "",
            )
        manifest = _checked(version, text, self._sizes(version))

        def fetch(name: str, target: Path) -> None:
            with self._asking():
                source = self._path(version, _prefix(manifest), name)
                self._fs.get_file(source, str(target))

        return self._cache.open(manifest, text, fetch)

    def remove(self, version: str) -> None:
        """Raises RegistryError if a label points at it or there is none."""
        self._check_unlabelled(version)
        if not self.exists(version):
            raise RegistryError(f"there is no version {version[:64]!r}")
        with self._asking():
            self._fs.rm_file(self._path(version, MANIFEST))
        self._remove_files(version)

    # Below: all that touches the store.

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, "versions", *parts))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, RegistryError):
            raise
        except Exception as error:
            # Every store brings exceptions of its own, and what fails is always the place.
            raise RegistryUnavailable(
                f"{self.location} cannot be used: {type(error).__name__}: {error}. Check the "
                "address, the credentials and the network"
            ) from error

    def _names(self, folder: str) -> list[str]:
        with self._asking(), contextlib.suppress(FileNotFoundError):
            found = self._fs.ls(f"{self._root}/{folder}", detail=False)
            return sorted({path.rstrip("/").rpartition("/")[2] for path in found})
        return []

    def _read(self, path: str) -> str | None:
        with self._asking(), contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            data: bytes = self._fs.cat_file(path)
            return data.decode()
        return None

    def _manifest_text(self, version: str) -> str | None:
        return self._read(self._path(version, MANIFEST))

    def _sizes(self, version: str) -> _Sizes:
        below = self._path(version)
        found: dict[str, dict[str, Any]] = {}
        with self._asking(), contextlib.suppress(FileNotFoundError):
            found = self._fs.find(below, detail=True)
        mark = f"/{below.strip('/')}/"
        return {f"/{path}".rpartition(mark)[2]: info["size"] for path, info in found.items()}

    def _look(self) -> tuple[list[VersionManifest], dict[str, str]]:
        whole, damaged = [], {}
        for version in filter(is_version_id, self._names("versions")):
            text = self._manifest_text(version)
            if text is None:
                # Being published, or being removed.
                continue
            try:
                whole.append(_checked(version, text, self._sizes(version)))
            except Fault as fault:
                damaged[version] = f"{fault.text} ({fault.detail})"
        return whole, damaged

    def _create_manifest(self, version: str, text: str) -> None:
        """The moment in which the version exists. Raises RegistryError if another one does."""
        path = self._path(version, MANIFEST)
        try:
            with self._asking():
                self._fs.pipe_file(path, text.encode(), mode="create")
        except RegistryUnavailable as error:
            if isinstance(error.__cause__, TypeError | NotImplementedError):
                with self._asking():
                    self._fs.pipe_file(path, text.encode())
            elif self._manifest_text(version) is None:
                raise
        # An answer that got lost and a refusal look alike: what is there now tells.
        if self._manifest_text(version) != text:
            raise self._exists_already(version)

    def _exists_already(self, version: str) -> RegistryError:
        return RegistryError(
            f"version {version} exists already: versions never change, publish a new one"
        )

    def _remove_files(self, version: str) -> None:
        with self._asking(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(version), recursive=True)

    def _remove_abandoned(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        for version in filter(is_version_id, self._names("versions")):
            if self._manifest_text(version) is not None:
                continue
            with self._asking(), contextlib.suppress(FileNotFoundError, NotImplementedError):
                times = [self._fs.modified(path) for path in self._fs.find(self._path(version))]
                if times and (now - max(times)).total_seconds() > ABANDONED_SECONDS:
                    self._remove_files(version)

    def _read_label(self, name: str) -> str | None:
        return self._read(f"{self._root}/labels/{name}")

    def _write_label(self, name: str, text: str) -> None:
        with self._asking():
            self._fs.pipe_file(f"{self._root}/labels/{name}", text.encode())

    def _remove_label(self, name: str) -> None:
        with self._asking(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/labels/{name}")

    def _label_names(self) -> list[str]:
        return [name for name in self._names("labels") if is_label(name)]


def _prefix(manifest: VersionManifest) -> str:
    """The folder of a version's files: another one for other files."""
    lines = (f"{name} {entry.sha256}\n" for name, entry in sorted(manifest.files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _checked(version: str, text: str, sizes: _Sizes) -> VersionManifest:
    """The manifest. Raises Fault CORRUPT_VERSION if it or a file is not as it must be."""

    def corrupt(name: str, detail: str) -> Fault:
        return Fault(Reason.CORRUPT_VERSION, version=version, file=name, detail=detail)

    try:
        manifest = VersionManifest.from_json(text)
        if manifest.version != version:
            raise ValueError(f"it says it is version {manifest.version}")
    except ValueError as error:
        raise corrupt(MANIFEST, str(error)) from error
    for name in required_files(manifest):
        if name not in manifest.files:
            raise corrupt(name, "not in the manifest")
    for name, entry in manifest.files.items():
        if sizes.get(f"{_prefix(manifest)}/{name}") != entry.bytes:
            raise corrupt(name, "missing, or not of the manifest's size")
    return manifest
