"""Redis dies, hangs, is full, refuses, comes back, or holds rubbish: sessions are forgotten,
nothing fails or waits, the metric says why, and all is well once Redis is."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time

import numpy as np
import pytest
import redis

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics
from services.sessions.redis import RedisSessions
from tests.support.redis_server import RedisNode, RedisServer

CANDIDATES = SessionCandidates("v1", np.array([1, 2, 3], "<u4").tobytes())
OTHERS = SessionCandidates("v1", np.array([4, 5], "<u4").tobytes())
KEY = "forward-ofa:session:session-1"


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


def sessions(url, **options):
    return RedisSessions(url, Metrics(), **{"ttl_seconds": 60, "pause": 0.1, **options})


@pytest.fixture
async def store(server):
    store = sessions(server.url)
    yield store
    await store.close()


def failures(store):
    """(operation, kind) -> how often."""
    return {
        (sample.labels["operation"], sample.labels["kind"]): sample.value
        for metric in store._metrics.registry.collect()
        if metric.name == "forward_ofa_session_store_failures"
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def errors(store):
    registry = store._metrics.registry
    return registry.get_sample_value("forward_ofa_session_cache_total", {"result": "error"}) or 0


async def written(store):
    if store._worker is not None:
        await store._worker


async def recovered(store, seconds=10):
    """Until it remembers again; a busy machine may miss a deadline now and then."""
    end = time.monotonic() + seconds
    while True:
        store.put("session-1", CANDIDATES)
        await written(store)
        if await store.get("session-1") == CANDIDATES:
            return
        assert time.monotonic() < end, failures(store)
        await asyncio.sleep(0.02)


async def test_killed_and_restarted(server, store, caplog):
    caplog.set_level(logging.INFO, "services")
    await recovered(store)
    before = errors(store)
    server.kill()
    for _ in range(20):
        assert await store.swap("session-1", CANDIDATES) is None
        store.put("session-1", CANDIDATES)
        await asyncio.sleep(0.02)
    assert errors(store) - before == 20
    found = failures(store)
    assert found["read", "connection"] >= 1 and found["read", "skipped"] >= 10
    messages = [r.message for r in caplog.records]
    assert messages.count("Redis fails, sessions are forgotten") == 1, "not for each request"
    server.start()
    await recovered(store)
    assert caplog.records[-1].message == "Redis is back"


async def test_never_there(tmp_path):
    store = sessions(f"unix://{tmp_path}/none.sock")
    store.put("session-1", CANDIDATES)
    await written(store)
    assert await store.get("session-1") is None
    await store.close()


async def test_a_silent_server_costs_one_timeout_not_many(server, store):
    await recovered(store)
    server.freeze(True)
    started = time.monotonic()
    waits = []
    for _ in range(40):
        asked = time.monotonic()
        assert await store.get("session-2") is None
        waits.append(time.monotonic() - asked)
        await asyncio.sleep(0.02)
    assert time.monotonic() - started > 0.7, "several probes were due by then"
    assert sum(wait > 0.02 for wait in waits) <= 2, "who asked first waited, others did not"
    assert max(waits) < 0.3
    assert failures(store)["read", "timeout"] >= 1
    server.freeze(False)
    await recovered(store)


async def test_requests_that_wait_together_wait_once(server, store):
    await recovered(store)
    server.freeze(True)
    started = time.monotonic()
    names = [f"session-{n}" for n in range(200)]
    assert set(await asyncio.gather(*(store.swap(n, OTHERS) for n in names))) == {None}
    assert time.monotonic() - started < 0.5
    server.freeze(False)


async def test_writes_never_wait_and_are_bounded(server):
    store = sessions(server.url, pending=50)
    await recovered(store)
    server.freeze(True)
    started = time.monotonic()
    for number in range(1000):
        store.put(f"session-{number}", OTHERS)
    assert time.monotonic() - started < 0.2
    assert len(store._next) <= 50
    assert failures(store)["write", "dropped"] >= 900
    server.freeze(False)
    await recovered(store)
    await store.close()


async def test_full(server):
    """maxmemory with noeviction: what is there can be read, what is new cannot be kept."""
    store = sessions(server.url, timeout=5.0)
    await recovered(store)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", "100kb")
        assert await store.swap("session-1", OTHERS) == CANDIDATES
        await written(store)
        store.put("session-2", OTHERS)
        await written(store)
        assert await store.get("session-1") == CANDIDATES, "the write was refused, not the read"
        assert await store.get("session-2") is None
        assert failures(store)["write", "full"] == 2
        assert ("read", "full") not in failures(store)
        admin.config_set("maxmemory", "64mb")
    await recovered(store)
    await store.close()


@pytest.fixture
def pair(tmp_path):
    master = RedisNode(tmp_path)
    replica = RedisNode(tmp_path, "--replicaof", "127.0.0.1", str(master.port))
    try:
        yield master.start(), replica.start()
    finally:
        replica.kill()
        master.kill()


async def test_a_replica_is_read_from_and_left_once_it_is_a_master(pair):
    master, replica = pair
    with master.client() as client:
        writer = sessions(f"redis://127.0.0.1:{master.port}", timeout=2.0)
        await recovered(writer)
        await writer.close()
        assert client.wait(1, 5000) == 1
    store = sessions(f"redis://127.0.0.1:{replica.port}", timeout=2.0)
    assert await store.swap("session-1", OTHERS) == CANDIDATES
    assert failures(store) == {("write", "readonly"): 1}
    with replica.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    await recovered(store)
    await store.close()


async def test_wrong_password_then_the_right_one(server):
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", "other")
        store = sessions(server.url.replace("unix://", "unix://:secret@"))
        for _ in range(5):
            assert await store.swap("session-1", CANDIDATES) is None
            await asyncio.sleep(0.01)
        assert failures(store).get(("read", "auth"), 0) >= 1, failures(store)
        admin.config_set("requirepass", "secret")
    await recovered(store)
    await store.close()


@pytest.mark.parametrize(
    "rubbish", [b"", b"rubbish", b"FOS2", b"FOS2\xff", b"\x80\x04." * 50, b"FOS2" + bytes(200)]
)
async def test_rubbish_is_no_session(server, rubbish):
    store = sessions(server.url, timeout=5.0)
    with redis.Redis.from_url(server.url) as other:
        other.set(KEY, rubbish)
        assert await store.get("session-1") is None
        assert failures(store) == {("read", "rubbish"): 1}
        other.delete(KEY)
        other.lpush(KEY, "a list")
        assert await store.get("session-1") is None
        assert failures(store) == {("read", "rubbish"): 2}
        assert await store.swap("session-1", CANDIDATES) is None
        other.set("forward-ofa:session:session-2", other.get(KEY))
    assert await store.get("session-1") == CANDIDATES, "what is written replaces it"
    assert await store.get("session-2") is None, "it is another session's"
    await store.close()


async def test_what_is_no_redis_at_all():
    """Answers, but in no protocol that Redis speaks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_babble, args=(listener,), daemon=True).start()
        store = sessions(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        for _ in range(20):
            assert await store.swap("session-1", CANDIDATES) is None
        assert time.monotonic() - started < 0.5
        await store.close()
        listener.shutdown(socket.SHUT_RDWR)


def _babble(listener):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)


async def test_a_flood_of_cancelled_readers_mixes_no_sessions(server):
    """A broken-off read must not leave its answer for the next one."""
    store = sessions(server.url, timeout=5.0)
    names = [f"session-{n}" for n in range(60)]
    lists = {
        n: SessionCandidates("v1", np.array([i], "<u4").tobytes()) for i, n in enumerate(names)
    }
    for name in names:
        store.put(name, lists[name])
    await written(store)
    rng = np.random.default_rng(0)

    async def read(name):
        try:
            async with asyncio.timeout(rng.uniform(0, 0.002)):
                return await store.get(name)
        except TimeoutError:
            return lists[name]

    for _ in range(20):
        found = await asyncio.gather(*(read(name) for name in names))
        assert found == list(lists.values())
    await store.close()


async def test_what_redis_holds(server):
    """Short, expiring, and nothing of the interest."""
    store = sessions(server.url, timeout=5.0)
    store.put("session-1", CANDIDATES)
    await written(store)
    with redis.Redis.from_url(server.url) as other:
        assert other.keys() == [KEY.encode()]
        assert 0 < other.ttl(KEY) <= 60
        assert len(other.get(KEY)) == 14 + len("v1") + 2 * 3
    await store.close()
