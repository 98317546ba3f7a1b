"""How long a call waits before this process looks at it.

gRPC keeps calls that wait to be accepted where no code of ours sees them: a process that is
too busy to read has few calls running and thousands waiting. So it calls itself, over a
socket that only its own user reaches, a few times a second, and takes the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from services.runtime.health import LIVENESS

PROBE_SECONDS = 0.1
_GIVE_UP_SECONDS = 30.0


class QueueProbe:
    """Calls the health service of a server behind all calls that wait there."""

    def __init__(self) -> None:
        # A folder of mode 700.
        self._folder = tempfile.TemporaryDirectory(prefix="forward-ofa-probe-")
        self.address = f"unix:{Path(self._folder.name) / 'socket'}"
        self._last = 0.0
        self._asked: float | None = None
        self._task: asyncio.Task[None] | None = None

    def seconds(self) -> float:
        """What the last probe waited, or the present one so far if that is longer."""
        present = 0.0 if self._asked is None else time.monotonic() - self._asked
        return max(self._last, present)

    def start(self) -> None:
        """The server has to listen on `address` by now."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends probing, removes the socket."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._folder.cleanup()

    async def _run(self) -> None:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            request = health_pb2.HealthCheckRequest(service=LIVENESS)
            while True:
                self._asked = time.monotonic()
                # One that had no place to wait says nothing about how long the others do.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await check(request, timeout=_GIVE_UP_SECONDS)
                    self._last = time.monotonic() - self._asked
                self._asked = None
                await asyncio.sleep(PROBE_SECONDS)
