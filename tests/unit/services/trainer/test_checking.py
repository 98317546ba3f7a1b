"""Checks that hang, and too many of them: callers are told, and other threads stay free."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.errors import Fault, Reason
from services.ports import JobParameters
from services.trainer import checking, plan
from services.trainer.checking import Checks
from services.trainer.settings import TrainerSettings

JOB = JobParameters("synthetic", recipe="quick")


@pytest.fixture
def hanging(monkeypatch):
    """Checks of `slow` logs return once this is set."""
    go_on = threading.Event()

    def check(parameters, *_):
        if parameters.data == "slow":
            go_on.wait(30)
        if parameters.data == "bad":
            raise plan.BadParameters("no log")

    monkeypatch.setattr(plan, "check", check)
    yield go_on
    go_on.set()


def checks(folder, seconds: float = 20.0) -> Checks:
    return Checks(
        TrainerSettings("redis://localhost", folder / "h", folder / "r", check_seconds=seconds)
    )


async def refused(call) -> Fault:
    with pytest.raises(Fault) as raised:
        await call
    return raised.value


async def test_what_is_wrong_with_a_job_is_told(tmp_path, hanging):
    fault = await refused(checks(tmp_path).check(JobParameters("bad")))
    assert fault.reason is Reason.BAD_JOB
    assert "no log" in fault.text


async def test_a_check_that_hangs_is_given_up_and_others_may_try_again(tmp_path, hanging):
    some = checks(tmp_path, 0.2)
    many = [some.check(JobParameters("slow")) for _ in range(checking._AT_ONCE + 3)]
    faults = await asyncio.gather(*map(refused, many))
    assert {fault.reason for fault in faults} == {Reason.UNCHECKED_JOB}
    assert "longer than 0.2 s" in faults[0].text and faults[0].retry is not None
    # Nobody's thread but those of the checks is held.
    await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)
    assert (await refused(some.check(JOB))).reason is Reason.UNCHECKED_JOB
    hanging.set()
    await checks(tmp_path).check(JOB)
    await _until_it_passes(some)


async def _until_it_passes(some: Checks) -> None:
    for _ in range(50):
        try:
            return await some.check(JOB)
        except Fault:
            await asyncio.sleep(0.05)
    raise AssertionError("places were lost")


async def test_too_many_at_once_are_refused_at_once(tmp_path, hanging):
    some = checks(tmp_path)
    count = checking._AT_ONCE + checking._WAITING
    waiting = [asyncio.create_task(some.check(JobParameters("slow"))) for _ in range(count)]
    await asyncio.sleep(0.1)
    fault = await asyncio.wait_for(refused(some.check(JOB)), 1)
    assert fault.reason is Reason.UNCHECKED_JOB and "too many" in fault.text
    hanging.set()
    await asyncio.gather(*waiting)
    await some.check(JOB)
