"""Whatever breaks, devices get their own networks: the command `python -m tests.faults`, that it
leaves nothing behind, and that it would find a system that is wrong."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forward_ofa_device.cloud import Cloud
from forward_ofa_device.errors import CloudError
from services.registry.files import FileRegistry
from tests.faults import rows
from tests.faults.catalogue import Broken, Fault
from tests.faults.report import line, verdict
from tests.faults.rows import make_row
from tests.support.clients import Asker, RealDevice, World, sdk_cloud
from tests.support.load import Load
from tests.support.serving import Process
from tests.support.stalls import Stalls
from tests.support.versions import publish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.faults"]


def test_devices_get_their_networks_whatever_breaks(tmp_path: Path, capsys):
    report = tmp_path / "faults.json"
    with capsys.disabled():
        print()
        code = subprocess.run([*COMMAND, "--json", str(report)], cwd=ROOT).returncode
    found = json.loads(report.read_text())
    assert code == 0 and not found["logs"]
    made = [row for row in found["rows"] if not row["skipped"]]
    assert len(made) >= 17, "processes, Redis and versions need neither root nor Envoy"
    for row in made:
        assert not row["failed"] and not row["wrong"] and not row["problem"], row
        assert row["requests"] > 10, "too little load to show anything"
        if row["behind"] and not row["stalled_s"]:
            # Refused at worst, within a device's patience, and told when to come again.
            assert not row["unanswered"], row
            assert "is killed" not in row["fault"] or not row["refused"], row


@pytest.mark.parametrize(
    "number, isolated",
    [(signal.SIGTERM, True), (signal.SIGINT, False)],
    ids=["sandbox", "loopback"],
)
def test_it_leaves_nothing_behind(tmp_path: Path, number: int, isolated: bool):
    """isolated False: a machine without the tools that a sandbox needs."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    if not isolated:
        environment["PATH"] = str(tmp_path)
    command = subprocess.Popen(
        COMMAND, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert command.stdout is not None
        # Everything is started, and the first fault is on.
        assert "requests" in command.stdout.readline()
        assert re.match(r"none +\d", command.stdout.readline())
        time.sleep(1)
        assert _processes_of(tmp_path)
        command.send_signal(number)
        assert command.wait(20) == 128 + number
    finally:
        command.kill()
    end = time.monotonic() + 5
    while _processes_of(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _processes_of(tmp_path)
    assert not list(tmp_path.glob("forward-ofa-faults-*"))
    assert not _leftovers(tmp_path)


def _processes_of(folder: Path) -> list[str]:
    """Command lines that name it. Seen from outside of the sandbox."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def _leftovers(folder: Path) -> list[str]:
    """What is there of the command's: mounts, firewall rules, namespaces, devices."""
    found = [
        entry
        for entry in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(folder) in entry
    ]
    for command in (["iptables", "-S"], ["ip", "netns", "list"], ["ip", "-oneline", "address"]):
        try:
            said = subprocess.run(command, capture_output=True, text=True).stdout
        except OSError:
            continue
        found += [entry for entry in said.splitlines() if "10.77.0." in entry or "mapper" in entry]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A service that works, its address and what its clients know."""
    folder = tmp_path_factory.mktemp("world")
    registry = FileRegistry(folder / "registry")
    known = World({"v1": publish(registry, "v1")}, "v1")
    process = Process(registry.root, folder / "all")
    try:
        yield process.wait_ready(180)["address"], known
    finally:
        process.stop(signal.SIGKILL)


ENOUGH = 20


def row_of(*clients, fault=None):
    """Without a fault: until enough has been asked."""
    load = Load(clients)
    nothing = Fault("none", seconds=0, recovered=lambda: len(load.answered) >= ENOUGH)
    try:
        with Stalls() as stalls:
            return make_row(fault or nothing, load, stalls)
    finally:
        load.stop()


class Tampered:
    """The calls of a client, with the exchange of requests and replies in other hands."""

    def __init__(self, cloud: Cloud, exchange) -> None:
        self._cloud, self._exchange = cloud, exchange
        self.get_bundle, self.close = cloud.get_bundle, cloud.close

    def request_network(self, request):
        # A copy, since what is sent may be changed, and what was meant is checked.
        return self._exchange(self._cloud.request_network, copy.deepcopy(request))


def swap():
    """Each reply goes to whoever asks next."""
    kept = []

    def exchange(ask, request):
        kept.append(ask(request))
        return kept[max(0, len(kept) - 2)]

    return exchange


def flip_a_bit(ask, request):
    reply = ask(request)
    data = bytearray(reply.artefact.data)
    data[-1] ^= 64
    reply.artefact.data = bytes(data)
    return reply


def of_another(ask, request):
    """Made for another interest: a good network, with a good digest."""
    request.interest.values = bytes(len(request.interest.values))
    return ask(request)


def other_candidates(ask, request):
    reply = ask(request)
    reply.candidates.item_ids.reverse()
    return reply


def test_a_system_that_is_right(world, tmp_path):
    address, known = world
    honest = Asker("one", sdk_cloud(address), known, 1, tmp_path / "asker")
    row = row_of(honest, RealDevice(address, known, 2, tmp_path / "device"))
    assert row.requests >= ENOUGH / 2 and not row.bad, row


@pytest.mark.parametrize("exchange", [swap(), flip_a_bit, of_another, other_candidates])
def test_a_wrong_answer_is_counted(world, tmp_path, exchange):
    address, known = world
    cloud = Tampered(sdk_cloud(address), exchange)
    row = row_of(Asker("one", cloud, known, 1, tmp_path / "asker"))
    assert row.wrong >= ENOUGH / 2 and row.bad, row
    assert "defect: none" in verdict([row], [])


@pytest.mark.parametrize("exchange", [flip_a_bit, of_another, other_candidates])
def test_a_wrong_answer_to_a_device_is_counted(world, tmp_path, exchange):
    address, known = world
    device = RealDevice(address, known, 2, tmp_path / "device")
    honest = device._device._cloud.request_network

    def tampered(request):
        return exchange(honest, copy.deepcopy(request))

    device._device._cloud.request_network = tampered
    device._tap(device._device._cloud)
    row = row_of(device)
    assert row.wrong >= ENOUGH / 2 and row.bad, row


def test_a_wrong_version_is_counted(world, tmp_path):
    address, known = world
    told = World(known.versions, "v1", rule=lambda session: "v2")
    row = row_of(Asker("one", sdk_cloud(address), told, 1, tmp_path / "asker"))
    assert row.wrong >= ENOUGH / 2 and "is told to use v1" in line(row)


@pytest.mark.parametrize("reason, window", [("INTERNAL", (1, 2)), ("MALFORMED_PATH", None)])
def test_an_error_that_no_fault_excuses_is_a_failure(world, tmp_path, reason, window):
    address, known = world
    calls = itertools.count()

    def exchange(ask, request):
        if next(calls) % 10 == 5:
            raise CloudError("no", reason=reason, code="INTERNAL", retry_ms=window)
        return ask(request)

    cloud = Tampered(sdk_cloud(address), exchange)
    row = row_of(Asker("one", cloud, known, 1, tmp_path / "asker"))
    assert row.failed >= 1 and row.bad


def test_what_does_not_recover_and_what_does_not_fail_are_defects(world, tmp_path, monkeypatch):
    address, known = world
    monkeypatch.setattr(rows, "_LIMIT", 0.3)

    def clients(name):
        return Asker("one", sdk_cloud(address), known, 1, tmp_path / name)

    row = row_of(clients("a"), fault=Fault("for ever", seconds=0, recovered=lambda: False))
    assert row.bad and "not recovered" in line(row)

    def begin():
        raise Broken("it went on")

    row = row_of(clients("b"), fault=Fault("harmless", begin, seconds=0))
    assert row.bad and "it went on" in line(row)
