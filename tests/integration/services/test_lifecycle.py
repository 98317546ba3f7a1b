"""Start, roll over, break, recover, drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_device.artefact import read_artefact
from services.controller import bundles
from services.errors import Reason
from services.mapper.hypernetworks import BlockHypernetworks
from services.ports import SessionCandidates
from services.registry.files import FileRegistry
from services.runtime.admission import AdmissionSettings
from services.runtime.settings import ChannelSettings, ServerSettings, SettingsError
from services.sessions.settings import SessionSettings
from services.versions import VersionSettings
from services.wiring import start
from tests.support.gate import Gate
from tests.support.redis_server import RedisServer
from tests.support.serving import (
    Process,
    fault_of,
    network_request,
    running,
    settings,
    three_processes,
)
from tests.support.versions import publish


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "registry").mkdir()
    return FileRegistry(tmp_path / "registry")


@contextlib.asynccontextmanager
async def client(address):
    async with grpc.aio.insecure_channel(address) as channel:
        yield ControllerServiceStub(channel), health_pb2_grpc.HealthStub(channel)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return fault_of(caught.value)


async def status(health, service=""):
    answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.02)


async def test_before_the_first_version(registry):
    async with running(registry.root) as services, client(services.address) as (stub, health):
        assert await status(health) == "NOT_SERVING"
        request = api.RequestNetworkRequest(version="v1", session_id="session-1")
        fault = await refusal(stub.RequestNetwork(request))
        assert fault.reason is Reason.NO_VERSION
        assert fault.retry is not None
        bundle = stub.GetDeviceBundle(api.GetDeviceBundleRequest(part=1))
        assert (await refusal(bundle.read())).reason is Reason.NO_VERSION
        tiny = publish(registry, "v1")
        await asyncio.wait_for(services.wait_ready(), 10)
        assert await status(health) == "SERVING"
        assert (await stub.RequestNetwork(network_request(tiny))).version == "v1"


async def test_roll_over_under_load(registry):
    """No request fails while the label moves; old and new are served side by side."""
    old = publish(registry, "v1", seed=1)
    async with running(registry.root) as services, client(services.address) as (stub, _):
        seen, stop = [], False

        async def ask():
            while not stop:
                reply = await stub.RequestNetwork(network_request(old))
                assert read_artefact(reply.artefact.data, old.layout).version == "v1"
                seen.append(reply.current_version)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        await asyncio.sleep(0.1)
        new = await asyncio.to_thread(publish, registry, "v2", seed=2)

        async def announced():
            return seen[-1] == "v2"

        await until(announced)
        reply = await stub.RequestNetwork(network_request(new))
        assert read_artefact(reply.artefact.data, new.layout).version == "v2"
        stop = True
        await asyncio.gather(*asking)
        assert seen == sorted(seen)
        assert {"v1", "v2"} == set(seen)


async def test_keeps_as_many_versions_as_it_was_told(registry):
    tinies = [publish(registry, "v1", seed=1)]
    versions = VersionSettings(poll_seconds=0.02, keep=2)
    async with (
        running(registry.root, versions=versions) as services,
        client(services.address) as (stub, _),
    ):
        for seed in (2, 3):
            tinies.append(await asyncio.to_thread(publish, registry, f"v{seed}", seed=seed))

            async def switched(wanted=f"v{seed}"):
                return services.version == wanted

            await until(switched)
        fault = await refusal(stub.RequestNetwork(network_request(tinies[0])))
        assert fault.reason is Reason.UNKNOWN_VERSION
        assert fault.current_version == "v3"
        for tiny in tinies[1:]:
            assert (await stub.RequestNetwork(network_request(tiny))).version == tiny.version


async def test_a_labelled_version_is_loaded_when_asked_for(registry):
    publish(registry, "v1", seed=1)
    canary = publish(registry, "v2", seed=2, label="canary")
    unlabelled = publish(registry, "v3", seed=3, label=None)
    async with running(registry.root) as services, client(services.address) as (stub, _):
        reply = await stub.RequestNetwork(network_request(canary))
        assert (reply.version, reply.current_version) == ("v2", "v1")
        fault = await refusal(stub.RequestNetwork(network_request(unlabelled)))
        assert fault.reason is Reason.UNKNOWN_VERSION


@pytest.mark.parametrize("name", ["bundle/items-0001.safetensors", "mapper.safetensors"])
async def test_a_damaged_new_version_changes_nothing(registry, caplog, name):
    tiny = publish(registry, "v1", seed=1)
    async with running(registry.root) as services, client(services.address) as (stub, health):
        publish(registry, "v2", seed=2, label=None)
        path = registry.root / "versions" / "v2" / name
        path.chmod(0o644)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with caplog.at_level(logging.ERROR, "services"):
            (registry.root / "labels" / "stable").write_text("v2\n")
            await asyncio.sleep(0.5)
        assert name in caplog.text
        reply = await stub.RequestNetwork(network_request(tiny))
        assert reply.current_version == "v1"
        assert await status(health) == "SERVING"
        fault = await refusal(stub.RequestNetwork(network_request(tiny, version="v2")))
        assert fault.reason is Reason.CORRUPT_VERSION


async def test_a_version_that_is_deleted_behind_its_back(registry):
    """What is in memory is served on; a bundle that is gone is an error, not a crash."""
    tiny = publish(registry, "v1")
    async with running(registry.root) as services, client(services.address) as (stub, _):
        shutil.rmtree(registry.root / "versions" / "v1")
        assert (await stub.RequestNetwork(network_request(tiny))).artefact.data
        call = stub.GetDeviceBundle(api.GetDeviceBundleRequest(part=1))
        assert (await refusal(call.read())).reason is Reason.CORRUPT_VERSION
        assert (await stub.RequestNetwork(network_request(tiny))).artefact.data


async def test_too_many_at_once(registry, monkeypatch):
    tiny = publish(registry, "v1")
    server = ServerSettings(listen="127.0.0.1:0", max_concurrent_requests=2)
    async with (
        running(registry.root, server=server) as services,
        client(services.address) as (stub, health),
    ):
        gate = Gate(monkeypatch)
        calls = [stub.RequestNetwork(network_request(tiny)) for _ in range(2)]
        await asyncio.to_thread(gate.entered.wait)
        await asyncio.sleep(0.1)
        fault = await refusal(stub.RequestNetwork(network_request(tiny)))
        assert fault.reason is Reason.OVERLOADED
        assert fault.retry is not None
        assert await status(health) == "SERVING", "health is not refused"
        gate.open.set()
        assert all([(await call).artefact.data for call in calls])
        assert (await stub.RequestNetwork(network_request(tiny))).artefact.data


async def test_slow_downloads_do_not_crowd_out_networks(registry, monkeypatch):
    faster, read = asyncio.Event(), bundles._read

    async def slow_read(published, name, handle, offset):
        if offset:
            await faster.wait()
        return await read(published, name, handle, offset)

    monkeypatch.setattr(bundles, "_read", slow_read)
    tiny = publish(registry, "v1")
    limits = AdmissionSettings(max_downloads=2)
    server = ServerSettings(listen="127.0.0.1:0", max_concurrent_requests=2, admission=limits)
    async with (
        running(registry.root, server=server) as services,
        client(services.address) as (stub, _),
    ):
        part = api.BUNDLE_PART_EXTRACTOR_ONNX
        slow = [stub.GetDeviceBundle(api.GetDeviceBundleRequest(part=part)) for _ in range(2)]
        first = [await call.read() for call in slow]
        third = stub.GetDeviceBundle(api.GetDeviceBundleRequest(part=part))
        assert (await refusal(third.read())).reason is Reason.OVERLOADED
        assert (await stub.RequestNetwork(network_request(tiny))).artefact.data
        faster.set()
        for call, chunk in zip(slow, first, strict=True):
            arrived = len(chunk.data)
            while arrived < chunk.total_bytes:
                arrived += len((await call.read()).data)
            assert await call.read() is grpc.aio.EOF


async def test_a_caller_that_goes_away_frees_its_place(registry, monkeypatch):
    tiny = publish(registry, "v1")
    server = ServerSettings(listen="127.0.0.1:0", max_concurrent_requests=1)
    async with (
        running(registry.root, server=server) as services,
        client(services.address) as (stub, _),
    ):
        gate = Gate(monkeypatch)
        call = stub.RequestNetwork(network_request(tiny))
        await asyncio.to_thread(gate.entered.wait)
        call.cancel()
        gate.open.set()

        async def free():
            try:
                return bool((await stub.RequestNetwork(network_request(tiny))).artefact.data)
            except grpc.aio.AioRpcError as error:
                assert fault_of(error).reason is Reason.OVERLOADED
                return False

        await until(free)


async def test_drain(registry, monkeypatch):
    """A running request ends well, new ones are refused, health says so."""
    tiny = publish(registry, "v1")
    services = await start(settings(registry.root))
    async with client(services.address) as (stub, _):
        gate = Gate(monkeypatch)
        call = asyncio.ensure_future(stub.RequestNetwork(network_request(tiny)))
        await asyncio.to_thread(gate.entered.wait)
        stopping = asyncio.create_task(services.stop())
        await asyncio.sleep(0.2)
        assert not stopping.done()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with client(services.address) as (other, _):
                await other.RequestNetwork(network_request(tiny), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        gate.open.set()
        assert (await call).artefact.data
        await stopping
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{services.metrics_address}/metrics", timeout=5)


async def test_an_unexpected_error_stays_inside(registry, monkeypatch, caplog):
    tiny = publish(registry, "v1")
    async with running(registry.root) as services, client(services.address) as (stub, _):

        def broken(*_):
            raise ZeroDivisionError("secret-internal-text")

        monkeypatch.setattr(BlockHypernetworks, "multiply", broken)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RequestNetwork(
                network_request(tiny), metadata=(("x-request-id", "find-me-1"),)
            )
        assert fault_of(caught.value).reason is Reason.INTERNAL
        assert "secret" not in repr(caught.value.trailing_metadata()) + caught.value.details()
        assert dict(caught.value.trailing_metadata())["x-request-id"] == "find-me-1"
        assert "secret-internal-text" in caplog.text


async def test_two_controllers_share_sessions_in_redis(registry, tmp_path):
    tiny = publish(registry, "v1")
    server = RedisServer(tmp_path)
    server.start()
    sessions = SessionSettings(url=f"redis+socket://{server.socket}?virtual_host=0")
    try:
        async with (
            running(registry.root, sessions=sessions) as one,
            running(registry.root, sessions=sessions) as two,
            client(one.address) as (first, _),
            client(two.address) as (second, _),
        ):
            request = network_request(tiny)
            sent = (await first.RequestNetwork(request)).candidates
            ask = api.GetCandidatesRequest(version="v1", session_id=request.session_id)
            assert (await second.GetCandidates(ask)).candidates == sent
            server.kill()
            assert (await first.RequestNetwork(request)).artefact.data
            assert (await refusal(second.GetCandidates(ask))).reason is Reason.UNKNOWN_SESSION
    finally:
        server.kill()


async def test_an_address_of_redis_with_unknown_options(registry):
    sessions = SessionSettings(url="redis://127.0.0.1:1/0?no_such_option=1")
    with pytest.raises(SettingsError, match="no_such_option"):
        await start(settings(registry.root, sessions=sessions))


async def test_a_scrape_that_breaks_off_leaves_no_traceback(registry, capfd):
    async with running(registry.root) as services:
        host, port = services.metrics_address.split(":")
        for _ in range(5):
            with socket.create_connection((host, int(port))) as scrape:
                scrape.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        await asyncio.sleep(0.3)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("rows", [[0, 99_999], [], [4_000_000_000], [3, 3], [0] * 5000])
async def test_rows_that_are_not_of_this_version_are_no_session(registry, tmp_path, rows):
    from services.runtime.metrics import Metrics
    from services.sessions.redis import RedisSessions

    publish(registry, "v1")
    server = RedisServer(tmp_path)
    server.start()
    try:
        other = RedisSessions(server.url, Metrics(), ttl_seconds=60)
        other.put("session-1", SessionCandidates("v1", np.array(rows, "<u4").tobytes()))
        await other.close()
        sessions = SessionSettings(url=server.url)
        async with (
            running(registry.root, sessions=sessions) as services,
            client(services.address) as (stub, _),
        ):
            ask = api.GetCandidatesRequest(version="v1", session_id="session-1")
            assert (await refusal(stub.GetCandidates(ask))).reason is Reason.UNKNOWN_SESSION
    finally:
        server.kill()


async def test_a_port_that_is_taken(registry):
    async with running(registry.root) as services:
        server = ServerSettings(listen=services.address)
        with pytest.raises(SettingsError, match="in use"):
            await start(settings(registry.root, server=server))
        with pytest.raises(SettingsError, match="metrics cannot listen"):
            await start(settings(registry.root, metrics=services.metrics_address))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
async def test_tls(registry, tmp_path):
    tiny = publish(registry, "v1")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    server = ServerSettings(listen="127.0.0.1:0", tls_cert=cert, tls_key=key)
    trusted = ChannelSettings(ca=cert)
    async with (
        running(registry.root, server=server, targets=("mapper", "assembler")) as behind,
        running(
            registry.root,
            server=server,
            targets=("controller",),
            assembler=behind.address,
            channels=trusted,
        ) as edge,
    ):
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        async with grpc.aio.secure_channel(edge.address, credentials) as channel:
            stub = ControllerServiceStub(channel)
            assert (await stub.RequestNetwork(network_request(tiny))).artefact.data
        async with client(edge.address) as (plain, _):
            with pytest.raises(grpc.aio.AioRpcError):
                await plain.RequestNetwork(network_request(tiny), timeout=5)
    cert.write_text("not a certificate")
    with pytest.raises(SettingsError, match="certificate"):
        await start(settings(registry.root, server=server))


def test_sigterm_ends_a_process_well(registry, tmp_path):
    publish(registry, "v1")
    process = Process(registry.root, tmp_path / "all")
    ready = process.wait_ready()
    assert ready["pid"] == process.process.pid
    assert ready["version"] == "v1"
    assert set(ready["targets"]) == {"controller", "assembler", "mapper"}
    assert process.stop() == 0
    assert not process.ready_file.exists()
    last = json.loads(process.log().splitlines()[-1])
    assert last["message"] == "stopped"


def test_a_controller_needs_no_torch(registry, tmp_path):
    """Only the mapper's process loads it."""
    publish(registry, "v1")
    with three_processes(registry.root, tmp_path) as processes:
        for name, process in processes.items():
            maps = Path(f"/proc/{process.process.pid}/maps").read_text()
            assert ("libtorch" in maps) == (name == "mapper"), name


@pytest.mark.slow
def test_services_restart_in_any_order(registry, tmp_path):
    """Mapper and assembler are killed and come back on their ports: the controller answers
    UNAVAILABLE with a retry window meanwhile, stays SERVING, and recovers by itself."""
    tiny = publish(registry, "v1")
    with three_processes(registry.root, tmp_path) as processes:
        edge = json.loads(processes["controller"].ready_file.read_text())
        addresses = {
            name: json.loads(process.ready_file.read_text())["address"]
            for name, process in processes.items()
        }
        with grpc.insecure_channel(edge["address"]) as channel:
            stub = ControllerServiceStub(channel)
            health = health_pb2_grpc.HealthStub(channel)
            assert stub.RequestNetwork(network_request(tiny), timeout=10).artefact.data
            for name in ("mapper", "assembler"):
                processes[name].stop(signal.SIGKILL)
                for _ in range(3):
                    with pytest.raises(grpc.RpcError) as caught:
                        stub.RequestNetwork(network_request(tiny), timeout=10)
                    fault = fault_of(caught.value)
                    assert fault.reason is Reason.UPSTREAM_UNAVAILABLE
                    assert fault.retry is not None
                check = health_pb2.HealthCheckRequest()
                assert health.Check(check, timeout=5).status == 1
                arguments = ["--target", name, "--listen", addresses[name]]
                if name == "assembler":
                    arguments += ["--mapper", addresses["mapper"]]
                processes[name] = Process(registry.root, tmp_path / f"{name}-2", *arguments)
                processes[name].wait_ready()
                end = time.monotonic() + 10
                while True:
                    try:
                        assert stub.RequestNetwork(network_request(tiny), timeout=10).artefact.data
                        break
                    except grpc.RpcError:
                        assert time.monotonic() < end
                        time.sleep(0.1)
