"""What only one keeper of sessions has: bounds and clock in memory, the bytes in Redis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ports import SessionCandidates
from services.runtime.metrics import Metrics
from services.sessions.codec import decode, encode
from services.sessions.memory import MemorySessions


def candidates(*indices):
    return SessionCandidates("v1", list(indices), "etag")


async def test_memory_forgets_the_least_recently_used():
    store = MemorySessions(Metrics(), ttl_seconds=60, limit=2)
    await store.put("session-a", candidates(1))
    await store.put("session-b", candidates(2))
    await store.get("session-a")
    await store.put("session-c", candidates(3))
    assert await store.get("session-b") is None
    assert await store.get("session-a") == candidates(1)
    assert await store.get("session-c") == candidates(3)


async def test_memory_goes_by_the_clock():
    now = 100.0
    store = MemorySessions(Metrics(), ttl_seconds=10, limit=2, clock=lambda: now)
    await store.put("session-a", candidates(1))
    now = 109.9
    assert await store.get("session-a") == candidates(1)
    now = 110.0
    assert await store.get("session-a") is None
    now = 100.0
    assert await store.get("session-a") is None, "forgotten for good"


texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=255)


@given(texts, texts, st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_codec_round_trip(version, etag, indices):
    sent = SessionCandidates(version, indices, etag)
    assert decode(encode(sent)) == sent


@given(st.binary(max_size=60).map(lambda tail: b"FOS1" + tail) | st.binary(max_size=20))
def test_codec_reads_rubbish_as_rubbish(value):
    try:
        decoded = decode(value)
    except ValueError:
        return
    assert encode(decoded) == value


def test_codec_truncated():
    value = encode(SessionCandidates("version", [1, 2], "etag"))
    for size in range(len(value)):
        if size not in (len(value) - 4, len(value) - 8):
            with pytest.raises(ValueError):
                decode(value[:size])
