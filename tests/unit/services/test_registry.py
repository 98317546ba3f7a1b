"""A folder as a registry: what is damaged is found and named, whoever dies leaves it whole.

What all registries promise is in tests/contract/services/test_registries.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from services.errors import Fault, Reason
from services.registry.contract import RegistryError, RegistryUnavailable
from services.registry.files import FileRegistry
from tests.support.versions import SHARDS, publish, write_staging


@pytest.fixture
def registry(tmp_path):
    return FileRegistry(tmp_path / "registry")


def test_publish_open_and_label(registry):
    publish(registry, "v1", seed=1)
    publish(registry, "v2", seed=2, label="canary")
    assert [m.version for m in registry.versions()] == ["v1", "v2"]
    assert registry.labels() == {"canary": "v2", "stable": "v1"}
    opened = registry.open("v1")
    opened.verify()
    assert opened.manifest.items == 60
    assert opened.manifest.shards == SHARDS
    assert opened.manifest.metrics == {"ndcg@10": 0.1}
    assert not opened.has("version.json")
    registry.label("stable", "v2")
    assert registry.current() == "v2"
    assert registry.current("nobody") is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": "../../outside"},
        {"version": ".hidden"},
        {"version": ""},
        {"format": "other/1"},
        {"backbone": {}},
        {"backbone": None},
        {"items": 0},
        {"shards": "many"},
    ],
)
def test_a_bad_manifest_is_refused(registry, change):
    staging = registry.staging()
    write_staging(staging, "v1")
    raw = json.loads((staging / "version.json").read_text())
    (staging / "version.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(RegistryError, match=r"version\.json"):
        registry.publish(staging)
    assert registry.versions() == []


def files_of(registry, version):
    root = registry.root / "versions" / version
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def damage(path, how):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_every_damaged_file_is_named(registry, how):
    publish(registry, "v1")
    for name in files_of(registry, "v1"):
        if name == "manifest.json":
            continue
        copy = FileRegistry(registry.root.with_name("copy"))
        shutil.rmtree(copy.root, ignore_errors=True)
        shutil.copytree(registry.root, copy.root)
        damage(copy.root / "versions" / "v1" / name, how)
        with pytest.raises(Fault) as caught:
            copy.open("v1").verify()
        assert caught.value.reason is Reason.CORRUPT_VERSION
        assert name in caught.value.text
        with pytest.raises(Fault):
            copy.label("canary", "v1")
        assert copy.current("canary") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "forward-ofa-version/1"}'])
def test_a_damaged_manifest_hides_one_version_only(registry, text):
    publish(registry, "v1", label=None)
    publish(registry, "v2")
    manifest = registry.root / "versions" / "v1" / "manifest.json"
    manifest.write_text(text)
    with pytest.raises(Fault) as caught:
        registry.open("v1")
    assert caught.value.reason is Reason.CORRUPT_VERSION
    assert "manifest.json" in caught.value.text
    assert [m.version for m in registry.versions()] == ["v2"]
    assert list(registry.damaged()) == ["v1"] and "manifest.json" in registry.damaged()["v1"]


KILLED = """
import os, signal, sys
from pathlib import Path
from services.registry.files import FileRegistry
from tests.support.versions import write_staging
registry, moment = FileRegistry(Path(sys.argv[1])), int(sys.argv[2])
staging = registry.staging()
write_staging(staging, "v2", seed=2)
calls = 0
def dying(name, real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)
for name in ("fsync", "rename", "replace", "unlink", "chmod"):
    dying(name, getattr(os, name))
registry.publish(staging)
print("published after", calls)
"""


@pytest.mark.parametrize("place", ["", "labels"])
def test_a_file_in_place_of_a_folder_is_not_a_registry_without_labels(tmp_path, place):
    root = tmp_path / "registry"
    if place:
        root.mkdir()
    (root / place).write_text("a file")
    with pytest.raises(RegistryUnavailable, match="no registry"):
        FileRegistry(root).current()


@pytest.mark.slow
def test_killed_at_any_moment_leaves_no_half_version(registry):
    """The process dies at its first, third, .. system call that changes the disk."""
    publish(registry, "v1")
    seen = set()
    for moment in (1, 5, 9, 13, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 99):
        command = [sys.executable, "-c", KILLED, str(registry.root), str(moment)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        found = [m.version for m in registry.versions()]
        assert found in (["v1"], ["v1", "v2"])
        seen.add((done.returncode, len(found)))
        for manifest in registry.versions():
            registry.open(manifest.version).verify()
        if len(found) == 2:
            registry.remove("v2")
    assert (-signal.SIGKILL, 1) in seen
    assert (0, 2) in seen
    registry.staging()
    left = [path.name for path in (registry.root / "versions").glob(".staging-*")]
    assert len(left) == 1, "folders of dead processes are removed, the new one is not"


def test_a_living_process_keeps_its_staging_folder(registry):
    mine = registry.staging()
    other = registry.root / "versions" / f".staging-{socket.gethostname()}-{os.getppid()}-abc"
    other.mkdir()
    registry.staging()
    assert mine.exists()
    assert other.exists()
