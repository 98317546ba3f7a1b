"""Bytes on the port that no client library sends."""

from __future__ import annotations

import asyncio
import json
import random

import grpc
import pytest

from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from services.registry.files import FileRegistry
from services.runtime import core
from services.wiring import serve
from tests.support.rubbish import PREFACE, connection, frame, headers, throw
from tests.support.serving import Process, network_request, running, settings
from tests.support.versions import publish

HEADERS, SETTINGS, END_HEADERS, END_STREAM = 1, 4, 4, 1


def call(path: bytes) -> bytes:
    """A call that is right but for its path."""
    block = headers(
        [
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", path),
            (":authority", b"localhost"),
            ("te", b"trailers"),
            ("content-type", b"application/grpc"),
        ]
    )
    return PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS | END_STREAM, 1, block)


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
