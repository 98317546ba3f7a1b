"""When a worker that is free holds itself for deaf."""

from __future__ import annotations

from services.trainer.worker import DEAF_SECONDS, Ear


def test_a_queue_that_moves_is_heard_however_long_it_is():
    ear = Ear()
    assert not any(ear.deaf(b"%d" % second, float(second)) for second in range(200))


def test_a_message_that_nobody_takes_is_not_heard():
    ear = Ear()
    assert not ear.deaf(None, 1000.0)
    assert not ear.deaf(b"a", 1001.0)
    assert not ear.deaf(b"a", 1001.0 + DEAF_SECONDS)
    assert ear.deaf(b"a", 1002.0 + DEAF_SECONDS)
    assert not ear.deaf(None, 1003.0 + DEAF_SECONDS), "taken, or nobody is free"
    assert not ear.deaf(b"a", 1004.0 + DEAF_SECONDS)
