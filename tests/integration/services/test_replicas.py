"""Several replicas behind a channel: one that is gone, and one that takes calls and is silent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import grpc
import pytest

from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_api.mapper.v1.mapper_pb2_grpc import (
    MapperServiceServicer,
    add_MapperServiceServicer_to_server,
)
from services.errors import Reason
from services.registry.files import FileRegistry
from services.runtime.settings import ChannelSettings
from tests.support.serving import fault_of, network_request, running
from tests.support.stalls import Stalls
from tests.support.versions import publish


class Silent(MapperServiceServicer):
    """Its connection lives, its Python does not. given_up: calls that their caller ended."""

    def __init__(self) -> None:
        self.asked = self.given_up = 0

    async def GenerateBlocks(self, request, context):
        self.asked += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up += 1


@contextlib.asynccontextmanager
async def silent_mapper():
    server, servicer = grpc.aio.server(), Silent()
    add_MapperServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.asynccontextmanager
async def edge(root, *mappers, attempt_seconds=0.2):
    """A stub of a controller, whose assembler asks these mappers in turn."""
    async with running(
        root,
        targets=("controller", "assembler"),
        mapper=",".join(mappers),
        channels=ChannelSettings(attempt_seconds=attempt_seconds),
    ) as services:
        await services.wait_ready()
        async with grpc.aio.insecure_channel(services.address) as channel:
            yield ControllerServiceStub(channel)


@pytest.fixture
def registry(tmp_path):
    return FileRegistry(tmp_path / "registry")


async def test_a_replica_that_is_gone_is_passed_over(registry):
    tiny = publish(registry, "v1")
    async with (
        running(registry.root, targets=("mapper",)) as mapper,
        edge(registry.root, closed_port(), mapper.address) as stub,
    ):
        for _ in range(10):
            reply = await stub.RequestNetwork(network_request(tiny), timeout=5)
            assert reply.artefact.data


async def test_a_silent_replica_does_not_use_up_the_time(registry):
    tiny = publish(registry, "v1")
    async with (
        running(registry.root, targets=("mapper",)) as mapper,
        silent_mapper() as (silent, address),
        edge(registry.root, address, mapper.address) as stub,
    ):
        started = time.monotonic()
        with Stalls() as stalls:
            for _ in range(6):
                reply = await stub.RequestNetwork(network_request(tiny), timeout=60)
                assert reply.artefact.data
        took = time.monotonic() - started - stalls.seconds(started, time.monotonic())
        assert silent.asked == silent.given_up > 0
        assert took < 10, "one attempt took more than its share"


async def test_only_silent_replicas(registry):
    """The caller's deadline is kept, and the time is shared among the attempts."""
    tiny = publish(registry, "v1")
    async with silent_mapper() as (silent, address), edge(registry.root, address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(stub.RequestNetwork(network_request(tiny), timeout=1), 60)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Ours came a moment before gRPC's own, or the other way round.
        if caught.value.trailing_metadata():
            assert fault_of(caught.value).reason is Reason.DEADLINE
        assert silent.asked == 3
