"""Uploads, downloads and removals that break off; caches that are damaged or full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import weakref

import pytest
from fsspec.implementations.local import LocalFileSystem

from services.errors import Fault, Reason
from services.registry.cache import VersionCache
from services.registry.contract import MAPPER, RegistryError, RegistryUnavailable
from services.registry.location import open_registry
from services.registry.remote import RemoteRegistry
from services.registry.settings import CacheSettings
from tests.support.versions import publish, write_staging


class Flaky(LocalFileSystem):
    """A store in a folder whose connection breaks at its `moment`-th change or download."""

    cachable = False

    def __init__(self, moment=0, kill=False):
        super().__init__(auto_mkdir=True)
        self.moment, self.kill, self.calls, self.fetched = moment, kill, 0, []

    def _step(self):
        self.calls += 1
        if self.calls == self.moment:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConnectionResetError("the connection broke")

    def put_file(self, *arguments, **options):
        self._step()
        return super().put_file(*arguments, **options)

    def pipe_file(self, *arguments, **options):
        self._step()
        return super().pipe_file(*arguments, **options)

    def rm_file(self, path):
        self._step()
        return super().rm_file(path)

    def rm(self, *arguments, **options):
        self._step()
        return super().rm(*arguments, **options)

    def get_file(self, source, target, **options):
        self.fetched.append(source.rpartition("/")[2])
        super().get_file(source, target, **options)
        try:
            self._step()
        except ConnectionResetError:
            os.truncate(target, 10)
            raise


def remote(tmp_path, fs=None, cache="cache", limit=1 << 30):
    place = VersionCache(tmp_path / cache, limit)
    return RemoteRegistry("store", fs or Flaky(), str(tmp_path / "store"), place)


def test_an_upload_that_breaks_off_publishes_nothing(tmp_path):
    publish(remote(tmp_path), "v1", seed=1)
    whole = Flaky()
    publish(remote(tmp_path, whole), "other", seed=3, label=None)
    for moment in range(1, whole.calls + 1):
        broken = remote(tmp_path, Flaky(moment))
        staging = broken.staging()
        write_staging(staging, "v2", seed=2)
        with pytest.raises(RegistryUnavailable, match="connection broke"):
            broken.publish(staging)
        reader = remote(tmp_path, cache="reader")
        assert [m.version for m in reader.versions()] == ["v1", "other"]
        assert reader.damaged() == {} and not reader.exists("v2")
    publish(remote(tmp_path), "v2", seed=2)
    remote(tmp_path, cache="reader").open("v2").verify()


KILLED = """
import sys
from pathlib import Path
from tests.unit.services.test_remote_registry import Flaky, remote
from tests.support.versions import publish
publish(remote(Path(sys.argv[1]), Flaky(int(sys.argv[2]), kill=True)), "v2", seed=2)
"""


@pytest.mark.slow
def test_a_killed_publisher_leaves_nothing_visible(tmp_path):
    publish(remote(tmp_path), "v1", seed=1)
    seen = set()
    for moment in (1, 3, 9, 10, 11, 12, 99):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(moment)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        reader = remote(tmp_path, cache="reader")
        found = [m.version for m in reader.versions()]
        assert found in (["v1"], ["v1", "v2"]) and reader.damaged() == {}
        for version in found:
            reader.open(version).verify()
        seen.add(len(found))
        if len(found) == 2:
            reader.label("stable", "v1")
            reader.remove("v2")
    assert seen == {1, 2}


def test_what_never_became_a_version_is_removed_after_a_day(tmp_path):
    broken = remote(tmp_path, Flaky(5))
    staging = broken.staging()
    write_staging(staging, "v2")
    with pytest.raises(RegistryUnavailable):
        broken.publish(staging)
    left = [path for path in (tmp_path / "store" / "versions" / "v2").rglob("*") if path.is_file()]
    assert left
    remote(tmp_path).staging()
    assert all(path.exists() for path in left), "it may be on its way"
    for path in left:
        os.utime(path, (time.time() - 90_000,) * 2)
    publish(remote(tmp_path), "v1")
    assert not any(path.exists() for path in left)
    remote(tmp_path, cache="reader").open("v1").verify()


def test_a_removal_that_breaks_off_is_a_removal(tmp_path):
    publish(remote(tmp_path), "v1", label=None)
    with pytest.raises(RegistryUnavailable):
        remote(tmp_path, Flaky(1)).remove("v1")
    remote(tmp_path, cache="reader").open("v1").verify()
    with pytest.raises(RegistryUnavailable):
        remote(tmp_path, Flaky(2)).remove("v1")
    reader = remote(tmp_path, cache="reader")
    assert reader.versions() == [] and reader.damaged() == {} and not reader.exists("v1")


def test_a_download_that_breaks_off_is_begun_again(tmp_path):
    publish(remote(tmp_path), "v1")
    opened = remote(tmp_path, Flaky(1), cache="reader").open("v1")
    with pytest.raises(RegistryUnavailable):
        opened.path(MAPPER)
    assert not (opened.root / MAPPER).exists() and not list(opened.root.glob(".arriving-*"))
    opened.verify()
    assert opened.path(MAPPER).stat().st_size == opened.manifest.files[MAPPER].bytes


def test_only_what_is_used_is_fetched_and_only_once(tmp_path):
    publish(remote(tmp_path), "v1")
    fs = Flaky()
    remote(tmp_path, fs, cache="reader").open("v1").path(MAPPER)
    assert fs.fetched == [MAPPER]
    again = Flaky()
    opened = remote(tmp_path, again, cache="reader").open("v1")
    opened.path(MAPPER)
    assert again.fetched == []
    opened.verify()
    assert sorted(again.fetched) == sorted(
        name.rpartition("/")[2] for name in opened.manifest.files if name != MAPPER
    )
    publisher = Flaky()
    remote(tmp_path, publisher).open("v1").verify()
    assert publisher.fetched == [], "who published has the files"


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_copy_is_fetched_again(tmp_path, how):
    publish(remote(tmp_path), "v1")
    path = remote(tmp_path, cache="reader").open("v1").path(MAPPER)
    whole = path.read_bytes()
    path.chmod(0o644)
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + (bytes([whole[-1] ^ 1]) if how == "flip" else b""))
    assert remote(tmp_path, cache="reader").open("v1").path(MAPPER).read_bytes() == whole


def test_damage_in_the_store_is_found_and_never_placed(tmp_path):
    publish(remote(tmp_path), "v1")
    (stored,) = (tmp_path / "store").rglob(MAPPER)
    whole = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    reader = remote(tmp_path, cache="reader")
    opened = reader.open("v1")
    for _ in range(2):
        with pytest.raises(Fault) as caught:
            opened.path(MAPPER)
        assert caught.value.reason is Reason.CORRUPT_VERSION and MAPPER in caught.value.text
        assert not (opened.root / MAPPER).exists()
    with pytest.raises(Fault):
        reader.label("canary", "v1")
    assert reader.current("canary") is None
    stored.unlink()
    with pytest.raises(Fault) as caught:
        reader.open("v1")
    assert MAPPER in caught.value.text
    assert MAPPER in reader.damaged()["v1"] and reader.versions() == []


def copies(tmp_path):
    return sorted(
        path.name.rpartition("-")[0] for path in (tmp_path / "reader").iterdir() if path.is_dir()
    )


def test_a_cache_is_bounded_and_keeps_what_is_in_use(tmp_path):
    publisher = remote(tmp_path)
    for seed in range(1, 6):
        publish(publisher, f"v{seed}", seed=seed)
    size = sum(entry.bytes for entry in publisher.open("v1").manifest.files.values())
    limit = int(size * 2.5)
    held = remote(tmp_path, cache="reader", limit=limit).open("v1")
    held.verify()
    for seed in range(2, 6):
        remote(tmp_path, cache="reader", limit=limit).open(f"v{seed}").verify()
    assert copies(tmp_path) == ["v1", "v5"], "v1 is in use, v5 came last"
    assert held.path(MAPPER).exists()
    gone = weakref.ref(held)
    del held
    assert gone() is None
    remote(tmp_path, cache="reader", limit=limit).open("v4").verify()
    assert copies(tmp_path) == ["v4", "v5"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense://x/y", "Protocol not known"),
        ("s3://", "names no place"),
        ("simplecache::s3://bucket/x", "chain"),
        ("memory://", "names no place"),
    ],
)
def test_urls_that_name_no_registry(url, says, tmp_path):
    with pytest.raises(RegistryError, match=says):
        open_registry(url, CacheSettings(tmp_path))


def test_a_cache_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="--registry-cache"):
        open_registry("memory://x", CacheSettings(tmp_path / "file"))


def test_credentials_are_not_shown(tmp_path):
    registry = open_registry("memory://user:secret@place/x", CacheSettings(tmp_path))
    assert "secret" not in registry.location
    with pytest.raises(RegistryError) as caught:
        registry.check()
    assert "secret" not in str(caught.value)


def test_a_store_that_is_away_is_told(tmp_path):
    class Away(Flaky):
        def cat_file(self, *_arguments, **_options):
            raise PermissionError("Access Denied")

    registry = remote(tmp_path, Away())
    for ask in (registry.current, lambda: registry.open("v1"), lambda: registry.exists("v1")):
        with pytest.raises(RegistryUnavailable, match=r"Access Denied.*Check the address"):
            ask()
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
