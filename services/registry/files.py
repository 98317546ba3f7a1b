"""A registry in a folder.

    versions/<id>/    a published version: never changes
    versions/.*       work in progress, invisible to readers
    labels/<name>     where a label points, see `labels`

Every change is one rename, so a crash at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from services.errors import Fault, Reason
from services.registry.contract import (
    MANIFEST,
    PublishedVersion,
    RegistryError,
    RegistryUnavailable,
    VersionManifest,
    is_version_id,
    required_files,
)
from services.registry.labels import LabelledRegistry
from services.registry.sealing import new_staging, own_staging, random_name, read_draft, seal
from services.runtime.files import sync_folder, write_atomically


class FileRegistry(LabelledRegistry):
    """Keeps `contract.Registry` in a folder of a local or shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)
        self._versions = root / "versions"
        self._labels = root / "labels"

    def check(self) -> None:
        """Raises RegistryError unless the folder is there."""
        if not self.root.is_dir():
            raise RegistryError(
                f"there is no registry in {self.root}: give --registry, or publish a version first"
            )

    def staging(self) -> Path:
        """Beside the versions, so that publishing is a rename."""
        return new_staging(self._versions)

    def publish(self, staging: Path) -> str:
        """Raises RegistryError if the folder is incomplete or the version exists."""
        version = read_draft(staging).version
        if self.exists(version):
            raise RegistryError(
                f"version {version} exists already: versions never change, publish a new one"
            )
        staging = own_staging(staging, self._versions)
        try:
            seal(staging)
            staging.rename(self._versions / version)
        except OSError as error:
            raise RegistryError(f"version {version} could not be published: {error}") from error
        sync_folder(self._versions)
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
        for name in required_files(manifest):
            if not opened.has(name):
                raise opened.corrupt(name, "not in the manifest")
        return opened

    def remove(self, version: str) -> None:
        """Raises RegistryError if a label points at it or there is none."""
        self._check_unlabelled(version)
        if not is_version_id(version) or not (self._versions / version).is_dir():
            raise RegistryError(f"there is no version {version[:64]!r}")
        # Renamed first, so that no reader ever sees half of it.
        gone = self._versions / f".removed-{random_name()}"
        (self._versions / version).rename(gone)
        sync_folder(self._versions)
        shutil.rmtree(gone)

    def _read_label(self, name: str) -> str | None:
        try:
            return (self._labels / name).read_text()
        except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
            return None
        except NotADirectoryError as error:
            # Not "no label": a gate that found no stable version would let everything through.
            raise RegistryUnavailable(
                f"{self.root} is no registry: there is a file where a folder should be ({error}). "
                "Move it away"
            ) from error

    def _write_label(self, name: str, text: str) -> None:
        self._labels.mkdir(parents=True, exist_ok=True)
        write_atomically(self._labels / name, text)

    def _remove_label(self, name: str) -> None:
        (self._labels / name).unlink(missing_ok=True)
        sync_folder(self._labels)

    def _label_names(self) -> list[str]:
        return [path.name for path in self._labels.iterdir()] if self._labels.is_dir() else []
