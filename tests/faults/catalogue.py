"""The faults, in the order in which they are made."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis

from services.registry.contract import RegistryError
from services.versions import session_bucket
from tests.faults.network import HERE
from tests.faults.stand import CONFIG, MAXMEMORY, Stand
from tests.support.fleet import KINDS, Member
from tests.support.redis_server import wait_until
from tests.support.versions import write_staging

AWAY = 1.5
SILENT = 6.0
"""Longer than a device waits for an answer."""
BROKEN = 3.0
"""Long enough for a silent replica to be found out."""
CANARY = 30.0
_JUNK_BYTES = 64 * 1024


class Broken(Exception):
    """The system did not do what it should when the fault was made."""


def _nothing() -> None: ...


@dataclass
class Fault:
    """begin, end: make it and take it back; `seconds` lie between. mark: called after `end`, then
    `recovered` is asked until it says that everything works again. missing: why it cannot be
    made here, "" if it can. behind: it lies behind the controllers, so a device's patience must
    be enough for it.
    """

    name: str
    begin: Callable[[], object] = _nothing
    end: Callable[[], object] = _nothing
    seconds: float = BROKEN
    mark: Callable[[], object] = _nothing
    recovered: Callable[[], bool] = lambda: True
    missing: str = ""
    behind: bool = False


@dataclass
class Counts:
    """Whether a counter of each member grew since `mark`; a new process counts from 0."""

    members: list[Member]
    sample: str
    labels: dict[str, str]
    before: dict[str, float] = field(default_factory=dict)

    def mark(self) -> None:
        self.before = {member.name: self._now(member) for member in self.members}

    def grew(self) -> bool:
        return all(self._now(member) > self.before[member.name] for member in self.members)

    def _now(self, member: Member) -> float:
        return member.total(self.sample, **self.labels) if member.is_ready() else 0.0


def serves(*members: Member) -> dict[str, Callable]:
    """Until each has answered something."""
    counts = Counts(list(members), "forward_ofa_requests_total", {"code": "OK"})
    return {"mark": counts.mark, "recovered": counts.grew}


def remembers(stand: Stand) -> dict[str, Callable]:
    """Until each controller has found a session."""
    counts = Counts(
        stand.members["controller"], "forward_ofa_session_cache_total", {"result": "hit"}
    )
    return {"mark": counts.mark, "recovered": counts.grew}


def catalogue(stand: Stand) -> Iterator[Fault]:
    """All faults; those that cannot be made here say so."""
    yield Fault("none", **serves(*stand.all_members()))
    yield from _redis(stand)
    yield from _links(stand)
    yield from _slow_links(stand)
    yield _full_disk(stand)
    yield from _versions(stand)
    yield from _processes(stand)


def _processes(stand: Stand) -> Iterator[Fault]:
    """Each process meets one of them, and each kind all three: no two of a kind at once."""
    for kind in reversed(KINDS):
        first, second = stand.members[kind]
        behind = kind != "controller"
        yield Fault(
            f"{first.name} is killed", first.kill, first.start, AWAY, **serves(first), behind=behind
        )
        yield Fault(
            f"{second.name} is silent",
            lambda member=second: member.signal(signal.SIGSTOP),
            lambda member=second: member.signal(signal.SIGCONT),
            SILENT,
            **serves(second),
            behind=behind,
        )
        yield Fault(
            f"{second.name} is restarted", second.restart, seconds=0, **serves(second),
            behind=behind,
        )  # fmt: skip


def _redis(stand: Stand) -> Iterator[Fault]:
    server = stand.redis
    back = remembers(stand)
    yield Fault("Redis is killed", server.kill, server.start, AWAY, **back, behind=True)
    yield Fault(
        "Redis is silent",
        lambda: server.freeze(True),
        lambda: server.freeze(False),
        **back,
        behind=True,
    )
    stutter = Stutter(server.freeze)
    yield Fault("Redis takes 0.5 s", stutter.start, stutter.stop, **back, behind=True)
    yield Fault("Redis is full", lambda: _fill(stand), lambda: _empty(stand), **back, behind=True)


class Stutter:
    """Stops something for half a second, again and again."""

    def __init__(self, freeze: Callable[[bool], None]) -> None:
        self._freeze = freeze
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._freeze(True)
            time.sleep(0.5)
            self._freeze(False)
            time.sleep(0.02)


def _fill(stand: Stand) -> None:
    """Until Redis takes nothing more, and a controller has met that."""
    with stand.redis.client() as client:
        for size in (_JUNK_BYTES, 1024, 64):
            try:
                for number in range(1_000_000):
                    client.set(f"junk-{size}-{number}", bytes(size))
            except redis.OutOfMemoryError:
                continue
            raise Broken("Redis has no limit")
        # What its own buffers give back would be room for some sessions more.
        client.config_set("maxmemory", client.info("memory")["used_memory"])
    full = {"operation": "write", "kind": "full"}
    counts = Counts(stand.members["controller"], "forward_ofa_session_store_failures_total", full)
    counts.mark()
    try:
        wait_until(counts.grew)
    except RuntimeError:
        raise Broken("no controller notices that Redis is full") from None


def _empty(stand: Stand) -> None:
    with stand.redis.client() as client:
        junk = list(client.scan_iter("junk-*", count=1000))
        if junk:
            client.delete(*junk)
        client.config_set("maxmemory", MAXMEMORY)


def _links(stand: Stand) -> Iterator[Fault]:
    """Cut, silently and with a reset, and with loss."""
    controllers, assemblers = stand.members["controller"], stand.members["assembler"]
    mapper = stand.members["mapper"][0]
    one = assemblers[0].host.address
    both = [member.host.address for member in assemblers]
    cuts = (
        ("assembler-0 -x- mapper-0", mapper, [one], False, serves(mapper)),
        ("assembler-0 -x- mapper-0, reset", mapper, [one], True, serves(mapper)),
        ("controller-0 -x- assemblers", controllers[0], both, False, serves(*controllers)),
        ("controller-0 -x- Redis", controllers[0], [stand.redis.host.address], False,
         remembers(stand)),
        ("devices -x- controller-1", controllers[1], [HERE], False, serves(*controllers)),
    )  # fmt: skip
    for name, member, others, reject, back in cuts:
        yield Fault(
            name,
            lambda member=member, others=others, reject=reject: stand.network.cut(
                member.host, others, reject=reject
            ),
            lambda member=member: stand.network.heal(member.host),
            **back,
            missing=stand.missing,
            behind="devices" not in name and "assemblers" not in name,
        )
    for member in (mapper, controllers[0]):
        yield Fault(
            f"{member.name} loses 5 % of packets",
            lambda member=member: stand.network.lose(member.host, 0.05),
            lambda member=member: stand.network.heal(member.host),
            **serves(member),
            missing=stand.missing,
        )


def _slow_links(stand: Stand) -> Iterator[Fault]:
    """40 Mbit/s, and 100 ms more for a round trip."""
    controllers = stand.members["controller"]
    mapper = stand.members["mapper"][0]
    assemblers = [member.host.address for member in stand.members["assembler"]]
    slow = (
        ("devices: 40 Mbit/s, 0.1 s", [m.host for m in controllers], [HERE], serves(*controllers)),
        ("mapper-0: 40 Mbit/s, 0.1 s", [mapper.host], assemblers, serves(mapper)),
        ("Redis: 40 Mbit/s, 0.1 s", [stand.redis.host], [m.host.address for m in controllers],
         remembers(stand)),
    )  # fmt: skip
    for name, hosts, others, back in slow:

        def begin(hosts=hosts, others=others) -> None:
            for host in hosts:
                stand.network.slow(host, others, 40, 100)

        yield Fault(
            name,
            begin,
            lambda hosts=hosts: stand.network.heal(*hosts),
            **back,
            missing=stand.slow_missing,
            behind="devices" not in name,
        )


def _full_disk(stand: Stand) -> Fault:
    filler = stand.registry.root / "filler"

    def begin() -> None:
        before = _visible(stand)
        early, staging = stand.registry.staging(), stand.registry.staging()
        write_staging(staging, "late", config=CONFIG, seed=9)
        _fill_disk(filler)
        for what, act in (
            ("an export", lambda: write_staging(early, "x", config=CONFIG)),
            ("publishing", lambda: stand.registry.publish(staging)),
            ("a label", lambda: stand.registry.label("trial", "v1")),
        ):
            try:
                act()
            except (OSError, RegistryError):
                continue
            raise Broken(f"{what} succeeded on a full disk")
        root = str(stand.registry.root)
        said = _forward_ofa("versions", "label", "trial", "v1", "--registry", root)
        if not said.returncode or "No space left" not in said.stderr:
            raise Broken(f"forward-ofa versions label: {said.returncode}: {said.stderr}")
        for folder in (early, staging):
            shutil.rmtree(folder)  # as `publish` does
        if _visible(stand) != before:
            raise Broken(f"the registry was {before}, it is {_visible(stand)}")

    def end() -> None:
        filler.unlink()
        stand.publish("v2", seed=2)

    return Fault(
        "registry's disk is full",
        begin,
        end,
        recovered=lambda: stand.registry.exists("v2"),
        missing=stand.missing,
        behind=True,
    )


def _visible(stand: Stand) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """What readers of the registry see."""
    registry = stand.registry
    published = [manifest.version for manifest in registry.versions()]
    return published, registry.labels(), registry.damaged()


def _fill_disk(filler: Path) -> None:
    try:
        with filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 20))
    except OSError:
        return


def _forward_ofa(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, from this environment."""
    program = "from forward_ofa_cli.main import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def _versions(stand: Stand) -> Iterator[Fault]:
    """Forward, back, and a share of the sessions: who moved is told so, and moves."""
    registry = stand.registry

    def forward() -> None:
        if not registry.exists("v2"):
            stand.publish("v2", seed=2)
        registry.label("stable", "v2")

    def all_hold(version: str) -> Callable[[], bool]:
        return lambda: all(client.version == version for client in stand.load.clients)

    def wanted(session_id: str) -> str:
        return "v2" if session_bucket(session_id) < CANARY else "v1"

    def canary() -> None:
        registry.label("canary", "v2", CANARY)
        controllers = stand.members["controller"]
        try:
            wait_until(
                lambda: all(m.total("forward_ofa_canary_percent") == CANARY for m in controllers)
            )
        except RuntimeError:
            raise Broken("the canary is not announced") from None
        stand.world.rule = wanted

    def over() -> None:
        stand.world.rule = None
        registry.unlabel("canary")

    yield Fault("v2 goes live", forward, seconds=0, recovered=all_hold("v2"), behind=True)
    yield Fault(
        "back to v1", lambda: registry.rollback(), seconds=0, recovered=all_hold("v1"), behind=True
    )
    yield Fault(
        f"v2 for {CANARY:.0f} % of sessions", canary, over, 2 * BROKEN, recovered=all_hold("v1"),
        behind=True,
    )  # fmt: skip
