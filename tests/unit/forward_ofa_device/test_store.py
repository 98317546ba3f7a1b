from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forward_ofa_device.errors import CorruptFile, StorageError
from forward_ofa_device.history import History
from forward_ofa_device.store import StateStore, share_bundle, write_atomic


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    store = StateStore(tmp_path)
    yield store
    store.close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_blobs_come_back_and_replace_each_other(store: StateStore) -> None:
    assert store.read("v/1 ü", "network") is None
    store.write("v/1 ü", "network", b"one", {"n": 1})
    store.write("v/1 ü", "network", b"two", {"n": 2})
    stored = store.read("v/1 ü", "network")
    assert stored is not None and (stored.data, stored.info) == (b"two", {"n": 2})
    assert store.versions() == ["v/1 ü"] and store.names("v/1 ü") == ["network"]
    assert len(list(store.folder.rglob("*.blob"))) == 1


@pytest.mark.parametrize("version", ["..", ".", "", "../../x", "a/b"])
def test_no_version_leads_out_of_the_folder(store: StateStore, version: str) -> None:
    store.write(version, "bundle", b"data", {})
    assert store.read(version, "bundle") is not None
    (folder,) = (store.folder / "versions").iterdir()
    assert store.versions() == [version] and folder.name.startswith("v-")


@pytest.mark.parametrize("moment", ["blob", "pointer"])
def test_a_crash_while_replacing_leaves_the_old_one(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store.write("v1", "network", b"old", {"n": 1})
    real = os.fsync
    calls = {"blob": 0, "pointer": 2}[moment]

    def crash(file: int) -> None:
        nonlocal calls
        if calls == 0:
            raise OSError(28, "No space left on device")
        calls -= 1
        real(file)

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(StorageError, match="No space left"):
        store.write("v1", "network", b"new", {"n": 2})
    monkeypatch.undo()
    store.close()
    again = StateStore(tmp_path)
    stored = again.read("v1", "network")
    assert stored is not None and (stored.data, stored.info) == (b"old", {"n": 1})
    assert len(list(tmp_path.rglob("*.blob"))) == 1 and not list(tmp_path.rglob("*.tmp"))
    again.close()


def test_only_one_process_at_a_time(store: StateStore) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from forward_ofa_device.store import StateStore\n"
        "from forward_ofa_device.errors import StorageError\n"
        "try: StateStore(Path(sys.argv[1]))\n"
        "except StorageError as error: print(error); sys.exit(9)\n"
    )
    command = [sys.executable, "-c", code, str(store.folder)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 9 and "another state directory" in refused.stdout
    store.close()
    assert subprocess.run(command).returncode == 0


def test_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable directory"):
        StateStore(tmp_path / "file")


def test_only_its_user_can_look_into_a_folder_that_it_makes(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = StateStore(tmp_path / "apps" / "mine")
        store.write("v1", "bundle", b"data", {})
        share_bundle(store.folder, tmp_path / "shared")
        store.close()
    finally:
        os.umask(before)
    for made in (store.folder, tmp_path / "shared"):
        folders = [made, *(path for path in made.rglob("*") if path.is_dir())]
        assert len(folders) == 3
        assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in folders)


def test_a_download_is_a_blob_only_when_its_digest_is_right(store: StateStore) -> None:
    store.begin_partial("v1", "bundle", sha(b"abcdef"), 6)
    store.append_partial("v1", "bundle", b"abc")
    partial = store.partial("v1", "bundle")
    assert partial is not None and partial.size == 3 and store.partial_version("bundle") == "v1"
    assert store.read("v1", "bundle") is None and store.names("v1") == []
    store.append_partial("v1", "bundle", b"dEf")
    with pytest.raises(CorruptFile, match="from the start"):
        store.finish_partial("v1", "bundle")
    assert store.partial("v1", "bundle") is None and store.read("v1", "bundle") is None
    store.begin_partial("v1", "bundle", sha(b"abcdef"), 6)
    store.append_partial("v1", "bundle", b"abcdef")
    store.finish_partial("v1", "bundle")
    stored = store.read("v1", "bundle")
    assert stored is not None and stored.data == b"abcdef"
    assert not list(store.folder.rglob("*.part*"))


def test_a_partial_download_that_is_too_long_is_dropped(store: StateStore) -> None:
    store.begin_partial("v1", "bundle", sha(b"abc"), 3)
    store.append_partial("v1", "bundle", b"abcd")
    assert store.partial("v1", "bundle") is None


def test_sharing_gives_bundle_and_shards_and_nothing_personal(
    store: StateStore, tmp_path: Path
) -> None:
    for name in ("bundle", "items-0", "items-12", "network", "candidates", "known"):
        store.write("v1", name, name.encode(), {})
    store.write_json("current.json", {"version": "v1"})
    store.begin_partial("v1", "items-3", sha(b""), 9)
    target = tmp_path / "other"
    share_bundle(store.folder, target)
    other = StateStore(target)
    assert other.names("v1") == ["bundle", "items-0", "items-12"]
    other.write("v1", "bundle", b"changed", {})
    mine = store.read("v1", "bundle")
    assert mine is not None and mine.data == b"bundle", "a copy never changes its source"
    assert other.read_json("current.json") is None and other.partial("v1", "items-3") is None
    other.close()


def test_write_atomic_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old", sync=True)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "I/O error")))
    with pytest.raises(OSError):
        write_atomic(path, b"new", sync=True)
    assert path.read_bytes() == b"old"


# History


def test_history_is_bounded_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, limit=5)
    for n in range(40):
        history.add([f"i{n % 7}", 'tricky "\n\u2028ß'])
    assert len(history) == 5 and len(path.read_text().splitlines()) <= 12
    again = History(path, limit=5)
    assert again.items() == history.items() and again.seen() == frozenset(history.items())
    assert "i4" in again and "i0" not in again


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b'"c', ["a", "b"]),
        (b'"c"', ["a", "b"]),
        (b"\xff\xfe\n", ["a", "b"]),
        (b'{"x": 1}\n"c"\n', ["a", "b", "c"]),
        (b"\n\n", ["a", "b"]),
        (b"\0" * 50, ["a", "b"]),
    ],
)
def test_a_damaged_line_costs_itself(tmp_path: Path, tail: bytes, kept: list[str]) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'"a"\n"b"\n' + tail)
    history = History(path, limit=9)
    assert list(history.items()) == kept
    history.add(["d"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*kept, "d"]
    assert list(History(path, limit=9).items()) == [*kept, "d"]


def test_a_history_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        History(tmp_path, limit=9)


def test_a_full_disk_costs_the_touch_that_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, limit=2)
    history.add(["a"])
    with monkeypatch.context() as full:
        full.setattr(Path, "open", _torn_write)
        with pytest.raises(StorageError, match="No space left"):
            history.add(["b"])
        assert history.items() == ("a",)
    history.add(["c"])
    assert history.items() == History(path, limit=2).items() == ("a", "c")


def _torn_write(path: Path, *_: object, **__: object) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(handle, b'"b')
    os.close(handle)
    raise OSError(28, "No space left on device")


def test_a_compaction_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, limit=2)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        history.add("abcdefg")
        assert history.items() == ("f", "g") and len(path.read_text().splitlines()) == 7
    history.add("h")
    assert len(path.read_text().splitlines()) == 2
    assert History(path, limit=2).items() == ("g", "h")
