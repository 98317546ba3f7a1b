"""Two processes of each service on one machine, that tests may kill, freeze and start again."""

from __future__ import annotations

import contextlib
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.serving import Process

KINDS = ("mapper", "assembler", "controller")
_BEHIND = {"assembler": "mapper", "controller": "assembler"}


class Member:
    """One process of a fleet. It comes back on the address that it had."""

    def __init__(self, registry: Path, folder: Path, kind: str, arguments: list[str]) -> None:
        self.name, self.kind = folder.name, kind
        self.address = self.metrics = ""
        self._registry, self._folder, self._arguments = registry, folder, arguments
        self._starts = 0
        self._process: Process | None = None

    def start(self) -> None:
        """Returns at once; `wait_ready` waits."""
        listen = ["--listen", self.address] if self.address else []
        self._starts += 1
        self._process = Process(
            self._registry,
            self._folder / str(self._starts),
            *["--target", self.kind, *self._arguments, *listen],
        )

    def wait_ready(self) -> None:
        assert self._process is not None
        ready = self._process.wait_ready()
        self.address, self.metrics = ready["address"], ready["metrics"]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.stop(signal.SIGKILL)

    def log(self) -> str:
        """Of all its lives."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("*/log")))

    def total(self, sample: str, **labels: str) -> float:
        return scrape(self.metrics, sample, **labels)


def scrape(metrics: str, sample: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels; 0 if there are none."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return sum(
        found.value
        for family in families
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )


@contextlib.contextmanager
def fleet(
    registry: Path, folder: Path, replicas: int = 2, options: Mapping[str, list[str]] | None = None
) -> Iterator[dict[str, list[Member]]]:
    """kind -> its members. Each calls all members of the kind behind it, in turn.

    options: kind -> more of the command line."""
    members: dict[str, list[Member]] = {}
    try:
        for kind in KINDS:
            behind = _BEHIND.get(kind)
            upstream = list((options or {}).get(kind, []))
            if behind is not None:
                upstream += [f"--{behind}", ",".join(m.address for m in members[behind])]
            members[kind] = [
                Member(registry, folder / f"{kind}-{n}", kind, upstream) for n in range(replicas)
            ]
            for member in members[kind]:
                member.start()
            for member in members[kind]:
                member.wait_ready()
        yield members
    finally:
        for group in members.values():
            for member in group:
                member.kill()


def wait_until_it_serves(member: Member, seconds: float = 20) -> float:
    """Waits until a member has answered something. Returns how long that took."""
    started = time.monotonic()
    while not member.total("forward_ofa_requests_total", code="OK"):
        assert time.monotonic() - started < seconds, f"nobody asks {member.name}\n{member.log()}"
        time.sleep(0.05)
    return time.monotonic() - started
