"""One suite against every registry: a folder, memory, and an object store that speaks S3."""

from __future__ import annotations

import shutil
import threading
import uuid

import pytest

from services.errors import Fault, Reason
from services.registry.contract import Pointing, RegistryError
from services.registry.location import open_registry
from services.registry.settings import CacheSettings
from tests.support.s3_server import S3Server
from tests.support.versions import SHARDS, publish, write_staging


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["folder", "file url", "memory", "s3"])
def machine(request, tmp_path, monkeypatch):
    """machine("a") -> the same registry, as machine "a" with a cache of its own sees it."""
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        where = server.bucket(f"b-{uuid.uuid4().hex}") + "/some/prefix"
    elif request.param == "memory":
        where = f"memory://registry-{uuid.uuid4().hex}"
    else:
        folder = tmp_path / "registry"
        folder.mkdir()
        where = folder if request.param == "folder" else f"file://{folder}"

    def open_(name: str = "a"):
        return open_registry(where, CacheSettings(tmp_path / f"cache-{name}"))

    return open_


def test_what_one_machine_publishes_another_one_reads(machine):
    here, there = machine("a"), machine("b")
    assert there.versions() == [] and there.labels() == {} and there.current() is None
    publish(here, "v1", seed=1)
    publish(here, "v2", seed=2, label="canary")
    assert [m.version for m in there.versions()] == ["v1", "v2"]
    assert there.labels() == {"canary": "v2", "stable": "v1"}
    opened = there.open("v1")
    opened.verify()
    assert (opened.manifest.items, opened.manifest.shards) == (60, SHARDS)
    assert not opened.has("version.json") and there.exists("v1") and not there.exists("v3")
    same = here.open("v1")
    for name in opened.manifest.files:
        assert opened.path(name).read_bytes() == same.path(name).read_bytes()
    assert there.damaged() == {}
    there.check()


def test_no_registry_is_told(machine, tmp_path):
    shutil.rmtree(tmp_path / "registry", ignore_errors=True)
    with pytest.raises(RegistryError, match="there is no registry"):
        machine().check()


def test_a_staging_folder_elsewhere_is_copied(machine, tmp_path):
    write_staging(tmp_path / "export", "v1")
    machine().publish(tmp_path / "export")
    machine("b").open("v1").verify()
    assert (tmp_path / "export" / "version.json").exists()


def test_versions_never_change(machine):
    registry = machine()
    publish(registry, "v1", seed=1)
    before = registry.open("v1").manifest
    for other in (registry, machine("b")):
        staging = other.staging()
        write_staging(staging, "v1", seed=2)
        with pytest.raises(RegistryError, match="exists already"):
            other.publish(staging)
    assert machine("c").open("v1").manifest == before
    machine("c").open("v1").verify()


def test_two_publishers_of_one_id(machine):
    """One of them wins, and what it published is whole."""
    registries = [machine(str(n)) for n in range(4)]
    stagings = [registry.staging() for registry in registries]
    tinies = [write_staging(s, "v1", seed=n) for n, s in enumerate(stagings)]
    outcomes: dict[int, str] = {}
    barrier = threading.Barrier(len(registries))

    def go(n):
        barrier.wait()
        try:
            outcomes[n] = registries[n].publish(stagings[n])
        except RegistryError as error:
            outcomes[n] = str(error)

    threads = [threading.Thread(target=go, args=(n,)) for n in range(len(registries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [n for n, outcome in outcomes.items() if outcome == "v1"]
    assert len(winners) == 1, outcomes
    opened = machine("reader").open("v1")
    opened.verify()
    assert opened.manifest.created == f"2026-01-01T00:00:{winners[0]:02d}+00:00"
    assert tinies[winners[0]].items.tobytes() in opened.path("items.safetensors").read_bytes()


@pytest.mark.parametrize(
    "missing", ["mapper.safetensors", "bundle/items-0002.safetensors", "version.json"]
)
def test_an_incomplete_export_is_refused(machine, missing):
    registry = machine()
    staging = registry.staging()
    write_staging(staging, "v1")
    (staging / missing).unlink()
    with pytest.raises(RegistryError, match=missing):
        registry.publish(staging)
    assert machine("b").versions() == []


def test_links_are_refused(machine):
    registry = machine()
    staging = registry.staging()
    write_staging(staging, "v1")
    (staging / "extra").symlink_to("/etc/hostname")
    with pytest.raises(RegistryError, match="link"):
        registry.publish(staging)
    assert machine("b").versions() == []


@pytest.mark.parametrize("version", ["", ".", "..", "../v1", "v1/..", "/etc", "v1\n", "nope"])
def test_strange_ids_are_unknown_versions(machine, version):
    registry = machine()
    publish(registry, "v1")
    with pytest.raises(Fault) as caught:
        registry.open(version)
    assert caught.value.reason is Reason.UNKNOWN_VERSION
    assert caught.value.current_version == "v1"
    with pytest.raises((RegistryError, Fault)):
        registry.label("stable", version)
    with pytest.raises(RegistryError):
        registry.remove(version)
    assert registry.current() == "v1"


def test_a_canary_has_a_share_that_all_see(machine):
    registry = machine()
    publish(registry, "v1", seed=1)
    publish(registry, "v2", seed=2, label=None)
    registry.label("canary", "v2", 2.5)
    label = machine("b").pointer("canary")
    assert label is not None and (label.version, label.percent) == ("v2", 2.5)
    registry.label("canary", "v2", 50)
    label = machine("b").pointer("canary")
    assert label is not None and (label.percent, label.before) == (50, ())
    with pytest.raises(RegistryError, match="share"):
        registry.label("canary", "v2", 101)
    with pytest.raises(RegistryError, match="canary"):
        registry.label("stable", "v2", 5)
    registry.unlabel("canary")
    assert machine("b").pointer("canary") is None and machine("b").labels() == {"stable": "v1"}
    with pytest.raises(RegistryError, match="there is no label 'canary'"):
        registry.unlabel("canary")
    with pytest.raises(RegistryError, match="follow stable"):
        registry.unlabel("stable")


def test_roll_back_needs_no_argument(machine):
    registry = machine()
    for seed in (1, 2, 3, 4):
        publish(registry, f"v{seed}", seed=seed)
    label = machine("b").pointer("stable")
    assert label is not None
    assert label.before == (Pointing("v3"), Pointing("v2"), Pointing("v1"))
    assert machine("b").rollback().version == "v3"
    registry.remove("v2")
    assert registry.rollback().version == "v1"
    with pytest.raises(RegistryError, match="no usable version before v1"):
        registry.rollback()
    with pytest.raises(RegistryError, match="there is no label 'canary'"):
        registry.rollback("canary")
    assert registry.current() == "v1"


def test_going_back_by_hand_is_going_back(machine):
    registry = machine()
    for seed in (1, 2, 3):
        publish(registry, f"v{seed}", seed=seed)
    registry.label("stable", "v2")
    assert registry.rollback().version == "v1", "and not v3, which was left"


def test_a_label_that_is_rubbish_is_none(machine):
    registry = machine()
    publish(registry, "v1", seed=1)
    publish(registry, "v2", seed=2, label="canary")
    for text in ("", "../v2\n", "v2 nan\n", "v2 500\n", "v2\n?\n", "v2 5 6\n"):
        registry._write_label("canary", text)
        assert registry.pointer("canary") is None and registry.labels() == {"stable": "v1"}
    registry._write_label("canary", "v2")
    assert registry.current("canary") == "v2"


def test_remove(machine):
    registry = machine()
    publish(registry, "v1", seed=1, label=None)
    publish(registry, "v2", seed=2)
    with pytest.raises(RegistryError, match="stable"):
        registry.remove("v2")
    registry.remove("v1")
    for each in (registry, machine("b")):
        assert [m.version for m in each.versions()] == ["v2"] and not each.exists("v1")
        with pytest.raises(Fault) as caught:
            each.open("v1")
        assert caught.value.reason is Reason.UNKNOWN_VERSION
    # The id is free again, and no cache mixes old and new files up.
    publish(registry, "v1", seed=5, label=None)
    machine("b").open("v1").verify()
    registry.open("v1").verify()
