"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replaces a file in one step and waits for the disk: readers see the old text or the new.

    mode: who may read it; everybody unless it says otherwise. Raises OSError, which names `path`;
    nothing is left behind then.
    """
    try:
        _write_beside(path, text, mode)
    except OSError as error:
        # Nobody knows the temporary file, and it is gone.
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


def _write_beside(path: Path, text: str, mode: int) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Waits until the disk has what was created, renamed or removed in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
