"""New versions go live, are tried on a share of sessions, and are rolled back under full load:
no request fails, and no network is made by one version's mapper for another one's extractor."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections import Counter

import grpc
import numpy as np
import pytest

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import read_artefact
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.rows import decode_rows
from services.registry.files import FileRegistry
from services.registry.location import open_registry
from services.registry.settings import CacheSettings
from services.runtime.settings import ServerSettings
from services.versions import session_bucket
from services.wiring import start
from tests.support.s3_server import S3Server
from tests.support.serving import Process, network_request, running, settings, three_processes
from tests.support.versions import publish


class Load:
    """Devices that ask without a pause, check all that they get, and move when they are told."""

    def __init__(self, address, tinies, clients=16):
        self.address, self.tinies, self.clients = address, tinies, clients
        self.told: Counter[str] = Counter()
        self.sessions: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.stop = False

    @contextlib.asynccontextmanager
    async def on(self):
        self.devices = [asyncio.create_task(self.device(seed)) for seed in range(self.clients)]
        try:
            yield self
        finally:
            self.stop = True
            await asyncio.gather(*self.devices)

    async def device(self, seed):
        rng = random.Random(seed)
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = ControllerServiceStub(channel)
            held = "v1"
            while not self.stop:
                session = f"session-{rng.getrandbits(64):016x}"
                for turn in range(4):
                    told = await self.ask(stub, session, held, rng)
                    self.sessions[told] += turn == 0
                    if told != held:
                        await self.fetch(stub, told, session)
                        held = told

    async def ask(self, stub, session, version, rng):
        tiny = self.tinies[version]
        interest = np.array([rng.uniform(-1, 1) for _ in range(tiny.config.hidden)], "<f4")
        kept = sorted(rng.sample(range(tiny.config.blocks), rng.randint(1, tiny.config.blocks)))
        request = network_request(
            tiny,
            session_id=session,
            path=types.Path(bits=tiny.path(*kept)),
            interest=types.Interest(values=interest.tobytes()),
            accepted_encodings=[types.ENCODING_FLOAT32],
        )
        reply = await stub.RequestNetwork(request, timeout=20)
        assert reply.version == version
        data = reply.artefact.data
        assert hashlib.sha256(data).digest() == reply.artefact.sha256
        network = read_artefact(data, tiny.layout)
        assert network.version == version and sorted(network.blocks) == kept
        for block in kept:
            wanted = tiny.layout.split(tiny.parameters(block, interest))
            for name, value in network.blocks[block].items():
                np.testing.assert_allclose(value, wanted[name], atol=1e-5)
        ids = reply.candidates.item_ids
        rows = decode_rows(reply.candidates.embeddings, "float32", len(ids), tiny.config.hidden)
        assert np.array_equal(rows, tiny.items[[tiny.item_ids.index(item) for item in ids]])
        self.made[version] += 1
        self.told[reply.current_version] += 1
        return reply.current_version

    async def fetch(self, stub, version, session):
        part = api.BUNDLE_PART_TENSORS
        wanted = "" if random.random() < 0.5 else version
        call = stub.GetDeviceBundle(
            api.GetDeviceBundleRequest(version=wanted, part=part, session_id=session), timeout=20
        )
        chunks = [chunk async for chunk in call]
        data = b"".join(chunk.data for chunk in chunks)
        assert hashlib.sha256(data).digest() == chunks[0].sha256
        assert read_bundle(data).manifest.version == chunks[0].version
        assert wanted in ("", chunks[0].version)

    async def until_told(self, *versions, only=False, seconds=60):
        """Until all of these are announced to devices, and nothing else any more if `only`."""
        end = time.monotonic() + seconds
        while True:
            self.told.clear()
            goal = 8 * self.clients
            while sum(self.told.values()) < goal:
                assert time.monotonic() < end, f"{versions}: {self.told}"
                assert not any(device.done() for device in self.devices), "a request failed"
                await asyncio.sleep(0.02)
            seen = {version for version, count in self.told.items() if count}
            if set(versions) == seen or (not only and set(versions) <= seen):
                return


async def live_and_back(registry, load, tinies):
    """v2 goes live and back; v3 is a canary, is promoted, and is rolled back."""
    async with load.on():
        await load.until_told("v1", only=True)
        tinies["v2"] = await asyncio.to_thread(publish, registry, "v2", seed=2, label=None)
        tinies["v3"] = await asyncio.to_thread(publish, registry, "v3", seed=3, label=None)
        await asyncio.to_thread(registry.label, "stable", "v2")
        await load.until_told("v2", only=True)
        await asyncio.to_thread(registry.rollback)
        await load.until_told("v1", only=True)
        await asyncio.to_thread(registry.label, "canary", "v3", 30)
        await load.until_told("v1", "v3")
        # Of sessions, not of requests: those who are told to move ask less often meanwhile.
        load.sessions.clear()
        while sum(load.sessions.values()) < 120:
            await load.until_told("v1", "v3")
        share = load.sessions["v3"] / sum(load.sessions.values())
        assert 0.1 < share < 0.5
        await asyncio.to_thread(registry.label, "stable", "v3")
        await asyncio.to_thread(registry.unlabel, "canary")
        await load.until_told("v3", only=True)
        await asyncio.to_thread(registry.rollback)
        await load.until_told("v1", only=True)
    assert all(load.made[version] > 20 for version in ("v1", "v2", "v3")), load.made


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "registry").mkdir()
    return FileRegistry(tmp_path / "registry")


async def test_under_load(registry):
    tinies = {"v1": publish(registry, "v1", seed=1)}
    async with running(registry.root) as services:
        await live_and_back(registry, Load(services.address, tinies, clients=6), tinies)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [2, 4])
@pytest.mark.parametrize("processes", [1, 3])
async def test_under_load_in_processes(registry, tmp_path, processes, keep):
    """keep 2: with two versions labelled and a third one still asked for, memory is short."""
    tinies = {"v1": publish(registry, "v1", seed=1)}
    more = ("--mapper-queue", "512", "--keep-versions", str(keep))
    with contextlib.ExitStack() as stack:
        if processes == 1:
            process = Process(registry.root, tmp_path / "all", *more)
            stack.callback(process.stop)
            ready = process.wait_ready()
        else:
            found = stack.enter_context(three_processes(registry.root, tmp_path, *more))
            ready = json.loads(found["controller"].ready_file.read_text())
        await live_and_back(registry, Load(ready["address"], tinies), tinies)


@pytest.mark.slow
async def test_under_load_from_an_object_store(tmp_path, monkeypatch):
    """The same with three processes that share nothing but a bucket; which then goes away."""
    server = S3Server(tmp_path)
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = server.bucket("models") + "/production"
    registry = open_registry(url, CacheSettings(tmp_path / "mine"))
    tinies = {"v1": publish(registry, "v1", seed=1)}
    caches = ("--registry-cache", str(tmp_path / "theirs"), "--mapper-queue", "512")
    try:
        with three_processes(url, tmp_path, *caches) as found:
            ready = json.loads(found["controller"].ready_file.read_text())
            await live_and_back(registry, Load(ready["address"], tinies), tinies)
            server.stop()
            alone = Load(ready["address"], tinies)
            async with alone.on():
                await alone.until_told("v1", only=True)
            assert list((tmp_path / "theirs").iterdir())
    finally:
        server.stop()


async def test_a_version_is_announced_once_the_services_behind_can_answer(registry):
    tinies = {"v1": publish(registry, "v1", seed=1)}
    behind = await start(settings(registry.root, targets=("mapper", "assembler")))
    try:
        async with (
            running(registry.root, targets=("controller",), assembler=behind.address) as edge,
            grpc.aio.insecure_channel(edge.address) as channel,
        ):
            stub = ControllerServiceStub(channel)
            assert (await stub.RequestNetwork(network_request(tinies["v1"]))).version == "v1"
            await behind.stop()
            tinies["v2"] = await asyncio.to_thread(publish, registry, "v2", seed=2)
            await asyncio.sleep(1)
            assert edge.version == "v1"
            server = ServerSettings(listen=behind.address, drain_seconds=1)
            behind = await start(
                settings(registry.root, targets=("mapper", "assembler"), server=server)
            )
            end = time.monotonic() + 20
            while edge.version != "v2":
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            assert (await stub.RequestNetwork(network_request(tinies["v2"]))).version == "v2"
    finally:
        await behind.stop()


async def test_a_session_stays_on_its_side(registry):
    tinies = {"v1": publish(registry, "v1", seed=1)}
    tinies["v2"] = publish(registry, "v2", seed=2, label=None)
    registry.label("canary", "v2", 40)
    async with (
        running(registry.root) as services,
        grpc.aio.insecure_channel(services.address) as channel,
    ):
        stub = ControllerServiceStub(channel)
        for number in range(40):
            session = f"session-{number:04d}"
            wanted = "v2" if session_bucket(session) < 40 else "v1"
            for version in ("v1", "v2"):
                request = network_request(tinies[version], session_id=session)
                assert (await stub.RequestNetwork(request)).current_version == wanted
            bundle = api.GetDeviceBundleRequest(part=1, session_id=session)
            assert (await stub.GetDeviceBundle(bundle).read()).version == wanted
        bare = await stub.GetDeviceBundle(api.GetDeviceBundleRequest(part=1)).read()
        assert bare.version == "v1"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            bundle = api.GetDeviceBundleRequest(part=1, session_id="?")
            await stub.GetDeviceBundle(bundle).read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
