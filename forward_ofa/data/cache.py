"""Prepared data sets on disk, so that the same log with the same rules is read once.

    CACHE/prepared/KEY/            one data set: raw arrays, catalogue.json, manifest.json
    CACHE/prepared/digests.json    SHA-256 of log files, by path, size, inode and times of change
    CACHE/prepared/.work-*/        a log that is being sorted; gone when it is done

KEY is a hash of the content of the log's files, the columns, the filter, the split and the version
of this format and of how logs are read: a changed log is another entry, a moved one the same. A
folder appears by one rename, complete and synced. It is checked when it is opened (the fingerprint
over all sequences and ids, which a run needs anyway, and digests of the rest); one that does not
match is made anew. The entries that were used last are kept, `KEPT` of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from forward_ofa.data.columns import ColumnNames
from forward_ofa.data.filtering import FilterChoice, FilterConfig
from forward_ofa.data.folders import LogFiles, find_log
from forward_ofa.data.log import DataError
from forward_ofa.data.preparation import prepare
from forward_ofa.data.readers import log_name, read_log
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.data.splitting import Split, SplitConfig
from forward_ofa.data.titles import title_files
from forward_ofa.data.workspace import IdTable, Workspace, open_array
from forward_ofa.locks import locked

FORMAT = "forward-ofa-prepared/3"
KEPT = 8
_REMEMBERED = 256
_FITS_MEMORY = 1 << 28  # bytes of log files; such a log is used without a cache if it must be
_ENDS = "ends.int32"


def open_prepared(
    path: Path, cache_dir: Path, columns: ColumnNames, choice: FilterChoice, split: SplitConfig
) -> SequenceDataset:
    """The log at a path, filtered and split: from the cache, or read and put there.

    A log of up to 256 MB is also used where the cache cannot be written.
    Raises DataError for a log that cannot be used, a disk that is full, or a log that changes
    while it is read.
    """
    found = find_log(path, columns)
    files = _files(found)
    home = cache_dir / "prepared"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not os.access(home, os.W_OK):
            raise PermissionError(errno.EACCES, "cannot be written")
        digests, signatures = _Digests(home / "digests.json").of(files)
        key = _key(digests, [found.kind, *found.notes], columns, choice, split)
        data = _through(home, key, _Source(path, columns, files, signatures), choice, split)
        _sweep(home, key)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and sum(_signature(file)[0] for file in files) <= _FITS_MEMORY:
            log = read_log(path, columns)
            return prepare(log, choice.resolve(log), split)
        advice = " It takes up to four times the log itself." if full else ""
        raise DataError(
            f"{cache_dir}: cannot be written ({error.strerror or error}), and the log needs room "
            f"there to be sorted.{advice} Free some space, or choose another folder with --cache."
        ) from None
    return replace(data, name=log_name(path), source=found.describe())


def _files(found: LogFiles) -> list[Path]:
    """All files that a data set is made of."""
    return [*found.files, *title_files(found.files[0])]


@dataclass(frozen=True)
class _Source:
    """A log as it was when the digests of its files were taken; signatures: of before that."""

    path: Path
    columns: ColumnNames
    files: list[Path]
    signatures: list[list[int]]

    def check(self) -> None:
        """Raises DataError if it has changed since: what is read now would get another's key."""
        same = _files(find_log(self.path, self.columns)) == self.files
        if not same or [_signature(file) for file in self.files] != self.signatures:
            raise DataError(f"{self.path}: it changed while it was read. Run it again.")


def _through(
    home: Path, key: str, source: _Source, choice: FilterChoice, split: SplitConfig
) -> SequenceDataset:
    folder = home / key
    data = _opened(folder)
    if data is not None:
        return data
    with locked(home / f".{key}.lock", wait=True):
        data = _opened(folder)  # another process may have made it while we waited
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
            source.check()  # the wait may have been long
            with _work_folder(home) as work:
                log = read_log(source.path, source.columns, Workspace(work / "log"))
                made = prepare(log, choice.resolve(log), split, Workspace(work / "data"))
                source.check()
                _write(made, work / "data")
                (work / "data").replace(folder)
                _sync(home)
            data = _opened(folder)
    if data is None:
        raise DataError(f"{folder}: what was just written reads differently: check the disk.")
    return data


def _key(
    digests: list[str],
    found: list[str],
    columns: ColumnNames,
    choice: FilterChoice,
    split: SplitConfig,
) -> str:
    parts = [FORMAT, digests, found, asdict(columns), asdict(choice), asdict(split)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _write(data: SequenceDataset, folder: Path) -> None:
    """What `prepare` has left in memory, beside the arrays that it has written there."""
    (folder / "offsets.int64").write_bytes(data.offsets.astype("<i8").tobytes())
    ends = np.concatenate((data.train_ends, data.test_starts)).astype("<i4")
    (folder / _ENDS).write_bytes(ends.tobytes())
    catalogue = {"item_ids": data.item_ids, "titles": data.titles}
    (folder / "catalogue.json").write_text(json.dumps(catalogue))
    manifest = {
        "format": FORMAT,
        "fingerprint": data.fingerprint(),
        "sha256": {name: _sha256(folder / name) for name in (_ENDS, "catalogue.json")},
        "filter": asdict(data.filter),
        "split": asdict(data.split),
        "notes": data.notes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _opened(folder: Path) -> SequenceDataset | None:
    """The data set in a folder, or None if it is not there, not whole, or not what it was."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return None
        if any(_sha256(folder / name) != digest for name, digest in manifest["sha256"].items()):
            return None
        catalogue = json.loads((folder / "catalogue.json").read_text())
        ends = open_array(folder / _ENDS, "<i4")
        data = SequenceDataset(
            offsets=open_array(folder / "offsets.int64", "<i8"),
            items=open_array(folder / "items.int32", "<i4"),
            train_ends=ends[: len(ends) // 2],
            test_starts=ends[len(ends) // 2 :],
            user_ids=IdTable(
                open_array(folder / "users.offsets", "<i8"), open_array(folder / "users.text", "u1")
            ),
            item_ids=catalogue["item_ids"],
            titles=catalogue["titles"],
            filter=FilterConfig(**manifest["filter"]),
            split=Split(**manifest["split"]),
            name="",
            source="",
            notes=manifest["notes"],
        )
        if data.fingerprint() != manifest["fingerprint"]:
            return None
        os.utime(folder)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return data


class _Digests:
    """SHA-256 of files, remembered while size, inode and times of change stay as they are."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, files: list[Path]) -> tuple[list[str], list[list[int]]]:
        """The digests of these files, in order, and their signatures from before they were read.

        Raises OSError when what is remembered cannot be written, DataError when a file is gone.
        """
        known = self._read()
        digests, signatures = [], []
        for file in files:
            name, signature = str(file.resolve()), _signature(file)
            entry = known.pop(name, None)
            if not (isinstance(entry, list) and entry[:-1] == signature):
                entry = [*signature, _sha256_of_log(file)]
            known[name] = entry  # at the end: used last
            digests.append(str(entry[-1]))
            signatures.append(signature)
        kept = dict(list(known.items())[-max(_REMEMBERED, len(files)) :])
        handle, name = tempfile.mkstemp(prefix=".digests-", dir=self._path.parent)
        with os.fdopen(handle, "w") as written:
            json.dump(kept, written)
        Path(name).replace(self._path)
        return digests, signatures

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _signature(file: Path) -> list[int]:
    """Size, inode and times of change of a log's file. Raises DataError when it is gone."""
    try:
        found = file.stat()
    except OSError as error:
        raise _gone(file, error) from None
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _sha256_of_log(file: Path) -> str:
    try:
        return _sha256(file)
    except OSError as error:
        raise _gone(file, error) from None


def _gone(file: Path, error: OSError) -> DataError:
    return DataError(
        f"{file}: cannot be read: {error.strerror or error}. If it is being replaced, wait until "
        "that is done, then run it again."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _work_folder(home: Path) -> Iterator[Path]:
    """An empty folder, removed at the end; those that killed processes left are removed too."""
    for stale in home.glob(".work-*"):
        with suppress(OSError), locked(stale / "lock", wait=False) as left:  # or just going
            if left:
                shutil.rmtree(stale, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
    # It gets the name that others look for when it is locked: else one of them could take it
    # for one that was left.
    with locked(new / "lock", wait=True):
        work = new.rename(home / new.name.replace(".new-", ".work-"))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _sweep(home: Path, used: str) -> None:
    """Removes the data sets that were not used for longest. Who has one open keeps its arrays."""
    entries: Mapping[str, float] = {
        folder.name: folder.stat().st_mtime
        for folder in home.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.name != used
    }
    for name in sorted(entries, key=lambda name: -entries[name])[KEPT - 1 :]:
        shutil.rmtree(home / name, ignore_errors=True)
