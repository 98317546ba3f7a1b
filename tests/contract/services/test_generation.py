"""One suite for every Mapper and Assembler: in process, and over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from dataclasses import replace

import numpy as np
import pytest

from forward_ofa_device.artefact import artefact_bytes, decode_block, encode_block, read_artefact
from forward_ofa_device.backbones import build
from services.assembler.domain import Blueprint, LocalAssembler
from services.assembler.settings import AssemblerSettings
from services.clients import RemoteAssembler, RemoteMapper
from services.errors import Fault, Reason
from services.mapper.domain import BlockHypernetworks, LocalMapper
from services.mapper.settings import MapperSettings
from services.ports import GeneratedBlocks, GenerationRequest
from services.registry.files import FileRegistry
from services.runtime.channels import open_channel
from services.runtime.metrics import Metrics
from services.runtime.settings import ChannelSettings
from services.versions import Versions, VersionSettings
from tests.support.serving import running
from tests.support.versions import publish

ENCODINGS = ("float32", "float16", "int8")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    registry = FileRegistry(tmp_path_factory.mktemp("registry"))
    publish(registry, "older", seed=2, label=None)
    return registry, publish(registry, "v1", seed=1)


@pytest.fixture
def tiny(published):
    return published[1]


async def local_mapper(registry, settings):
    versions = Versions("mapper", registry, BlockHypernetworks.load, VersionSettings(), Metrics())
    await versions.start()
    return LocalMapper(versions, settings), versions


@pytest.fixture(params=["in process", "gRPC"])
async def mapper(request, published):
    registry, _ = published
    if request.param == "in process":
        made, versions = await local_mapper(registry, MapperSettings(workers=2))
        yield made
        await versions.stop()
        made.close()
        return
    async with running(registry.root, targets=("mapper",)) as services:
        channel = open_channel(services.address, ChannelSettings())
        yield RemoteMapper(channel)
        await channel.close()


@pytest.fixture(params=["in process", "gRPC", "gRPC twice"])
async def assembler(request, published):
    registry, _ = published
    if request.param == "in process":
        mapper, held = await local_mapper(registry, MapperSettings(workers=2))
        versions = Versions("assembler", registry, Blueprint.load, VersionSettings(), Metrics())
        await versions.start()
        yield LocalAssembler(versions, mapper, AssemblerSettings())
        await versions.stop()
        await held.stop()
        mapper.close()
        return
    together = request.param == "gRPC"
    targets = ("mapper", "assembler") if together else ("mapper",)
    async with running(registry.root, targets=targets) as first:
        if together:
            channel = open_channel(first.address, ChannelSettings())
            yield RemoteAssembler(channel)
            await channel.close()
            return
        async with running(registry.root, targets=("assembler",), mapper=first.address) as second:
            channel = open_channel(second.address, ChannelSettings())
            yield RemoteAssembler(channel)
            await channel.close()


def request_for(tiny, **changes):
    request = GenerationRequest("v1", tiny.path(0, 2, 3), tiny.interest().tobytes(), "float32")
    return replace(request, **changes)


async def test_parameters_are_weight_times_interest_plus_bias(mapper, tiny):
    for seed in range(5):
        interest = tiny.interest(seed)
        answer = await mapper.generate(request_for(tiny, interest=interest.tobytes()))
        for block, payload in zip((0, 2, 3), answer.payloads, strict=True):
            got = np.frombuffer(payload, "<f4")
            np.testing.assert_allclose(got, tiny.parameters(block, interest), atol=1e-6, rtol=0)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_payloads_are_what_the_definition_says(mapper, tiny, encoding):
    exact = await mapper.generate(request_for(tiny))
    answer = await mapper.generate(request_for(tiny, encoding=encoding))
    for flat, payload in zip(exact.payloads, answer.payloads, strict=True):
        assert payload == encode_block(np.frombuffer(flat, "<f4"), tiny.layout, encoding)
        decode_block(payload, tiny.layout, encoding)


async def test_only_kept_blocks_are_generated_and_paid(mapper, tiny):
    for kept in ((1,), (0, 3), (0, 1, 2, 3)):
        answer = await mapper.generate(request_for(tiny, path=tiny.path(*kept)))
        assert len(answer.payloads) == len(kept)
        assert answer.generation_flops == len(kept) * tiny.config.hidden * tiny.layout.size
        assert answer.map_us > 0


BAD = [
    ({"path": b""}, Reason.MALFORMED_PATH),
    ({"path": b"\x01\x00"}, Reason.MALFORMED_PATH),
    ({"path": b"\x10"}, Reason.MALFORMED_PATH),
    ({"path": b"\x00"}, Reason.EMPTY_PATH),
    ({"interest": b""}, Reason.MALFORMED_INTEREST),
    ({"interest": b"\0" * 31}, Reason.MALFORMED_INTEREST),
    ({"interest": np.full(8, np.nan, "<f4").tobytes()}, Reason.NON_FINITE_INTEREST),
    ({"interest": np.full(8, np.inf, "<f4").tobytes()}, Reason.NON_FINITE_INTEREST),
    ({"interest": np.full(8, 3e38, "<f4").tobytes()}, Reason.NON_FINITE_INTEREST),
    ({"version": ""}, Reason.MISSING_VERSION),
    ({"version": "nope"}, Reason.UNKNOWN_VERSION),
    ({"version": "../v1"}, Reason.UNKNOWN_VERSION),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
async def test_mapper_refuses(mapper, tiny, change, reason):
    with pytest.raises(Fault) as caught:
        await mapper.generate(request_for(tiny, **change))
    assert caught.value.reason is reason
    if reason is Reason.UNKNOWN_VERSION:
        assert caught.value.current_version == "v1"


@pytest.mark.parametrize(("change", "reason"), BAD)
async def test_assembler_refuses(assembler, tiny, change, reason):
    with pytest.raises(Fault) as caught:
        await assembler.assemble(request_for(tiny, **change))
    assert caught.value.reason is reason


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kept", [(3,), (0, 1, 2, 3)])
async def test_artefacts(assembler, tiny, encoding, kept):
    request = request_for(tiny, path=tiny.path(*kept), encoding=encoding)
    made = await assembler.assemble(request)
    assert made.encoding == encoding
    assert made.sha256 == hashlib.sha256(made.artefact).digest()
    path = tuple(block in kept for block in range(4))
    expected = artefact_bytes("v1", "sasrec", path, encoding, tiny.layout)
    assert len(made.artefact) == made.cost.artefact_bytes == expected
    network = read_artefact(made.artefact, tiny.layout)
    assert (network.version, network.backbone, network.path) == ("v1", "sasrec", path)
    tolerance = {"float32": 1e-6, "float16": 2e-3, "int8": 2e-2}[encoding]
    for block in kept:
        wanted = tiny.layout.split(tiny.parameters(block, tiny.interest()))
        for name, value in network.blocks[block].items():
            np.testing.assert_allclose(value, wanted[name], atol=tolerance)


async def test_cost(assembler, tiny):
    backbone = build(tiny.config)
    made = await assembler.assemble(request_for(tiny))
    flops = backbone.fixed_flops() + backbone.block_flops() * 3
    assert made.cost.paper_device_flops == flops.paper
    assert made.cost.true_device_flops == flops.true
    assert made.cost.true_device_flops != made.cost.paper_device_flops
    assert made.cost.generation_flops == 3 * 8 * tiny.layout.size
    assert made.cost.map_us > 0
    assert made.cost.assemble_us > 0


async def test_a_version_that_nobody_has_loaded_yet_is_loaded_when_asked_for(assembler, tiny):
    made = await assembler.assemble(request_for(tiny, version="older"))
    current = await assembler.assemble(request_for(tiny))
    assert read_artefact(made.artefact, tiny.layout).version == "older"
    assert made.artefact[-1000:] != current.artefact[-1000:]


async def test_many_at_once(assembler, tiny):
    interests = [tiny.interest(seed) for seed in range(16)]
    made = await asyncio.gather(
        *(assembler.assemble(request_for(tiny, interest=h.tobytes())) for h in interests)
    )
    for interest, network in zip(interests, made, strict=True):
        got = read_artefact(network.artefact, tiny.layout).blocks[2]["query.weight"]
        wanted = tiny.layout.split(tiny.parameters(2, interest))["query.weight"]
        np.testing.assert_allclose(got, wanted, atol=1e-6)


async def test_a_full_queue_refuses_at_once_and_recovers(published, tiny, monkeypatch):
    mapper, versions = await local_mapper(published[0], MapperSettings(workers=1, queue=2))
    gate = threading.Event()
    generate = BlockHypernetworks.generate

    def slow(self, *arguments):
        gate.wait(10)
        return generate(self, *arguments)

    monkeypatch.setattr(BlockHypernetworks, "generate", slow)
    waiting = [asyncio.create_task(mapper.generate(request_for(tiny))) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(Fault) as caught:
        await mapper.generate(request_for(tiny))
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.retry is not None
    with pytest.raises(asyncio.CancelledError):
        waiting[-1].cancel()
        await waiting[-1]
    late = asyncio.create_task(mapper.generate(request_for(tiny, timeout=0.05)))
    with pytest.raises(Fault) as caught:
        await late
    assert caught.value.reason is Reason.DEADLINE
    gate.set()
    for task in waiting[:2]:
        assert len((await task).payloads) == 3
    assert len((await mapper.generate(request_for(tiny))).payloads) == 3
    await versions.stop()
    mapper.close()


async def test_who_has_gone_is_not_worked_for(published, tiny, monkeypatch):
    mapper, versions = await local_mapper(published[0], MapperSettings(workers=1, queue=9))
    gate, served = threading.Event(), []
    generate = BlockHypernetworks.generate

    def slow(self, path, *arguments):
        served.append(path)
        gate.wait(10)
        return generate(self, path, *arguments)

    monkeypatch.setattr(BlockHypernetworks, "generate", slow)
    first = asyncio.create_task(mapper.generate(request_for(tiny)))
    gone = [
        asyncio.create_task(mapper.generate(request_for(tiny, path=tiny.path(1)))) for _ in range(5)
    ]
    await asyncio.sleep(0.05)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    gate.set()
    await first
    await mapper.generate(request_for(tiny, path=tiny.path(2)))
    assert len(served) == 2
    await versions.stop()
    mapper.close()


class OtherBuild:
    """A mapper whose blocks are not those of the layout."""

    async def generate(self, request):
        return GeneratedBlocks([b"\0" * 8], 1, 1, 1)


async def test_an_assembler_checks_what_the_mapper_sent(published, tiny):
    versions = Versions("assembler", published[0], Blueprint.load, VersionSettings(), Metrics())
    await versions.start()
    assembler = LocalAssembler(versions, OtherBuild(), AssemblerSettings())
    with pytest.raises(Fault) as caught:
        await assembler.assemble(request_for(tiny))
    assert caught.value.reason is Reason.INTERNAL
    await versions.stop()


async def test_nobody_there(tiny):
    channel = open_channel("127.0.0.1:1", ChannelSettings())
    for call in (RemoteMapper(channel).generate, RemoteAssembler(channel).assemble):
        with pytest.raises(Fault) as caught:
            await call(request_for(tiny, timeout=5.0))
        assert caught.value.reason is Reason.UPSTREAM_UNAVAILABLE
        assert caught.value.retry is not None
    await channel.close()


async def test_the_deadline_travels(published, tiny, monkeypatch):
    """Two hops away nobody works on when the first caller's time is up."""
    gate = threading.Event()
    generate = BlockHypernetworks.generate

    def slow(self, *arguments):
        gate.wait(10)
        return generate(self, *arguments)

    root = published[0].root
    async with (
        running(root, targets=("mapper",)) as first,
        running(root, targets=("assembler",), mapper=first.address) as second,
    ):
        monkeypatch.setattr(BlockHypernetworks, "generate", slow)
        channel = open_channel(second.address, ChannelSettings())
        remote = RemoteAssembler(channel)
        with pytest.raises(Fault) as caught:
            await remote.assemble(request_for(tiny, timeout=0.3))
        assert caught.value.reason is Reason.DEADLINE
        gate.set()
        assert (await remote.assemble(request_for(tiny, timeout=5.0))).artefact
        await channel.close()
