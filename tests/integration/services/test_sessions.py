"""A session, as a device has it: the second answer holds only what is new. With sessions in
memory, in Redis, and in a Redis that fails."""

from __future__ import annotations

import asyncio
import logging

import grpc
import numpy as np
import pytest
import redis

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device import Device
from services.controller.settings import ControllerSettings
from services.registry.files import FileRegistry
from services.sessions.settings import SessionSettings
from tests.support.redis_server import RedisServer
from tests.support.serving import network_request, running
from tests.support.versions import publish

SHOWN = ControllerSettings(candidates=30)


@pytest.fixture
def registry(tmp_path):
    return FileRegistry(tmp_path / "registry")


@pytest.fixture(params=["memory", "redis"])
def sessions(request, tmp_path):
    if request.param == "memory":
        yield SessionSettings()
        return
    server = RedisServer(tmp_path)
    server.start()
    yield SessionSettings(url=server.url, timeout_seconds=5)
    server.kill()


def near(tiny, step):
    """Interests that drift: consecutive ones share many candidates."""
    interest = tiny.interest(0) + 0.1 * step * tiny.interest(1)
    return types.Interest(values=interest.astype("<f4").tobytes())


async def test_the_second_answer_is_partial(registry, sessions):
    tiny = publish(registry, "v1", items=300)
    async with (
        running(registry.root, sessions=sessions, controlling=SHOWN) as services,
        grpc.aio.insecure_channel(services.address) as channel,
    ):
        stub = ControllerServiceStub(channel)
        first = (await stub.RequestNetwork(network_request(tiny))).candidates
        held = list(first.item_ids)
        etag = first.etag
        for step in range(1, 8):
            ask = network_request(
                tiny,
                interest=near(tiny, step),
                held_candidates_etag=etag,
                accept_partial_candidates=True,
            )
            reply = await stub.RequestNetwork(ask)
            found = reply.candidates
            assert found.base_etag == etag, step
            new = iter(found.item_ids)
            positions = np.frombuffer(found.held_positions, "<u2")
            held = [next(new) if at == 0xFFFF else held[at] for at in positions]
            best = tiny.best(np.frombuffer(ask.interest.values, "<f4"), 30)
            assert held == best, step
            assert len(found.item_ids) < 30
            assert len(found.embeddings) == 2 * 8 * len(found.item_ids)
            ids = sum(map(len, found.item_ids))
            assert reply.cost.candidate_bytes == len(found.embeddings) + ids + 60
            etag = found.etag
        alone = api.GetCandidatesRequest(
            version="v1",
            session_id=ask.session_id,
            interest=near(tiny, 9),
            held_candidates_etag=etag,
            accept_partial_candidates=True,
        )
        found = (await stub.GetCandidates(alone)).candidates
        assert found.base_etag == etag
        whole = (await stub.GetCandidates(_without_interest(ask.session_id))).candidates
        assert list(whole.item_ids) == tiny.best(np.frombuffer(alone.interest.values, "<f4"), 30), (
            "one's own write can be read at once"
        )


def _without_interest(session_id):
    return api.GetCandidatesRequest(version="v1", session_id=session_id)


async def test_old_clients_get_whole_lists(registry, sessions):
    tiny = publish(registry, "v1", items=300)
    async with (
        running(registry.root, sessions=sessions, controlling=SHOWN) as services,
        grpc.aio.insecure_channel(services.address) as channel,
    ):
        stub = ControllerServiceStub(channel)
        first = (await stub.RequestNetwork(network_request(tiny))).candidates
        ask = network_request(tiny, interest=near(tiny, 1), held_candidates_etag=first.etag)
        found = (await stub.RequestNetwork(ask)).candidates
        assert (found.base_etag, found.held_positions, len(found.item_ids)) == ("", b"", 30)


@pytest.mark.parametrize("change", ["encoding", "session", "version", "etag"])
async def test_whole_lists_where_nothing_is_shared(registry, sessions, change):
    tiny = publish(registry, "v1", items=300)
    publish(registry, "v2", items=300, label="canary", seed=1)
    async with (
        running(registry.root, sessions=sessions, controlling=SHOWN) as services,
        grpc.aio.insecure_channel(services.address) as channel,
    ):
        stub = ControllerServiceStub(channel)
        first = (await stub.RequestNetwork(network_request(tiny))).candidates
        changes = {
            "encoding": {"accepted_encodings": [types.ENCODING_INT8]},
            "session": {"session_id": "another-session"},
            "version": {"version": "v2"},
            "etag": {"held_candidates_etag": "0" * 32 + "-float16"},
        }[change]
        ask = network_request(
            tiny,
            **{
                "interest": near(tiny, 1),
                "held_candidates_etag": first.etag,
                "accept_partial_candidates": True,
                **changes,
            },
        )
        found = (await stub.RequestNetwork(ask)).candidates
        assert (found.base_etag, len(found.item_ids)) == ("", 30)


async def test_a_device_saves_bytes_and_ranks_the_same(registry, sessions, tmp_path):
    tiny = publish(registry, "v1", items=300)

    def live(folder, address, *, fresh):
        """(bytes of candidates, ranking) after each touch; fresh: with a new session each time."""
        seen = []
        with Device(tmp_path / folder, address) as device:
            for touch in range(0, 24, 3):
                device.observe(*tiny.item_ids[touch : touch + 3])
                if fresh:
                    device.start_session()
                assert device.refresh(force=True).updated
                seen.append((device.last_cost.candidate_bytes, device.rerank(top=None)))
        return seen

    async with running(registry.root, sessions=sessions, controlling=SHOWN) as services:
        one = await asyncio.to_thread(live, "one", services.address, fresh=False)
        other = await asyncio.to_thread(live, "other", services.address, fresh=True)
    for (_, ranking), (_, same) in zip(one, other, strict=True):
        assert ranking == same, "to the bit"
    assert one[0][0] == other[0][0]
    assert sum(b for b, _ in one[1:]) < 0.8 * sum(b for b, _ in other[1:])


@pytest.mark.parametrize("trouble", ["frozen", "killed", "rubbish", "full", "readonly"])
async def test_requests_succeed_whatever_redis_does(registry, tmp_path, trouble):
    tiny = publish(registry, "v1", items=300)
    server = RedisServer(tmp_path)
    server.start()
    try:
        async with (
            running(
                registry.root,
                sessions=SessionSettings(url=server.url, timeout_seconds=0.5),
                controlling=SHOWN,
            ) as services,
            grpc.aio.insecure_channel(services.address) as channel,
        ):
            stub = ControllerServiceStub(channel)
            etag = (await stub.RequestNetwork(network_request(tiny))).candidates.etag
            await _break(server, trouble)
            for step in range(1, 20):
                ask = network_request(
                    tiny,
                    interest=near(tiny, step),
                    held_candidates_etag=etag,
                    accept_partial_candidates=True,
                )
                reply = await stub.RequestNetwork(ask, timeout=5)
                assert reply.artefact.data and reply.candidates.etag
                etag = reply.candidates.etag
    finally:
        server.kill()


async def _break(server, trouble):
    if trouble in ("frozen", "killed"):
        server.freeze(True) if trouble == "frozen" else server.kill()
        return
    await asyncio.sleep(0.2)  # until the first list is written
    with redis.Redis.from_url(server.url) as admin:
        if trouble == "rubbish":
            for key in admin.scan_iter():
                admin.set(key, b"rubbish" * 50)
        elif trouble == "full":
            admin.config_set("maxmemory", "1kb")
        else:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")


async def test_no_interest_in_redis_nor_in_the_log(registry, tmp_path, caplog):
    """All of Redis and all of the log, after requests of many kinds."""
    caplog.set_level(logging.DEBUG)
    tiny = publish(registry, "v1", items=300)
    server = RedisServer(tmp_path)
    server.start()
    try:
        sessions = SessionSettings(url=server.url, timeout_seconds=5)
        async with (
            running(registry.root, sessions=sessions, controlling=SHOWN) as services,
            grpc.aio.insecure_channel(services.address) as channel,
        ):
            stub = ControllerServiceStub(channel)
            sent, etag = [], ""
            for step in range(30):
                ask = network_request(
                    tiny,
                    session_id=f"session-{step % 7:04d}",
                    interest=near(tiny, step),
                    held_candidates_etag=etag,
                    accept_partial_candidates=True,
                )
                etag = (await stub.RequestNetwork(ask)).candidates.etag
                sent.append(ask.interest.values)
            await stub.GetCandidates(
                api.GetCandidatesRequest(
                    version="v1", session_id="session-0000", interest=near(tiny, 99)
                )
            )
            sent.append(near(tiny, 99).values)
        stored = _everything(server)
    finally:
        server.kill()
    assert stored.count(b"forward-ofa:session:") == 7
    for interest in sent:
        values = np.frombuffer(interest, "<f4")
        for width in ("<f4", "<f2", "<f8"):
            raw = values.astype(width).tobytes()
            assert raw not in stored
            # Not even two neighbours of it.
            pair = 2 * np.dtype(width).itemsize
            if pair >= 8:
                assert not any(raw[at : at + pair] in stored for at in range(0, len(raw), pair))
        for value in values:
            assert f"{value:.4f}" not in caplog.text


def _everything(server):
    """All keys and values."""
    with redis.Redis.from_url(server.url) as admin:
        found = [b""]
        assert set(admin.info("keyspace")) == {"db0"}
        for key in admin.scan_iter():
            found += [key, admin.get(key)]
        return b"\n".join(found)
