"""From an export's folder to the files of a version: the same for every registry."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

from services.registry.contract import MANIFEST, RegistryError, VersionManifest, required_files
from services.runtime.files import sync_folder, write_atomically

_DRAFT = "version.json"
ABANDONED_SECONDS = 24 * 3600


def random_name() -> str:
    """For what must not meet another of its kind."""
    return secrets.token_hex(6)


def new_staging(parent: Path) -> Path:
    """A new empty folder for an export. It has to end with a `version.json`: a manifest
    without "files". Folders of processes that have died are removed."""
    remove_abandoned(parent)
    path = parent / f".staging-{socket.gethostname()}-{os.getpid()}-{random_name()}"
    path.mkdir(parents=True)
    return path


def own_staging(staging: Path, parent: Path) -> Path:
    """`staging` itself if it was made by `new_staging`, else a copy that may be changed."""
    if staging.parent == parent:
        return staging
    copy = new_staging(parent)
    shutil.copytree(staging, copy, dirs_exist_ok=True)
    return copy


def remove_abandoned(parent: Path) -> None:
    """Removes what dead processes left: folders that were being written or removed."""
    for path in parent.glob(".*") if parent.is_dir() else ():
        if path.is_dir() and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def read_draft(staging: Path) -> VersionManifest:
    """Raises RegistryError if the export did not end or files are missing."""
    try:
        draft = VersionManifest.from_json((staging / _DRAFT).read_text())
    except FileNotFoundError as error:
        raise RegistryError(f"{staging} has no {_DRAFT}: the export did not end") from error
    except ValueError as error:
        raise RegistryError(f"{staging / _DRAFT} is not usable: {error}") from error
    missing = [name for name in required_files(draft) if not (staging / name).is_file()]
    if missing:
        raise RegistryError(f"{staging} is incomplete: {', '.join(missing)} missing")
    return draft


def seal(staging: Path) -> VersionManifest:
    """Digests, manifest, and everything on disk for good. Raises RegistryError for a link."""
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
    text = json.dumps({**raw, "files": files}, indent=1) + "\n"
    write_atomically(staging / MANIFEST, text)
    (staging / _DRAFT).unlink()
    for folder in (*(path for path in staging.rglob("*") if path.is_dir()), staging):
        sync_folder(folder)
    return VersionManifest.from_json(text)


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
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    return False
