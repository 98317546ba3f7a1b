"""Two replicas of each service: one dies or hangs under load, and clients that follow the retry
window see no failure. Nobody gets a network that is not exactly theirs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from services.registry.files import FileRegistry
from tests.support.clients import (
    TIMEOUT,
    Load,
    balanced_client,
    reasons,
    sdk_client,
    summary,
    table,
)
from tests.support.fleet import Member, fleet, wait_until_it_serves
from tests.support.stalls import Stalls
from tests.support.versions import publish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AWAY, AFTER = 1.5, 1.0
"""Seconds that a victim stays away, and of load before and after."""
HUNG = 3.0


def kill(member: Member) -> None:
    """SIGKILL, some time without it, and the same address again."""
    member.kill()
    time.sleep(AWAY)
    member.start()
    member.wait_ready()
    wait_until_it_serves(member)


def hang(member: Member, seconds: float = HUNG) -> None:
    """Alive for the kernel, which still takes its connections, but silent."""
    member.signal(signal.SIGSTOP)
    time.sleep(seconds)
    member.signal(signal.SIGCONT)
    time.sleep(AFTER)


def hang_long(member: Member) -> None:
    """Longer than a device waits."""
    hang(member, 2 * TIMEOUT)


def test_clients_notice_no_fault_of_one_process(tmp_path: Path, capsys):
    registry = FileRegistry(tmp_path / "registry")
    tiny = publish(registry, "v1")
    with Stalls() as stalls, fleet(registry.root, tmp_path) as members:
        controllers = [member.address for member in members["controller"]]
        asks = [balanced_client(controllers) for _ in range(4)]
        asks += [sdk_client(controllers[n % 2]) for n in range(4)]
        victims = [member for group in members.values() for member in group]
        behind = [*members["mapper"], *members["assembler"]]
        # Controllers last: clients that wait for theirs do so for longer than its fault lasts.
        faults = [(kill, member) for member in behind]
        faults += [(make, members["mapper"][0]) for make in (hang, hang_long)]
        faults += [(make, members["assembler"][0]) for make in (hang, hang_long)]
        faults += [(kill, member) for member in members["controller"]]
        faults += [(hang, members["controller"][0])]
        load = Load(tiny, asks, tmp_path)
        times = []
        try:
            for make, member in faults:
                time.sleep(AFTER)
                started = time.monotonic()
                make(member)
                times.append((started, time.monotonic()))
        finally:
            load.stop()
        logs = {member.name: member.log() for member in victims}
    rows = [
        summary(f"{make.__name__} {member.name}", load.during(*moments), *moments)
        for (make, member), moments in zip(faults, times, strict=True)
    ]
    with capsys.disabled():
        print(table(rows))
        for reason, count in reasons(load.answered).most_common():
            print(f"{count:6} x {reason}")
    assert not [one for one in load.answered if one.wrong]
    assert not [one for one in load.answered if one.failed]
    assert all(row["requests"] > 50 for row in rows), "too little load to show anything"
    for (make, member), row, moments in zip(faults, rows, times, strict=True):
        if member.kind == "controller" or stalls.seconds(*moments) > 1:
            continue
        # A fault behind the controllers costs less than a device's patience. A replica that wakes
        # up finds itself late and may refuse some calls, but none waits until it is too late.
        assert make is not kill or not row["refused"], row
        noticed = reasons(load.during(*moments))
        assert all("OVERLOADED" in reason for reason in noticed), noticed
        quick = [one for one in load.during(*moments) if not one.refused]
        assert all(one.ended - one.started < TIMEOUT for one in quick), row
    for name, text in logs.items():
        assert "Traceback" not in text, f"{name}\n{text}"
