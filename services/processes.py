"""Several processes on one machine behind one port, for more requests than one Python process
can read and write.

    forward-ofa serve --processes 8

starts 8 whole processes that share the listening port: the kernel gives each new connection to
one of them. Each batches what reaches it, and they share the pages of the weights. (A mapper
that they share would make larger batches, but its own interpreter lock would hold them all up:
docs/adr/0016.) A process that ends is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.runtime.files import write_atomically
from services.runtime.logs import log
from services.runtime.process import stop_on_signal
from services.runtime.settings import SettingsError, split_address
from services.settings import ServeSettings

_LOGGER = logging.getLogger(__name__)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# A process that lived this long had started well: its next start is tried at once.
_HEALTHY_SECONDS = 60.0
_POLL_SECONDS = 0.05
_WRONG_SETTINGS = 2


class _Child:
    """One process of the services, started again whenever it ends."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.ready_file = folder / f"{name}.json"
        self._arguments = [*arguments, "--ready-file", str(self.ready_file)]
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._was_ready = False

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def ready(self) -> dict[str, Any]:
        """What its ready file says, once it answers."""
        while True:
            if self._keeper is not None and self._keeper.done():
                self._keeper.result()
            with contextlib.suppress(FileNotFoundError):
                found: dict[str, Any] = json.loads(self.ready_file.read_text())
                self._was_ready = True
                return found
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """SIGTERM, and waits: its own drain ends it."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            await self._process.wait()

    async def _keep(self) -> None:
        wait = _FIRST_WAIT
        while True:
            started = time.monotonic()
            # A session of its own: Ctrl-C reaches this process alone, which stops all in order.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services", *self._arguments, start_new_session=True
            )
            log(_LOGGER, logging.INFO, "started", process=self.name, pid=self._process.pid)
            code = await self._process.wait()
            if code == _WRONG_SETTINGS and not self._was_ready:
                # It has said why; another start would say the same.
                raise SettingsError(f"{self.name} cannot start with these settings")
            self.ready_file.unlink(missing_ok=True)
            if time.monotonic() - started > _HEALTHY_SECONDS:
                wait = _FIRST_WAIT
            log(_LOGGER, logging.WARNING, "ended", process=self.name, code=code, again_seconds=wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)


async def supervise(settings: ServeSettings, arguments: Sequence[str]) -> None:
    """Runs `settings.processes` processes until SIGTERM or SIGINT.

    arguments: the command line that made the settings; later options win over earlier ones.
    Raises SettingsError if the address cannot be taken.
    """
    stopped = stop_on_signal()
    with (
        tempfile.TemporaryDirectory(prefix="forward-ofa-") as name,
        _reserve(settings.server.listen) as address,
    ):
        running = _Processes(settings, arguments, Path(name), address)
        starting = asyncio.create_task(running.start())
        stopping = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await running.stop()
    log(_LOGGER, logging.INFO, "stopped")


class _Processes:
    """The processes of one machine."""

    def __init__(
        self, settings: ServeSettings, arguments: Sequence[str], folder: Path, address: str
    ) -> None:
        self._settings, self._address = settings, address
        common = [*arguments, "--processes", "1", "--exit-with", str(os.getpid())]
        common += ["--listen", address, "--share-port"]
        self._children = [
            _Child(f"process-{index}", [*common, "--metrics", self._metrics(index)], folder)
            for index in range(settings.processes)
        ]

    async def start(self) -> None:
        """Returns once all answer; the ready file is written then."""
        for child in self._children:
            child.start()
        ready = [await child.ready() for child in self._children]
        log(_LOGGER, logging.INFO, "ready", address=self._address, processes=len(ready))
        if self._settings.ready_file is not None:
            described = {**ready[0], "pid": os.getpid(), "processes": ready}
            write_atomically(self._settings.ready_file, json.dumps(described) + "\n")

    async def stop(self) -> None:
        """All at once: each drains, and none needs another."""
        if self._settings.ready_file is not None:
            self._settings.ready_file.unlink(missing_ok=True)
        await asyncio.gather(*(child.stop() for child in self._children))

    def _metrics(self, index: int) -> str:
        """Each process has its own: PORT, PORT + 1 and so on."""
        host, port = split_address(self._settings.metrics, "metrics")
        shown = f"[{host}]" if ":" in host else host
        return f"{shown}:{port + index if port else 0}"


@contextlib.contextmanager
def _reserve(listen: str) -> Any:
    """HOST:PORT that the processes will share, kept from everybody else meanwhile.

    Bound and never listening, so that no connection comes here.
    """
    host, port = split_address(listen, "listen")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            raise SettingsError(f"cannot listen on {listen}: {error.strerror}") from error
        shown = f"[{host}]" if ":" in host else host
        yield f"{shown}:{held.getsockname()[1]}"
