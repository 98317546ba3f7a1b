"""Bytes on the port that no client library sends."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time

import grpc
import pytest

from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from services.errors import Reason
from services.mapper.settings import MapperSettings
from services.registry.files import FileRegistry
from services.runtime import core
from services.runtime.admission import AdmissionSettings
from services.runtime.settings import ServerSettings
from services.wiring import serve
from tests.support.fleet import scrape
from tests.support.gate import Gate
from tests.support.rubbish import PREFACE, connection, frame, headers, throw
from tests.support.serving import Process, fault_of, network_request, running, settings
from tests.support.versions import publish

DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7
END_HEADERS, END_STREAM = 4, 1
INITIAL_WINDOW = 4
REQUEST_NETWORK = b"/forward_ofa_api.controller.v1.ControllerService/RequestNetwork"


def call_headers(path: bytes) -> bytes:
    return headers(
        [
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", path),
            (":authority", b"localhost"),
            ("te", b"trailers"),
            ("content-type", b"application/grpc"),
        ]
    )


def call(path: bytes) -> bytes:
    """A call that is right but for its path."""
    start = PREFACE + frame(SETTINGS, 0, 0, b"")
    return start + frame(HEADERS, END_HEADERS | END_STREAM, 1, call_headers(path))


def calls_unread(message: bytes, count: int) -> bytes:
    """Good calls by one who lets no byte of a reply come."""
    no_window = INITIAL_WINDOW.to_bytes(2, "big") + (0).to_bytes(4, "big")
    prefixed = b"\0" + len(message).to_bytes(4, "big") + message
    block = call_headers(REQUEST_NETWORK)
    parts = [PREFACE, frame(SETTINGS, 0, 0, no_window)]
    for stream in range(1, 2 * count, 2):
        parts += [frame(HEADERS, END_HEADERS, stream, block)]
        parts += [frame(DATA, END_STREAM, stream, prefixed)]
    return b"".join(parts)


@pytest.fixture
def registry(tmp_path):
    return FileRegistry(tmp_path / "registry")


async def test_a_path_that_is_no_text_harms_nobody(registry):
    tiny = publish(registry, "v1")
    async with (
        running(registry.root) as services,
        grpc.aio.insecure_channel(services.address) as channel,
    ):
        stub = ControllerServiceStub(channel)
        assert (await stub.RequestNetwork(network_request(tiny), timeout=20)).artefact.data
        for path in (b"/\xff\xfe", b"\x80", b"", b"/x\xc3\x28/y"):
            await throw(services.address, call(path))
            # On the connection that there was: its calls are not cut off either.
            assert (await stub.RequestNetwork(network_request(tiny), timeout=20)).artefact.data


async def test_unknown_methods_are_still_told_so(registry):
    publish(registry, "v1")
    async with (
        running(registry.root) as services,
        grpc.aio.insecure_channel(services.address) as channel,
    ):
        for path in ("/x", "/forward_ofa_api.controller.v1.ControllerService/Nothing"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"", timeout=20)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_connections_that_keep_no_rule(registry, tmp_path):
    tiny = publish(registry, "v1")
    rng = random.Random(1)
    process = Process(registry.root, tmp_path / "all")
    address = process.wait_ready()["address"]

    async def all_at_once():
        await asyncio.gather(*(throw(address, connection(rng)) for _ in range(200)))

    asyncio.run(all_at_once())
    with grpc.insecure_channel(address) as channel:
        stub = ControllerServiceStub(channel)
        assert stub.RequestNetwork(network_request(tiny), timeout=20).artefact.data
    assert process.stop() == 0
    # A header that is not text is a stranger's, and may be a token: it is not logged.
    assert "Traceback" not in process.log()
    assert "Invalid encoding" not in process.log()


async def test_a_server_that_ends_by_itself_ends_the_process(registry, tmp_path, monkeypatch):
    """Without our care gRPC's own loop falls over such a path: nobody could be reached then."""
    publish(registry, "v1")
    monkeypatch.delattr(core._Core, "_make_request_call_future")
    ready = tmp_path / "ready.json"
    serving = asyncio.create_task(serve(settings(registry.root, ready_file=ready)))
    while not ready.exists():
        assert not serving.done(), serving.exception()
        await asyncio.sleep(0.02)
    await throw(json.loads(ready.read_text())["address"], call(b"/\xff\xfe"))
    with pytest.raises(RuntimeError, match="ended by itself"):
        await asyncio.wait_for(serving, 20)
    assert not ready.exists()


async def test_who_does_not_read_replies_fills_no_memory_and_hinders_nobody(registry):
    tiny = publish(registry, "v1")
    limit = 2**20
    admission = AdmissionSettings(max_unread_bytes=limit, max_waiting=512)
    server = ServerSettings(listen="127.0.0.1:0", admission=admission)
    message = network_request(tiny).SerializeToString()
    # A queue that never refuses, so that nothing else does.
    mapping = MapperSettings(workers=2, queue=512)
    async with running(registry.root, server=server, mapping=mapping) as services:
        host, port = services.address.rsplit(":", 1)

        async def metric(name, **labels):
            return await asyncio.to_thread(scrape, services.metrics_address, name, **labels)

        async def unread():
            return await metric("forward_ofa_unread_reply_bytes")

        async def refused():
            return await metric("forward_ofa_rejections_total", reason="OVERLOADED")

        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(calls_unread(message, 250))
        await writer.drain()
        end = time.monotonic() + 20
        while not (held := await unread()) or not await refused() or held != await unread():
            assert time.monotonic() < end, f"{held} bytes, {await refused()} refused"
            await asyncio.sleep(0.1)
        # An eighth of what was free, and the calls that ran when it was reached.
        assert limit / 16 < held < limit / 2
        async with grpc.aio.insecure_channel(services.address) as channel:
            stub = ControllerServiceStub(channel)
            for _ in range(20):
                assert (await stub.RequestNetwork(network_request(tiny), timeout=20)).artefact.data
        writer.close()
        while await unread():
            assert time.monotonic() < end, "kept after the connection has gone"
            await asyncio.sleep(0.05)
        assert reader is not None


async def test_overload_is_told_before_a_message_is_sent(registry, monkeypatch, caplog):
    tiny = publish(registry, "v1")
    server = ServerSettings(listen="127.0.0.1:0", max_concurrent_requests=1)
    async with (
        running(registry.root, server=server) as services,
        grpc.aio.insecure_channel(services.address) as channel,
    ):
        gate = Gate(monkeypatch)
        held = ControllerServiceStub(channel).RequestNetwork(network_request(tiny))
        await asyncio.to_thread(gate.entered.wait, 20)
        # A caller that never sends its message.
        silent = channel.stream_unary(REQUEST_NETWORK.decode())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await silent(timeout=5)
        fault = fault_of(caught.value)
        assert fault.reason is Reason.OVERLOADED and fault.retry[0] >= 100
        # Those who go before they are answered are no news.
        for _ in range(200):
            silent(timeout=5).cancel()
            await asyncio.sleep(0)
        gate.open.set()
        assert (await held).artefact.data
        gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def frame_types(reader: asyncio.StreamReader) -> list[int]:
    """Of the frames until the other side closes or says GOAWAY."""
    types: list[int] = []
    while GOAWAY not in types:
        head = await reader.readexactly(9)
        types.append(head[3])
        await reader.readexactly(int.from_bytes(head[:3], "big"))
    return types


async def test_a_connection_of_age_is_told_to_end_and_no_call_fails(registry):
    tiny = publish(registry, "v1")
    admission = AdmissionSettings(max_connection_seconds=1)
    server = ServerSettings(listen="127.0.0.1:0", admission=admission)
    async with running(registry.root, server=server) as services:
        host, port = services.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
        started = time.monotonic()
        async with grpc.aio.insecure_channel(services.address) as channel:
            stub = ControllerServiceStub(channel)
            while time.monotonic() - started < 3.5:
                assert (await stub.RequestNetwork(network_request(tiny), timeout=20)).artefact.data
        assert GOAWAY in await asyncio.wait_for(frame_types(reader), 5)
        writer.close()
