"""One suite for every keeper of sessions: in memory, and in a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics
from services.sessions.memory import MemorySessions
from services.sessions.redis import RedisSessions
from tests.support.redis_server import RedisServer

TTL = 0.3


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
        made = MemorySessions(metrics, ttl_seconds=TTL, limit=100)
    else:
        server = request.getfixturevalue("server")
        # A busy machine may exceed the default timeout, which is a miss: not what is tested here.
        prefix = f"{id(metrics)}:"
        made = RedisSessions(server.url, metrics, ttl_seconds=TTL, prefix=prefix, timeout=5.0)
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


def candidates(*indices, version="v1"):
    return SessionCandidates(version, list(indices), "0123456789abcdef")


async def test_unknown_is_a_miss(store, metrics):
    assert await store.get("session-1") is None
    assert counts(metrics) == {"hit": 0, "miss": 1, "error": 0}


@pytest.mark.parametrize("indices", [(), (0,), (5, 3, 4_000_000_000), tuple(range(2000))])
async def test_round_trip(store, metrics, indices):
    await store.put("session-1", candidates(*indices))
    got = await store.get("session-1")
    assert got == candidates(*indices)
    assert [type(i) for i in got.indices] == [int] * len(indices)
    assert counts(metrics)["hit"] == 1


async def test_the_last_put_counts(store):
    await store.put("session-1", candidates(1))
    await store.put("session-1", candidates(2, version="v2"))
    assert await store.get("session-1") == candidates(2, version="v2")


async def test_sessions_are_apart(store):
    await store.put("session-1", candidates(1))
    await store.put("session-2", candidates(2))
    assert await store.get("session-1") == candidates(1)
    assert await store.get("session-2") == candidates(2)


async def test_forgets_after_its_time(store, metrics):
    await store.put("session-1", candidates(1))
    await asyncio.sleep(TTL + 0.1)
    assert await store.get("session-1") is None
    assert counts(metrics) == {"hit": 0, "miss": 1, "error": 0}


async def test_many_at_once(store):
    names = [f"session-{n:04d}" for n in range(90)]
    await asyncio.gather(*(store.put(n, candidates(i)) for i, n in enumerate(names)))
    got = await asyncio.gather(*(store.get(n) for n in names))
    assert [g.indices for g in got] == [[i] for i in range(90)]
