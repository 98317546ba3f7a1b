"""Start the services for a test: in this process, or each in one of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.types.v1 import types_pb2 as types
from services.errors import Fault
from services.mapper.settings import MapperSettings
from services.runtime.settings import ServerSettings
from services.settings import ServeSettings
from services.versions import VersionSettings
from services.wire import STATUS_DETAILS_KEY, fault_from_details
from services.wiring import Running, start
from tests.support.hosts import LOOPBACK, Host

SESSION = "session-0123456789"


def settings(registry: Path, **changes: Any) -> ServeSettings:
    """Free ports, quick polls, short drain."""
    defaults: dict[str, Any] = {
        "server": ServerSettings(listen="127.0.0.1:0", drain_seconds=2.0),
        "versions": VersionSettings(poll_seconds=0.05),
        "mapping": MapperSettings(workers=2, queue=16),
    }
    return ServeSettings(registry=registry, **{**defaults, **changes})


@contextlib.asynccontextmanager
async def running(registry: Path, **changes: Any) -> AsyncIterator[Running]:
    started = await start(settings(registry, **changes))
    try:
        yield started
    finally:
        await started.stop()


class Process:
    """`python -m services` with a ready file, on a host."""

    def __init__(
        self, registry: Path | str, folder: Path, *arguments: str, host: Host = LOOPBACK
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ready_file = folder / "ready.json"
        self._log = (folder / "log").open("w+")
        command = [*host.enter, sys.executable, "-m", "services", "--registry", str(registry)]
        command += ["--ready-file", str(self.ready_file), "--poll-seconds", "0.1"]
        if "--listen" not in arguments:
            command += ["--listen", f"{host.address}:0"]
        if not host.is_loopback:
            command += ["--allow-insecure", "--metrics", f"{host.address}:0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, *arguments], stderr=self._log, env=environment, cwd=Path(__file__).parents[2]
        )

    def wait_ready(self, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"not ready: {self.log()}")
            time.sleep(0.05)
        return json.loads(self.ready_file.read_text())

    def log(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def three_processes(registry: Path | str, folder: Path, *more: str) -> Iterator[dict[str, Process]]:
    """Mapper, assembler and controller apart, each with the options `more`.

    `processes[..].ready_file` has the addresses."""
    processes: dict[str, Process] = {}
    try:
        processes["mapper"] = Process(registry, folder / "mapper", "--target", "mapper", *more)
        mapper = processes["mapper"].wait_ready()["address"]
        processes["assembler"] = Process(
            registry, folder / "assembler", "--target", "assembler", "--mapper", mapper, *more
        )
        assembler = processes["assembler"].wait_ready()["address"]
        processes["controller"] = Process(
            registry,
            folder / "controller",
            "--target",
            "controller",
            "--assembler",
            assembler,
            *more,
        )
        processes["controller"].wait_ready()
        yield processes
    finally:
        for process in processes.values():
            process.stop(signal.SIGKILL)


def network_request(tiny: Any, **changes: Any) -> api.RequestNetworkRequest:
    """A good request, but for the changes."""
    fields: dict[str, Any] = {
        "version": tiny.version,
        "session_id": SESSION,
        "path": types.Path(bits=tiny.path(0, 2)),
        "interest": types.Interest(values=tiny.interest().tobytes()),
    }
    return api.RequestNetworkRequest(**{**fields, **changes})


def fault_of(error: grpc.RpcError) -> Fault:
    """The Fault that a failed call carries; its gRPC status and text must agree with it."""
    for key, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        if key == STATUS_DETAILS_KEY:
            fault = fault_from_details(value)
            assert fault is not None
            assert error.code().name == fault.status  # type: ignore[attr-defined]
            assert error.details() == fault.text  # type: ignore[attr-defined]
            return fault
    raise AssertionError(f"no details: {error}")
