"""Prepared data sets: found again, never half written, never of another log."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forward_ofa.data import (
    DataError,
    FilterChoice,
    FilterConfig,
    SplitConfig,
    cache,
    load,
    load_dataset,
    prepare,
)
from tests.support.logs import write_csv


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The logs that were really read."""
    found: list[Path] = []
    real = cache.read_log

    def counted(path, *rest):
        found.append(path)
        return real(path, *rest)

    monkeypatch.setattr(cache, "read_log", counted)
    return found


def entries(home: Path) -> list[Path]:
    return [p for p in (home / "prepared").iterdir() if p.is_dir()]


def test_the_second_time_it_is_not_read(tmp_path: Path, reads: list[Path]) -> None:
    log = write_csv(tmp_path / "log.csv", 40, 100)
    first = load_dataset(str(log), tmp_path / "c")
    again = load_dataset(str(log), tmp_path / "c")
    by_hand = prepare(load(str(log), tmp_path), first.filter)
    assert reads == [log]
    for data in (first, again):
        assert data.fingerprint() == by_hand.fingerprint()
        assert np.array_equal(data.train_ends, by_hand.train_ends)
        assert np.array_equal(data.test_starts, by_hand.test_starts)
        assert (data.name, data.source, data.notes) == ("log", by_hand.source, by_hand.notes)
        assert data.filter == by_hand.filter and data.split == by_hand.split
        assert data.user_ids == by_hand.user_ids and data.item_ids == by_hand.item_ids
    assert len(entries(tmp_path / "c")) == 1


def test_a_log_without_a_last_line_end_is_the_same_with_a_note(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", 40, 100)
    whole = load_dataset(str(log), tmp_path / "c")
    log.write_text(log.read_text().removesuffix("\n"))
    note = "the last line of the log has no line end: the file may be cut off"
    by_hand = prepare(load(str(log), tmp_path), whole.filter)
    for data in (*(load_dataset(str(log), tmp_path / "c") for _ in range(2)), by_hand):
        assert data.notes == [note, *whole.notes]
        assert data.fingerprint() == whole.fingerprint()


def test_what_changes_the_result_is_another_entry(tmp_path: Path, reads: list[Path]) -> None:
    log = write_csv(tmp_path / "log.csv", 40, 100)
    home = tmp_path / "c"
    whole = load_dataset(str(log), home)
    load_dataset(str(log), home, choice=FilterChoice(min_user=3))
    load_dataset(str(log), home, choice=FilterChoice(ties="hash"))
    by_time = load_dataset(str(log), home, split=SplitConfig("time"))
    assert by_time.split.by == "time" and by_time.fingerprint() != whole.fingerprint()
    assert load_dataset(str(log), home, split=SplitConfig("time")).split == by_time.split
    assert len(reads) == len(entries(home)) == 4
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-50]) + "\n")
    assert load_dataset(str(log), home).num_interactions < whole.num_interactions
    moved = log.rename(tmp_path / "moved.csv")
    assert load_dataset(str(moved), home).name == "moved"
    assert len(reads) == 5


def test_titles_beside_the_log_count(tmp_path: Path, reads: list[Path]) -> None:
    log = write_csv(tmp_path / "log.csv", 40, 100)
    assert load_dataset(str(log), tmp_path / "c").titles == {}
    item = load(str(log), tmp_path).item_ids[0]
    (tmp_path / "items.csv").write_text(f"item_id,title\n{item},First\n")
    for _ in range(2):
        titles = load_dataset(str(log), tmp_path / "c", choice=FilterChoice(0, 0)).titles
        assert titles == {item: "First"}
    assert len(reads) == 2


@pytest.mark.parametrize("name", ["items.int32", "ends.int32", "catalogue.json", "manifest.json",
                                  "users.text", "offsets.int64"])  # fmt: skip
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, name: str, how: str) -> None:
    log = write_csv(tmp_path / "log.csv", 20, 100)
    expected = load_dataset(str(log), tmp_path / "c").fingerprint()
    file = entries(tmp_path / "c")[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if how != "gone":
        file.write_bytes(content if how == "flip" else content[: len(content) // 2])
    data = load_dataset(str(log), tmp_path / "c")
    assert data.fingerprint() == expected and data.notes
    assert load_dataset(str(log), tmp_path / "c").train_ends.tolist() == data.train_ends.tolist()


def test_only_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT", 2)
    log = write_csv(tmp_path / "log.csv", 20, 100)
    opened = [
        load_dataset(str(log), tmp_path / "c", choice=FilterChoice(min_user=n)) for n in (1, 2, 3)
    ]
    assert len(entries(tmp_path / "c")) == 2
    assert opened[0].items.sum() > 0  # removed, but still readable by who has it open


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", 20, 100)
    home = tmp_path / "c" / "prepared"
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from forward_ofa.data import cache\n"
        "with cache._work_folder(Path(sys.argv[1])) as work:\n"
        "    (work / 'big').write_bytes(b'x' * 1000)\n"
        "    print('there', flush=True)\n"
        "    time.sleep(60)\n"
    )
    home.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"there\n"
    load_dataset(str(log), tmp_path / "c")
    assert len(list(home.glob(".work-*"))) == 1  # in use: left alone
    other.kill()
    other.wait()
    other.stdout.close()
    load_dataset(str(log), tmp_path / "c", choice=FilterChoice(min_user=3))
    assert list(home.glob(".work-*")) == []


def test_a_log_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_csv(tmp_path / "log.csv", 20, 100)
    real = cache.read_log

    def slow(path, *rest):
        found = real(path, *rest)
        with path.open("a") as file:
            file.write("1,2,3\n")
        return found

    monkeypatch.setattr(cache, "read_log", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        load_dataset(str(log), tmp_path / "c")
    assert entries(tmp_path / "c") == []


@pytest.mark.parametrize("how", ["rewritten", "another part"])
def test_a_log_that_changes_during_the_wait_is_not_kept_as_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "log").mkdir()
    log = write_csv(tmp_path / "log" / "part-1.csv", 20, 100)
    old = log.read_bytes()
    real = cache.locked

    def slow(path, **options):
        if path.parent.name == "prepared":  # the lock of an entry: another process has it
            if how == "rewritten":
                write_csv(log, 30, 100)
            else:
                write_csv(tmp_path / "log" / "part-2.csv", 30, 100)
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "locked", slow)
        with pytest.raises(DataError, match=r"changed while it was read\. Run it again"):
            load_dataset(str(tmp_path / "log"), tmp_path / "c")
    assert entries(tmp_path / "c") == []
    new = load_dataset(str(tmp_path / "log"), tmp_path / "c")
    log.write_bytes(old)
    (tmp_path / "log" / "part-2.csv").unlink(missing_ok=True)
    again = load_dataset(str(tmp_path / "log"), tmp_path / "c")
    assert again.fingerprint() != new.fingerprint()
    assert again.num_users == 20


def test_a_part_that_comes_while_the_log_is_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").mkdir()
    write_csv(tmp_path / "log" / "part-1.csv", 20, 100)
    real = cache.read_log

    def slow(path, *rest):
        write_csv(tmp_path / "log" / "part-2.csv", 30, 100)
        return real(path, *rest)

    monkeypatch.setattr(cache, "read_log", slow)
    with pytest.raises(DataError, match="changed while it was read"):
        load_dataset(str(tmp_path / "log"), tmp_path / "c")
    assert entries(tmp_path / "c") == []


@pytest.mark.parametrize("when", ["found", "digest", "read"])
def test_a_log_that_vanishes_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    log = write_csv(tmp_path / "log.csv", 20, 100)
    name = {"found": "find_log", "digest": "_signature", "read": "read_log"}[when]
    real = getattr(cache, name)

    def then_gone(*arguments):
        result = real(*arguments)
        log.unlink(missing_ok=True)
        return result

    monkeypatch.setattr(cache, name, then_gone)
    with pytest.raises(DataError, match=r"log\.csv: (cannot be read: )?[Nn]o such file"):
        load_dataset(str(log), tmp_path / "c")
    assert entries(tmp_path / "c") == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_csv(tmp_path / "log.csv", 20, 100)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_sync", full)
        with pytest.raises(DataError, match=r"No space left.*--cache"):
            load_dataset(str(log), tmp_path / "c")
    assert entries(tmp_path / "c") == []
    assert load_dataset(str(log), tmp_path / "c").num_users == 20


def test_a_small_log_does_not_need_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_csv(tmp_path / "log.csv", 20, 100)
    (tmp_path / "file").write_text("x")
    assert load_dataset(str(log), tmp_path / "file").num_users == 20
    monkeypatch.setattr(cache, "_FITS_MEMORY", 10)
    with pytest.raises(DataError, match="choose another folder with --cache"):
        load_dataset(str(log), tmp_path / "file")


def test_two_processes_prepare_once(tmp_path: Path) -> None:
    log = write_csv(tmp_path / "log.csv", 200, 300)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from forward_ofa.data import load_dataset\n"
        "print(load_dataset(sys.argv[1], Path(sys.argv[2])).fingerprint())\n"
    )
    command = [sys.executable, "-c", script, str(log), str(tmp_path / "c")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate()[0] for process in both}
    assert len(told) == 1 and len(told.pop()) == 65
    assert [process.returncode for process in both] == [0, 0]
    assert len(entries(tmp_path / "c")) == 1


def test_choices_are_explicit() -> None:
    with pytest.raises(ValueError):
        FilterChoice(ties="item")  # type: ignore[arg-type]
    assert FilterChoice(min_item=7)._over(FilterConfig()) == FilterConfig(min_item=7)


@pytest.mark.parametrize(
    ("path", "text"), [("", "path is empty"), ("~nobody-here/log", "Check the name after ~")]
)
def test_no_path_and_nobodys_home_are_refused(tmp_path: Path, path: str, text: str) -> None:
    for read in (load, load_dataset):
        with pytest.raises(DataError, match=text):
            read(path, tmp_path)
