"""What only one keeper of sessions has: bounds and clock in memory, the bytes in Redis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics
from services.sessions.address import parse_address
from services.sessions.codec import decode, encode
from services.sessions.memory import MemorySessions

SESSION = "session-0123"


def candidates(*rows, version="v1"):
    return SessionCandidates(version, np.array(rows, "<u4").tobytes())


async def test_memory_forgets_the_least_recently_used():
    store = MemorySessions(Metrics(), ttl_seconds=60, limit=2)
    store.put("session-a", candidates(1))
    store.put("session-b", candidates(2))
    await store.get("session-a")
    store.put("session-c", candidates(3))
    assert await store.get("session-b") is None
    assert await store.get("session-a") == candidates(1)
    assert await store.get("session-c") == candidates(3)


async def test_memory_goes_by_the_clock():
    now = 100.0
    store = MemorySessions(Metrics(), ttl_seconds=10, limit=2, clock=lambda: now)
    store.put("session-a", candidates(1))
    now = 109.9
    assert await store.get("session-a") == candidates(1), "which makes it last until 119.9"
    now = 119.8
    assert await store.swap("session-a", candidates(2)) == candidates(1)
    now = 129.8
    assert await store.get("session-a") is None
    now = 100.0
    assert await store.get("session-a") is None, "forgotten for good"


texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=255)
lists = st.lists(st.integers(0, 2**32 - 1), max_size=50) | st.lists(
    st.integers(0, 70_000), max_size=50
)


@given(texts, lists)
def test_codec_round_trip(version, rows):
    sent = candidates(*rows, version=version)
    value = encode(SESSION, sent)
    assert decode(SESSION, value) == sent
    width = 2 if max(rows, default=0) < 2**16 else 3 if max(rows) < 2**24 else 4
    assert len(value) == 14 + len(version) + width * len(rows)


@given(st.binary(max_size=60).map(lambda tail: b"FOS2" + tail) | st.binary(max_size=20))
def test_codec_refuses_rubbish(value):
    with pytest.raises(ValueError):
        decode(SESSION, value)


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.data())
def test_codec_refuses_what_was_damaged(rows, data):
    value = bytearray(encode(SESSION, candidates(*rows)))
    at = data.draw(st.integers(0, len(value) - 1))
    value[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError):
        decode(SESSION, bytes(value))


def test_codec_refuses_the_session_of_another_and_what_was_cut():
    value = encode(SESSION, candidates(1, 70_000))
    with pytest.raises(ValueError, match="another session"):
        decode("session-9876", value)
    for size in range(len(value)):
        with pytest.raises(ValueError):
            decode(SESSION, value[:size])


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "one"),
    [
        ("redis://:pw@h:1/2", "single", (), "", "redis://:pw@h:1/2"),
        (
            "redis+sentinel://u:p%40w@a:1,b/main/3?health_check_interval=5",
            "sentinel",
            (("a", 1), ("b", 26379)),
            "main",
            "redis://u:p%40w@a:1/3?health_check_interval=5",
        ),
        ("rediss+sentinel://[::1]:7/main", "sentinel", (("::1", 7),), "main", "rediss://[::1]:7/"),
        ("redis+cluster://a,b:2", "cluster", (("a", 6379), ("b", 2)), "", "redis://a:6379/"),
        ("rediss+cluster://:pw@a:1/0", "cluster", (("a", 1),), "", "rediss://:pw@a:1/0"),
    ],
)
def test_addresses(url, kind, hosts, service, one):
    address = parse_address(url)
    found = (address.kind, address.hosts, address.service, address.url)
    assert found == (kind, hosts, service, one)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/",
        "redis+sentinel://a:1/main/first",
        "redis+sentinel://a:1/main/1/2",
        "redis+sentinel:///main",
        "redis+sentinel://a:1,/main",
        "redis+cluster://a:1/1",
        "redis+cluster://",
        "redis+cluster://a:port",
        "redis+socket://",
        "unix+cluster://a",
        "redis+raft://a",
        "http://a",
    ],
)
def test_addresses_that_cannot_be(url):
    with pytest.raises(ValueError):
        parse_address(url)
