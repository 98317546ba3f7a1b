"""Sentinel and Cluster, as they are deployed: a master that fails over, slots that move."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from redis.crc import key_slot

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics
from services.sessions.redis import RedisSessions
from tests.support.redis_server import Cluster, Sentinels

PREFIX = "forward-ofa:session:"


def candidates(*rows):
    return SessionCandidates("v1", np.array(rows, "<u4").tobytes())


def sessions(url):
    return RedisSessions(url, Metrics(), ttl_seconds=60, timeout=1.0, pause=0.1)


async def remembers(store, name, rows, seconds=20):
    """Until what is put is there, in Redis."""
    end = time.monotonic() + seconds
    while True:
        store.put(name, candidates(*rows))
        if store._worker is not None:
            await store._worker
        if await store.get(name) == candidates(*rows):
            return
        assert time.monotonic() < end, "it does not recover"
        await asyncio.sleep(0.05)


def failures(store):
    return sum(
        sample.value
        for metric in store._metrics.registry.collect()
        if metric.name == "forward_ofa_session_store_failures"
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


@pytest.mark.slow
async def test_sentinel_fails_over(tmp_path):
    setup = Sentinels(tmp_path)
    store = sessions(setup.url)
    try:
        setup.start()
        await remembers(store, "session-1", [1, 2])
        with setup.nodes[1].client() as replica, setup.nodes[0].client() as master:
            assert master.wait(1, 5000) == 1
            assert replica.exists(PREFIX + "session-1"), "written to the master, replicated"
        # The first sentinel goes too: the others are asked.
        setup.sentinels[0].kill()
        setup.nodes[0].kill()
        longest = 0.0
        for _ in range(50):
            started = time.monotonic()
            await store.swap("session-2", candidates(3))
            longest = max(longest, time.monotonic() - started)
            await asyncio.sleep(0.02)
        assert longest < 1.5
        assert failures(store) > 0
        await remembers(store, "session-3", [4, 5])
        with setup.nodes[1].client() as promoted:
            assert promoted.exists(PREFIX + "session-3")
            assert promoted.role()[0] == b"master"
        assert await store.get("session-1") == candidates(1, 2), "what was replicated is there"
    finally:
        await store.close()
        setup.kill()


@pytest.mark.slow
async def test_cluster_with_slots_that_move(tmp_path):
    setup = Cluster(tmp_path)
    store = sessions(setup.url)
    names = [f"session-{n}" for n in range(90)]
    try:
        setup.start()
        for row, name in enumerate(names):
            store.put(name, candidates(row))
        await store._worker
        counts = []
        for node in setup.nodes:
            with node.client() as client:
                counts.append(client.dbsize())
        assert sum(counts) == 90 and min(counts) > 10, "spread over all nodes"
        moved = "session-moved"
        await remembers(store, moved, [7])
        _move_slot(setup, key_slot((PREFIX + moved).encode()))
        before = failures(store)
        assert await store.swap(moved, candidates(8)) == candidates(7), "MOVED is followed"
        await store._worker
        got = await asyncio.gather(*(store.get(name) for name in names))
        assert got == [candidates(row) for row in range(90)]
        assert failures(store) == before
    finally:
        await store.close()
        setup.kill()


@pytest.mark.slow
async def test_cluster_without_one_of_its_nodes(tmp_path):
    setup = Cluster(tmp_path)
    store = sessions(setup.url)
    names = [f"session-{n}" for n in range(30)]
    try:
        setup.start()
        for name in names:
            await remembers(store, name, [1])
        setup.nodes[2].kill()
        for name in names:
            started = time.monotonic()
            await store.swap(name, candidates(2))
            assert time.monotonic() - started < 1.5
        assert failures(store) > 0
        setup.nodes[2].start()
        for name in names:
            await remembers(store, name, [3])
    finally:
        await store.close()
        setup.kill()


def _move_slot(setup, slot):
    """As redis-cli --cluster reshard does, for one slot."""
    clients = [node.client() for node in setup.nodes]
    ids = [client.execute_command("CLUSTER MYID").decode() for client in clients]
    owner = next(i for i, c in enumerate(clients) if c.execute_command(
        "CLUSTER COUNTKEYSINSLOT", slot))  # fmt: skip
    target = (owner + 1) % 3
    clients[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[owner])
    clients[owner].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    for key in clients[owner].execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        clients[owner].execute_command(
            "MIGRATE", "127.0.0.1", setup.nodes[target].port, key, 0, 5000
        )
    for client in clients:
        client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
        client.close()
