"""Which versions are in memory, which one a session gets, and what goes again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import shutil
import time
import weakref
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forward_ofa_device.backbones.contract import BackboneConfig
from services.assembler.domain import Blueprint
from services.controller.served import ServedVersion
from services.errors import Fault, Reason
from services.mapper.domain import MappedVersion
from services.registry.contract import RegistryUnavailable
from services.registry.files import FileRegistry
from services.runtime.metrics import Metrics
from services.versions import Versions, VersionSettings, session_bucket
from tests.support.versions import publish


@pytest.fixture
def registry(tmp_path):
    registry = FileRegistry(tmp_path / "registry")
    registry.root.mkdir()
    return registry


@contextlib.asynccontextmanager
async def following(registry, load=Blueprint.load, metrics=None, rehearse=None, **settings):
    settings = {"poll_seconds": 0.02, **settings}
    labelled_only = settings.pop("labelled_only", False)
    versions = Versions(
        "controller",
        registry,
        load,
        VersionSettings(**settings),
        metrics or Metrics(),
        labelled_only=labelled_only,
        rehearse=rehearse,
    )
    await versions.start()
    try:
        yield versions
    finally:
        await versions.stop()


async def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


async def refusal(call):
    with pytest.raises(Fault) as caught:
        await call
    return caught.value


SESSIONS = [f"session-{number:06d}" for number in range(4000)]


def test_buckets_are_uniform_and_for_ever():
    buckets = sorted(map(session_bucket, SESSIONS))
    assert buckets[0] >= 0 and buckets[-1] < 100
    for percent in (1, 5, 25, 50, 90):
        share = sum(bucket < percent for bucket in buckets) / len(buckets)
        deviation = math.sqrt(percent / 100 * (1 - percent / 100) / len(buckets))
        assert abs(share - percent / 100) < 4 * deviation
    # Another number here would move running sessions between versions.
    assert session_bucket("session-0123456789") == pytest.approx(98.0003225, abs=1e-6)


@given(st.text(alphabet="abcXYZ019_-", min_size=8, max_size=64))
def test_a_growing_share_only_adds_sessions(session_id):
    shares = [session_bucket(session_id) < percent for percent in range(0, 101)]
    assert shares == sorted(shares) and not shares[0] and shares[100]


async def test_a_canary_gets_its_share_of_sessions(registry):
    publish(registry, "v1", seed=1)
    publish(registry, "v2", seed=2, label=None)
    metrics = Metrics()
    async with (
        following(registry, metrics=metrics) as one,
        following(registry, ServedVersion.load) as two,
    ):
        assert {one.current_for(session) for session in SESSIONS} == {"v1"}
        registry.label("canary", "v2", 20)
        await until(lambda: "v2" in one.loaded and "v2" in two.loaded)
        await until(lambda: len({one.current_for(s) for s in SESSIONS}) == 2)
        await until(lambda: len({two.current_for(s) for s in SESSIONS}) == 2)
        chosen = [one.current_for(session) for session in SESSIONS]
        assert chosen == [two.current_for(session) for session in SESSIONS], "all agree"
        assert chosen.count("v2") == sum(session_bucket(s) < 20 for s in SESSIONS)
        assert one.current == "v1" and one.current_for("") == "v1"
        sample = metrics.registry.get_sample_value
        labels = {"target": "controller", "version": "v2"}
        assert sample("forward_ofa_canary_percent", labels) == 20
        canary = SESSIONS[chosen.index("v2")]
        fault = await refusal(one.get("v9", canary))
        assert (fault.reason, fault.current_version) == (Reason.UNKNOWN_VERSION, "v2")
        fault = await refusal(one.get("v9", SESSIONS[chosen.index("v1")]))
        assert fault.current_version == "v1"
        # Promoted: every session is on it, and no session was ever moved back on the way.
        registry.label("stable", "v2")
        seen = set()
        while one.current != "v2":
            seen.add(one.current_for(canary))
            await asyncio.sleep(0.001)
        registry.unlabel("canary")
        assert seen <= {"v2"}
        assert {one.current_for(session) for session in SESSIONS} == {"v2"}
        await until(lambda: sample("forward_ofa_canary_percent", labels) is None)


async def test_a_canary_without_a_share_is_loaded_but_gets_no_session(registry):
    publish(registry, "v1", seed=1)
    publish(registry, "v2", seed=2, label="canary")
    async with following(registry) as versions:
        assert versions.loaded == ["v1", "v2"]
        assert {versions.current_for(session) for session in SESSIONS} == {"v1"}
    async with following(registry, canary="") as versions:
        assert versions.loaded == ["v1"]


async def test_a_canary_that_cannot_be_loaded_changes_nothing(registry):
    publish(registry, "v1", seed=1)
    publish(registry, "v2", seed=2, label=None)
    registry.label("canary", "v2", 100)
    path = registry.root / "versions" / "v2" / "items.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    async with following(registry, ServedVersion.load) as versions:
        assert versions.ready()
        assert {versions.current_for(session) for session in SESSIONS[:50]} == {"v1"}


async def test_nothing_is_announced_before_it_was_rehearsed(registry):
    publish(registry, "v1", seed=1)
    rehearsed, away = [], True

    async def rehearse(blueprint):
        rehearsed.append(blueprint)
        if away:
            raise Fault(Reason.UPSTREAM_UNAVAILABLE)

    async with following(registry, rehearse=rehearse) as versions:
        assert versions.current == "v1" and not rehearsed, "the first waits for nobody"
        await asyncio.to_thread(publish, registry, "v2", seed=2)
        registry.label("canary", "v2", 100)
        await until(lambda: len(rehearsed) >= 3)
        assert versions.current == "v1" and versions.current_for(SESSIONS[0]) == "v1"
        away = False
        await until(lambda: versions.current == "v2")
        # The way back is not rehearsed: it was announced before, and may be urgent.
        away, count = True, len(rehearsed)
        registry.rollback()
        registry.unlabel("canary")
        await until(lambda: versions.current == "v1")
        assert len(rehearsed) == count


async def test_an_old_version_stays_while_it_is_asked_for(registry):
    metrics = Metrics()
    publish(registry, "v1", seed=1)
    async with following(registry, metrics=metrics, keep=3, idle_seconds=4) as versions:
        await asyncio.to_thread(publish, registry, "v2", seed=2)
        await asyncio.to_thread(publish, registry, "v3", seed=3)
        await until(lambda: versions.current == "v3")
        times = 0
        while "v2" in versions.loaded:
            await versions.get("v1")
            times += 1
            await asyncio.sleep(0.02)
        assert set(versions.loaded) == {"v1", "v3"} and times > 1
        asked = metrics.registry.get_sample_value
        labels = {"target": "controller", "version": "v1"}
        assert asked("forward_ofa_version_requests_total", labels) == times
        await until(lambda: versions.loaded == ["v3"])
        assert asked("forward_ofa_version_requests_total", labels) is None
        await asyncio.sleep(4.2)
        assert versions.loaded == ["v3"], "the labelled one stays, asked for or not"


async def test_the_bound_holds_whatever_is_asked_for(registry):
    for seed in range(1, 7):
        publish(registry, f"v{seed}", seed=seed)
    registry.label("canary", "v2", 1)
    async with following(registry, keep=3) as versions:
        for _ in range(3):
            for seed in (1, 3, 4, 5):
                await versions.get(f"v{seed}")
                assert len(versions.loaded) <= 3 and {"v2", "v6"} <= set(versions.loaded)


async def test_an_edge_loads_what_was_live_lately_and_no_more(registry):
    """A controller that was restarted answers devices that still hold the bundle before."""
    for seed in range(1, 6):
        publish(registry, f"v{seed}", seed=seed)
    publish(registry, "v6", seed=6, label=None)
    async with following(registry, keep=3, labelled_only=True) as versions:
        for version in ("v5", "v4", "v3"):
            await versions.get(version)
        for version in ("v2", "v1", "v6"):
            assert (await refusal(versions.get(version))).reason is Reason.UNKNOWN_VERSION
        registry.rollback()
        await until(lambda: versions.current == "v4")
        registry.label("beta", "v6")
        with contextlib.suppress(Fault):
            await versions.get("v6")
        await asyncio.sleep(0.1)
        await versions.get("v6")


async def test_a_registry_that_is_away_costs_nothing_that_is_loaded(registry):
    class Away(FileRegistry):
        away = False

        def pointer(self, name):
            if self.away:
                raise RegistryUnavailable("the place is away")
            return super().pointer(name)

        def exists(self, version):
            if self.away:
                raise RegistryUnavailable("the place is away")
            return super().exists(version)

    there = Away(registry.root)
    publish(there, "v1", seed=1)
    publish(there, "v2", seed=2, label=None)
    async with following(there) as versions:
        there.away = True
        await asyncio.sleep(0.1)
        await versions.get("v1")
        assert (await refusal(versions.get("v2"))).reason is Reason.UPSTREAM_UNAVAILABLE
        there.away = False
        registry.label("stable", "v2")
        await until(lambda: versions.current == "v2")


LOADERS = [MappedVersion.load, ServedVersion.load, Blueprint.load]


@pytest.mark.parametrize("load", LOADERS, ids=["mapper", "controller", "assembler"])
async def test_what_goes_is_released(registry, load):
    publish(registry, "v1", seed=1)
    async with following(registry, load, keep=1) as versions:
        mapped = "versions/v1/" in Path("/proc/self/maps").read_text()
        assert mapped == (load != Blueprint.load)
        old = weakref.ref(await versions.get("v1"))
        await asyncio.to_thread(publish, registry, "v2", seed=2)
        await until(lambda: versions.loaded == ["v2"])
        gc.collect()
        assert old() is None
        assert "versions/v1/" not in Path("/proc/self/maps").read_text(), "unmapped as well"


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def copied(registry, version):
    """v0 again under another id, as files of its own."""
    target = registry.root / "versions" / version
    shutil.copytree(registry.root / "versions" / "v0", target)
    manifest = target / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": version}))


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADERS[:2], ids=["mapper", "controller"])
async def test_fifty_versions_later_memory_is_where_it_was(registry, load):
    config = BackboneConfig(blocks=4, hidden=32, history=5, heads=2)
    publish(registry, "v0", config=config, items=20_000)
    size = sum(entry.bytes for entry in registry.open("v0").manifest.files.values()) / 2**20
    async with following(registry, load, keep=2) as versions:
        after = []
        for number in range(1, 51):
            await asyncio.to_thread(copied, registry, f"v{number}")
            (registry.root / "labels" / "stable").write_text(f"v{number}\n")
            await until(lambda wanted=f"v{number}": versions.current == wanted)
            assert len(versions.loaded) <= 2
            after.append(resident_mib())
            if number > 3:
                shutil.rmtree(registry.root / "versions" / f"v{number - 3}")
        assert size > 8
        assert after[-1] - after[5] < 2 * size, f"one version has {size:.0f} MiB: {after}"


async def test_a_look_that_fails_unexpectedly_is_not_the_last(registry):
    publish(registry, "v1")
    failures = [RuntimeError("no memory for the product")]

    async def rehearse(_):
        if failures:
            raise failures.pop()

    async with following(registry, rehearse=rehearse) as versions:
        publish(registry, "v2", seed=2)
        await until(lambda: versions.current == "v2")


async def test_a_failed_load_keeps_nothing_of_what_it_had_loaded(registry, monkeypatch):
    # pytest keeps what is logged, traceback included.
    monkeypatch.setattr("services.versions.log", lambda *_, **__: None)
    publish(registry, "v1")
    seen = []

    class Half:
        pass

    def load(_):
        half = Half()
        seen.append(weakref.ref(half))
        raise MemoryError

    async with following(registry, load, poll_seconds=100):
        await asyncio.sleep(0.05)
        gc.collect()
        assert seen[0]() is None
