"""One suite for every Mapper and Assembler: in process, and over gRPC."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from forward_ofa_device.artefact import artefact_bytes, decode_block, encode_block, read_artefact
from forward_ofa_device.backbones import build
from services.assembler.domain import Blueprint, LocalAssembler
from services.assembler.settings import AssemblerSettings
from services.clients import RemoteAssembler, RemoteMapper
from services.errors import Fault, Reason
from services.mapper.domain import LocalMapper, MappedVersion
from services.mapper.settings import MapperSettings
from services.ports import GeneratedBlocks, GenerationRequest
from services.registry.files import FileRegistry
from services.runtime.channels import open_channel
from services.runtime.metrics import Metrics
from services.runtime.settings import ChannelSettings
from services.versions import Versions, VersionSettings
from services.wire import encoding_name, parse_artefact
from tests.support.gate import Gate
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
    metrics = Metrics()
    versions = Versions("mapper", registry, MappedVersion.load, VersionSettings(), metrics)
    await versions.start()
    return LocalMapper(versions, settings, metrics), versions


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


def blocks_of(answer, tiny, encoding, kept):
    """The payload cut into its blocks."""
    payload = b"".join(answer.payload)
    size = tiny.layout.encoded_bytes(encoding)
    assert len(payload) == kept * size
    return [payload[start : start + size] for start in range(0, len(payload), size)]


def artefact_of(made):
    """The bytes of a network whose digest is right."""
    message = parse_artefact(made.artefact)
    assert message.sha256 == hashlib.sha256(message.data).digest()
    return message.data


def request_for(tiny, **changes):
    request = GenerationRequest("v1", tiny.path(0, 2, 3), tiny.interest().tobytes(), "float32")
    return replace(request, **changes)


async def test_parameters_are_weight_times_interest_plus_bias(mapper, tiny):
    for seed in range(5):
        interest = tiny.interest(seed)
        answer = await mapper.generate(request_for(tiny, interest=interest.tobytes()))
        payloads = blocks_of(answer, tiny, "float32", 3)
        for block, payload in zip((0, 2, 3), payloads, strict=True):
            got = np.frombuffer(payload, "<f4")
            np.testing.assert_allclose(got, tiny.parameters(block, interest), atol=1e-6, rtol=0)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_payloads_are_what_the_definition_says(mapper, tiny, encoding):
    exact = await mapper.generate(request_for(tiny))
    answer = await mapper.generate(request_for(tiny, encoding=encoding))
    flats, payloads = blocks_of(exact, tiny, "float32", 3), blocks_of(answer, tiny, encoding, 3)
    for flat, payload in zip(flats, payloads, strict=True):
        assert payload == encode_block(np.frombuffer(flat, "<f4"), tiny.layout, encoding)
        decode_block(payload, tiny.layout, encoding)


async def test_only_kept_blocks_are_generated_and_paid(mapper, tiny):
    for kept in ((1,), (0, 3), (0, 1, 2, 3)):
        answer = await mapper.generate(request_for(tiny, path=tiny.path(*kept)))
        blocks_of(answer, tiny, "float32", len(kept))
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
    data = artefact_of(made)
    assert encoding_name(parse_artefact(made.artefact).encoding) == encoding
    path = tuple(block in kept for block in range(4))
    expected = artefact_bytes("v1", "sasrec", path, encoding, tiny.layout)
    assert len(data) == made.cost.artefact_bytes == expected
    network = read_artefact(data, tiny.layout)
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
    assert read_artefact(artefact_of(made), tiny.layout).version == "older"
    assert artefact_of(made)[-1000:] != artefact_of(current)[-1000:]


async def test_many_at_once(assembler, tiny):
    interests = [tiny.interest(seed) for seed in range(16)]
    made = await asyncio.gather(
        *(assembler.assemble(request_for(tiny, interest=h.tobytes())) for h in interests)
    )
    for interest, network in zip(interests, made, strict=True):
        got = read_artefact(artefact_of(network), tiny.layout).blocks[2]["query.weight"]
        wanted = tiny.layout.split(tiny.parameters(2, interest))["query.weight"]
        np.testing.assert_allclose(got, wanted, atol=1e-6)


async def test_a_full_queue_refuses_at_once_and_recovers(published, tiny, monkeypatch):
    mapper, versions = await local_mapper(published[0], MapperSettings(workers=1, queue=2))
    gate = Gate(monkeypatch)
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
    gate.open.set()
    for task in waiting[:2]:
        blocks_of(await task, tiny, "float32", 3)
    blocks_of(await mapper.generate(request_for(tiny)), tiny, "float32", 3)
    await versions.stop()
    mapper.close()


async def test_who_has_gone_is_not_worked_for(published, tiny, monkeypatch):
    mapper, versions = await local_mapper(published[0], MapperSettings(workers=1, queue=9))
    gate = Gate(monkeypatch)
    first = asyncio.create_task(mapper.generate(request_for(tiny, path=tiny.path(0))))
    await asyncio.to_thread(gate.entered.wait)
    gone = [
        asyncio.create_task(mapper.generate(request_for(tiny, path=tiny.path(1)))) for _ in range(5)
    ]
    await asyncio.sleep(0.05)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    gate.open.set()
    await first
    await mapper.generate(request_for(tiny, path=tiny.path(2)))
    assert gate.served == [(0, 1), (2, 1)]
    await versions.stop()
    mapper.close()


async def test_devices_with_different_paths_share_a_batch(published, tiny, monkeypatch):
    """Different paths, encodings and interests; everybody gets what is theirs."""
    mapper, versions = await local_mapper(published[0], MapperSettings(workers=1, max_batch=4))
    gate = Gate(monkeypatch)
    first = asyncio.create_task(mapper.generate(request_for(tiny, path=tiny.path(3))))
    await asyncio.to_thread(gate.entered.wait)
    asked = []
    for seed, kept in enumerate([(0, 1), (1, 2), (0, 1, 2), (1,), (1, 2)]):
        change = {"path": tiny.path(*kept), "encoding": ENCODINGS[seed % 3]}
        interest = tiny.interest(seed)
        request = request_for(tiny, interest=interest.tobytes(), **change)
        asked.append((kept, interest, request, asyncio.create_task(mapper.generate(request))))
    await asyncio.sleep(0.05)
    gate.open.set()
    await first
    for kept, interest, request, task in asked:
        payloads = blocks_of(await task, tiny, request.encoding, len(kept))
        for block, payload in zip(kept, payloads, strict=True):
            wanted = tiny.layout.split(tiny.parameters(block, interest))
            for name, value in decode_block(payload, tiny.layout, request.encoding).items():
                np.testing.assert_allclose(value, wanted[name], atol=2e-2)
    # Block 1 is wanted by five: a full batch of four now, the fifth behind the others.
    assert gate.served == [(3, 1), (0, 2), (1, 4), (2, 3), (1, 1)]
    await versions.stop()
    mapper.close()


async def test_bfloat16_is_close(published, tiny):
    metrics = Metrics()
    load = partial(MappedVersion.load, precision="bfloat16")
    versions = Versions("mapper", published[0], load, VersionSettings(), metrics)
    await versions.start()
    mapper = LocalMapper(versions, MapperSettings(workers=1, precision="bfloat16"), metrics)
    answer = await mapper.generate(request_for(tiny))
    exact = [tiny.parameters(block, tiny.interest()) for block in (0, 2, 3)]
    for wanted, payload in zip(exact, blocks_of(answer, tiny, "float32", 3), strict=True):
        got = np.frombuffer(payload, "<f4")
        np.testing.assert_allclose(got, wanted, atol=2e-2)
        assert np.abs(got - wanted).max() > 1e-5, "it is not float32"
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
    root = published[0].root
    async with (
        running(root, targets=("mapper",)) as first,
        running(root, targets=("assembler",), mapper=first.address) as second,
    ):
        gate = Gate(monkeypatch)
        channel = open_channel(second.address, ChannelSettings())
        remote = RemoteAssembler(channel)
        with pytest.raises(Fault) as caught:
            await remote.assemble(request_for(tiny, timeout=0.3))
        assert caught.value.reason is Reason.DEADLINE
        gate.open.set()
        assert (await remote.assemble(request_for(tiny, timeout=5.0))).artefact
        await channel.close()
