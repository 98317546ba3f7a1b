"""Several processes of each service, that tests may kill, freeze and start again."""

from __future__ import annotations

import contextlib
import signal
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.hosts import LOOPBACK, Host
from tests.support.serving import Process

KINDS = ("mapper", "assembler", "controller")
_BEHIND = {"assembler": "mapper", "controller": "assembler"}


class Member:
    """One process of a fleet, on a host. It comes back on the address that it had."""

    def __init__(
        self, registry: Path, folder: Path, kind: str, arguments: list[str], host: Host = LOOPBACK
    ) -> None:
        self.name, self.kind, self.host = folder.name, kind, host
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
            host=self.host,
        )

    def wait_ready(self) -> None:
        """Several that start at once on a busy machine take a while."""
        assert self._process is not None
        ready = self._process.wait_ready(180)
        self.address, self.metrics = ready["address"], ready["metrics"]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.stop(signal.SIGKILL)

    def restart(self) -> None:
        """As an operator does: it drains, ends, and a new one is started."""
        assert self._process is not None
        self._process.stop(seconds=60)
        self.start()

    def is_ready(self) -> bool:
        """Whether the present process is; then `metrics` is its own."""
        assert self._process is not None
        if not self._process.ready_file.exists():
            return False
        self.wait_ready()
        return True

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
    registry: Path,
    folder: Path,
    replicas: int = 2,
    options: Mapping[str, list[str]] | None = None,
    host: Callable[[str], Host] = lambda name: LOOPBACK,
) -> Iterator[dict[str, list[Member]]]:
    """kind -> its members. Each calls all members of the kind behind it, in turn.

    options: kind -> more of the command line. host: a member's name -> where it runs."""
    members: dict[str, list[Member]] = {}
    try:
        for kind in KINDS:
            behind = _BEHIND.get(kind)
            upstream = list((options or {}).get(kind, []))
            if behind is not None:
                upstream += [f"--{behind}", ",".join(m.address for m in members[behind])]
            members[kind] = [
                Member(registry, folder / name, kind, upstream, host(name))
                for name in (f"{kind}-{n}" for n in range(replicas))
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
