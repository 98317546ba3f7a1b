"""Limits, windows and paces, by themselves."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.errors import Fault, Reason
from services.runtime.admission import Admission, Pacer, Unread


def refusal(call, *arguments):
    with pytest.raises(Fault) as caught:
        call(*arguments)
    return caught.value


def test_the_window_grows_with_the_overload_and_shrinks_after():
    admission = Admission(4)
    for _ in range(4):
        admission.enter()
    for _ in range(200):
        admission._mean += (0.05 - admission._mean) / 16
    windows = [refusal(admission.enter).retry for _ in range(4000)]
    assert all(100 <= earliest < latest <= 60_000 for earliest, latest in windows)
    assert windows[0] == (100, 200)
    # 4 at once, 50 ms each: 80 a second, so the thousandth that is refused waits 12 s.
    assert windows[999][0] == pytest.approx(12_500, rel=0.1)
    assert windows[-1][0] == 30_000
    # Most of those who were told to come have been served by then.
    admission._returning_at -= 29
    assert refusal(admission.enter).retry[0] < 1_500


class Clock:
    """In place of the module `time`."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("services.runtime.admission.time", clock)
    return clock


def serve(admission, clock, rate, seconds, offered):
    """A server that answers `rate` calls a second, one after the other, while `offered` a second
    come. Returns how long the answered waited, in order, and how many were refused."""
    entered, waits, refused = [], [], 0
    end, due = clock.now + seconds, clock.now
    next_answer = clock.now + 1 / rate
    while clock.now < end:
        clock.now = min(due, next_answer)
        if clock.now == due:
            due += 1 / offered
            try:
                admission.enter()
            except Fault:
                refused += 1
            else:
                entered.append(clock.now)
                if len(entered) == 1:
                    next_answer = clock.now + 1 / rate
        elif entered:
            waits.append(clock.now - entered.pop(0))
            admission.leave(waits[-1])
            next_answer += 1 / rate
        else:
            next_answer = due
    while entered:
        clock.now = next_answer
        waits.append(clock.now - entered.pop(0))
        admission.leave(waits[-1])
        next_answer += 1 / rate
    return waits, refused


def test_in_an_overload_the_accepted_wait_about_the_target(clock):
    admission = Admission(256, target_ms=100, calm=64)
    waits, refused = serve(admission, clock, rate=200, seconds=10, offered=1000)
    assert len(waits) > 1900 and refused > 7000
    settled = sorted(waits[200:])
    assert 0.05 < settled[len(settled) // 2] < 0.15
    assert settled[-1] < 0.2


def test_a_burst_is_let_in_whole_and_again_after_an_overload(clock):
    admission = Admission(256, target_ms=100, calm=64)
    for _ in range(3):
        waits, refused = serve(admission, clock, rate=100, seconds=0.063, offered=1000)
        assert refused == 0 and max(waits) > 0.4
    serve(admission, clock, rate=100, seconds=5, offered=1000)
    assert admission.limit < 20
    clock.now += 1.1
    waits, refused = serve(admission, clock, rate=100, seconds=0.063, offered=1000)
    assert refused == 0


def test_a_busy_time_is_no_overload(clock):
    admission = Admission(256, target_ms=100, calm=64)
    waits, refused = serve(admission, clock, rate=200, seconds=15, offered=203)
    assert max(waits) > 0.2
    assert refused == 0 and admission.limit == 64


def test_impossible_deadlines_keep_nobody_else_out(clock):
    admission = Admission(256, target_ms=100, calm=64)
    serve(admission, clock, rate=100, seconds=5, offered=1000)
    assert admission.limit < 20
    for _ in range(20):
        clock.now += 0.1
        with pytest.raises(Fault):
            admission.check_deadline(0.001)
    _, refused = serve(admission, clock, rate=100, seconds=0.04, offered=1000)
    assert refused == 0


def test_the_limit_never_falls_so_far_that_nothing_is_done(clock):
    admission = Admission(256, target_ms=100, calm=64)
    serve(admission, clock, rate=2, seconds=60, offered=100)
    assert admission.limit == 8


def test_the_limit_grows_while_many_come_and_are_served_well(clock):
    admission = Admission(256, target_ms=100, calm=64)
    for _ in range(60_000):
        clock.now += 0.001
        admission.running = int(admission.limit)
        admission.leave(0.02)
    assert admission.limit == 256
    before = admission.limit
    for _ in range(100):
        admission.running = 2
        admission.leave(0.001)
    assert admission.limit == before


def test_a_limit_without_a_target_stays():
    admission = Admission(3)
    for _ in range(100):
        admission.enter()
        admission.leave(5.0)
    assert admission.limit == 3


def test_deadlines_that_cannot_be_met_are_refused_but_tried_again():
    admission = Admission(10)
    assert refusal(admission.check_deadline, 0.0).reason is Reason.DEADLINE
    for _ in range(200):
        admission.enter()
        admission.leave(1.0)
    assert refusal(admission.check_deadline, 0.1).reason is Reason.DEADLINE
    admission.check_deadline(2.0)
    # Nothing is measured any more, and still the service does not refuse for ever.
    for _ in range(100):
        try:
            admission.check_deadline(0.1)
            break
        except Fault:
            pass
    else:
        pytest.fail("refused for ever")


def test_calls_that_were_given_up_count_when_they_were_slow(clock):
    admission = Admission(100, target_ms=50, calm=100)
    for _ in range(50):
        admission.enter()
        admission.leave(0.001, whole=False)
    assert admission.limit == 100
    before = admission._mean
    assert before > 0.005, "a refusal is quick and says nothing about the calls"
    for _ in range(50):
        clock.now += 0.2
        admission.running = 100
        refusal(admission.enter)
        admission.leave(1.0, whole=False)
    assert admission.limit < 100
    assert admission._mean > before


def test_a_download_that_has_some_time_is_let_in():
    admission = Admission(10, resumable=True)
    for _ in range(100):
        admission.enter()
        admission.leave(60.0)
    admission.check_deadline(1.0)
    assert refusal(admission.check_deadline, 0.0).reason is Reason.DEADLINE


async def test_a_pace_is_kept_by_all_together():
    pacer = Pacer(100_000)

    async def send():
        for _ in range(5):
            await pacer.pause(1000)

    started = time.monotonic()
    await asyncio.gather(*(send() for _ in range(4)))
    assert 0.15 < time.monotonic() - started < 0.6
    await Pacer(0).pause(1 << 40)


class Caller:
    """What Unread asks a call's context for."""

    def __init__(self, peer):
        self._peer = peer

    def peer(self):
        return self._peer


async def test_who_hoards_replies_is_refused_before_others():
    unread, sent = Unread(16_000), asyncio.Event()

    async def reply(caller, size):
        unread.add(caller, size)
        await sent.wait()

    hoarder, other, proxy = Caller("ipv4:1"), Caller("ipv4:2"), Caller("ipv4:3")
    tasks = [asyncio.create_task(reply(hoarder, 1_000)) for _ in range(2)]
    tasks += [asyncio.create_task(reply(proxy, size)) for size in (100, 0, 0)]
    await asyncio.sleep(0)
    assert unread.total == 4_200, "each counts twice"
    fault = refusal(unread.check, hoarder)
    assert (fault.reason, fault.retry) == (Reason.OVERLOADED, (1_000, 5_000))
    unread.check(other)
    unread.check(proxy)
    tasks.append(asyncio.create_task(reply(other, 6_000)))
    await asyncio.sleep(0)
    assert refusal(unread.check, Caller("ipv4:4")).reason is Reason.OVERLOADED, "it is full"
    sent.set()
    await asyncio.gather(*tasks)
    assert unread.total == 0 and not unread._held
