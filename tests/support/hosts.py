"""Where a process of a test runs: on loopback, or on a host that is a network namespace."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """address: on which its processes listen. enter: put before a command that is to run there."""

    name: str = "loopback"
    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        return not self.enter

    def run(self, *command: str) -> None:
        """Raises RuntimeError with what the command said."""
        done = subprocess.run([*self.enter, *command], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}")


LOOPBACK = Host()
