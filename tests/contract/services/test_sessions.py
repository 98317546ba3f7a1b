"""One suite for every keeper of sessions: in memory, and in a real Redis."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics
from services.sessions.memory import MemorySessions
from services.sessions.redis import RedisSessions
from tests.support.redis_server import RedisServer

TTL = 2.0
PATIENT = 5.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture(params=["memory", "redis"])
async def store(request, metrics):
    if request.param == "memory":
        made = MemorySessions(metrics, ttl_seconds=TTL, limit=1000)
    else:
        server = request.getfixturevalue("server")
        # A busy machine may exceed the default timeout, which is a miss: not what is tested here.
        prefix = f"{id(metrics)}:"
        made = RedisSessions(server.url, metrics, ttl_seconds=TTL, prefix=prefix, timeout=PATIENT)
    yield made
    await made.close()


def counts(metrics):
    return {
        result: metrics.registry.get_sample_value(
            "forward_ofa_session_cache_total", {"result": result}
        )
        or 0
        for result in ("hit", "miss", "error")
    }


def candidates(*rows, version="v1"):
    return SessionCandidates(version, np.array(rows, "<u4").tobytes())


async def settled(store):
    """Until all that was put is written."""
    worker = getattr(store, "_worker", None)
    if worker is not None:
        await worker


async def test_unknown_is_a_miss(store, metrics):
    assert await store.get("session-1") is None
    assert counts(metrics) == {"hit": 0, "miss": 1, "error": 0}


@pytest.mark.parametrize("rows", [(), (0,), (5, 3, 4_000_000_000), tuple(range(2000))])
async def test_round_trip(store, metrics, rows):
    store.put("session-1", candidates(*rows))
    assert await store.get("session-1") == candidates(*rows)
    await settled(store)
    assert await store.get("session-1") == candidates(*rows)
    assert counts(metrics)["hit"] == 2


async def test_what_was_put_last_counts(store):
    store.put("session-1", candidates(1))
    store.put("session-1", candidates(2, version="v2"))
    assert await store.get("session-1") == candidates(2, version="v2"), "before it is written"
    await settled(store)
    assert await store.get("session-1") == candidates(2, version="v2")


async def test_swap_tells_what_was_there(store, metrics):
    assert await store.swap("session-1", candidates(1)) is None
    assert await store.swap("session-1", candidates(2)) == candidates(1)
    store.put("session-1", candidates(3))
    assert await store.swap("session-1", candidates(4)) == candidates(3)
    await settled(store)
    assert await store.get("session-1") == candidates(4)
    assert counts(metrics) == {"hit": 3, "miss": 1, "error": 0}


async def test_sessions_are_apart(store):
    store.put("session-1", candidates(1))
    store.put("session-2", candidates(2))
    await settled(store)
    assert await store.get("session-1") == candidates(1)
    assert await store.get("session-2") == candidates(2)


async def test_forgets_after_its_time(store, metrics):
    store.put("session-1", candidates(1))
    await settled(store)
    await asyncio.sleep(TTL + 0.1)
    assert await store.get("session-1") is None
    assert counts(metrics) == {"hit": 0, "miss": 1, "error": 0}


async def test_its_time_starts_anew_with_each_use(store):
    store.put("session-1", candidates(1))
    for _ in range(4):
        await settled(store)
        await asyncio.sleep(TTL / 2)
        assert await store.get("session-1") == candidates(1)


async def test_many_at_once(store):
    names = [f"session-{n:04d}" for n in range(300)]
    for row, name in enumerate(names):
        store.put(name, candidates(row))
    await settled(store)
    got = await asyncio.gather(*(store.get(name) for name in names))
    assert got == [candidates(row) for row in range(300)]
    before = await asyncio.gather(*(store.swap(name, candidates(9)) for name in names))
    assert before == got


async def test_close_writes_what_was_put(server):
    first = RedisSessions(server.url, Metrics(), ttl_seconds=60, prefix="closing:")
    for row in range(200):
        first.put(f"session-{row}", candidates(row))
    await first.close()
    second = RedisSessions(
        server.url, Metrics(), ttl_seconds=60, prefix="closing:", timeout=PATIENT
    )
    got = await asyncio.gather(*(second.get(f"session-{row}") for row in range(200)))
    await second.close()
    assert got == [candidates(row) for row in range(200)]
