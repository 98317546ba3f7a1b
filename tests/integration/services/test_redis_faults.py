"""Redis dies, hangs, comes back, or holds rubbish: sessions are forgotten, nothing fails."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
import redis

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics
from services.sessions.redis import RedisSessions
from tests.support.redis_server import RedisServer

CANDIDATES = SessionCandidates("v1", [1, 2, 3], "etag")


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(server):
    store = RedisSessions(server.url, Metrics(), ttl_seconds=60, pause=0.2)
    yield store
    await store.close()


def errors(store):
    registry = store._metrics.registry
    return registry.get_sample_value("forward_ofa_session_cache_total", {"result": "error"}) or 0


async def test_killed_and_restarted(server, store, caplog):
    caplog.set_level(logging.INFO, "services")
    await store.put("session-1", CANDIDATES)
    server.kill()
    for _ in range(20):
        assert await store.get("session-1") is None
        await store.put("session-1", CANDIDATES)
        await asyncio.sleep(0.02)
    assert errors(store) == 20
    assert [r.message for r in caplog.records].count("Redis fails, sessions are forgotten") == 1, (
        "logged once, not for each request"
    )
    server.start()
    await asyncio.sleep(0.3)
    await store.put("session-1", CANDIDATES)
    assert await store.get("session-1") == CANDIDATES
    assert caplog.records[-1].message == "Redis is back"


async def test_never_there(tmp_path):
    url = f"unix://{tmp_path}/none.sock"
    store = RedisSessions(url, Metrics(), ttl_seconds=60)
    await store.put("session-1", CANDIDATES)
    assert await store.get("session-1") is None
    await store.close()


async def test_a_silent_server_costs_one_timeout_not_many(server, store):
    await store.put("session-1", CANDIDATES)
    server.freeze(True)
    started = time.monotonic()
    for _ in range(50):
        assert await store.get("session-1") is None
    assert time.monotonic() - started < 0.4
    server.freeze(False)
    await asyncio.sleep(0.3)
    assert await store.get("session-1") == CANDIDATES


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"FOS1", b"FOS1\xff", b"\x80\x04." * 50])
async def test_rubbish_is_no_session(server, store, rubbish):
    with redis.Redis.from_url(server.url) as other:
        other.set("forward-ofa:session:session-1", rubbish)
        assert await store.get("session-1") is None
        assert errors(store) == 1
        other.delete("forward-ofa:session:session-1")
        other.lpush("forward-ofa:session:session-1", "a list")
    assert await store.get("session-1") is None
    assert errors(store) == 2


async def test_what_redis_holds(server, store):
    """Short, expiring, and nothing of the interest."""
    await store.put("session-1", CANDIDATES)
    with redis.Redis.from_url(server.url) as other:
        assert other.keys() == [b"forward-ofa:session:session-1"]
        assert 0 < other.ttl("forward-ofa:session:session-1") <= 60
        assert len(other.get("forward-ofa:session:session-1")) == 4 + 3 + 5 + 12
