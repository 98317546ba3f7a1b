"""gRPC's server with an accept loop of our own.

grpc.aio accepts all calls in one loop, and shows a call to our code only after its message has
arrived. Three things are better here:

- a call that cannot be served is refused before its message is received: half the work, so that
  a load of several times the capacity leaves time for those who are served;
- each method has a loop of its own that does nothing else: a fifth less CPU for a small call;
- a path that is not UTF-8, which would end grpc.aio's loop and with it the server, is answered
  UNIMPLEMENTED unread.

This leans on parts of grpcio that are not public, so requirements pin grpcio, and the tests of
overload and of rubbish go through them. Should another release lack those parts, or a loop end
for another reason, `Server.ended` says so and the process ends, to be started again, in place
of living on with a closed port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, cast

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

_LOGGER = logging.getLogger(__name__)
# Here, so that a release without them fails at once and not at the first overload.
_send_status = cygrpc._send_error_status_from_server
_Start = cygrpc.SendInitialMetadataOperation
Metadata = tuple[tuple[str, str | bytes], ...]


class Door(Protocol):
    """What stands before the handlers."""

    def wrap(self, path: str, handler: Any) -> Any:
        """The handler of a method, guarded. Called once a method."""

    def refusal(self, path: str) -> tuple[grpc.StatusCode, str, Metadata] | None:
        """Status, text and trailing metadata for a call of which nothing is known but its
        method; None lets it come in."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """What accepts calls."""

    def __init__(self, door: Door, options: tuple[Any, ...]) -> None:
        self._door = door
        self._event_loop = cygrpc.get_working_loop()
        super().__init__(self._event_loop, None, (), (), options, None)
        self._guarded: dict[str, Any] = {}
        self._resolver = cygrpc._MethodResolver([], self._guarded)
        self._running: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, handlers: dict[str, Any]) -> None:
        """Raises nothing: gRPC checks names when they are called."""
        guarded = {path: self._door.wrap(path, handler) for path, handler in handlers.items()}
        self._guarded.update(guarded)
        super().add_registered_method_handlers(guarded)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Task[None]:
        """What gRPC's own loop waits for: here a loop, which ends only with the server, by an
        exception of gRPC's."""
        accept = self._refuse_unknown() if method is None else self._accept(method)
        return cast("asyncio.Task[None]", self._event_loop.create_task(accept))

    async def _accept(self, method: bytes) -> None:
        path, refusal = method.decode(), self._door.refusal
        while True:
            call = await self._request_registered_call(method)
            try:
                refused = refusal(path)
            except Exception:
                # An end of this loop would be the end of the server. Those behind it refuse too.
                _LOGGER.exception("cannot tell whether to refuse a call")
                refused = None
            if refused is None:
                self._begin(self._serve(path, call))
            else:
                self._begin(self._refuse(call, *refused))
            # Its stream is open as long as somebody here knows it.
            del call

    def _serve(self, path: str, call: Any) -> Coroutine[Any, Any, None]:
        loop = self._event_loop
        answer = cygrpc._handle_rpc(path, self._resolver, (), call, loop, False)
        return cast(Coroutine[Any, Any, None], cygrpc._schedule_rpc_coro(answer, call, loop, path))

    async def _refuse(
        self, call: Any, status: grpc.StatusCode, text: str, trailing: Metadata
    ) -> None:
        start = _Start((), 0)
        # Who has gone by then needs no answer, and is no news.
        with contextlib.suppress(grpc.aio.InternalError):
            await _send_status(call, status.value[0], text, trailing, start, self._event_loop)

    async def _refuse_unknown(self) -> None:
        """Calls of methods that nobody registered."""
        while True:
            self._begin(self._serve("", await self._request_call()))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._event_loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)


class _SturdyServer(_server.Server):
    def __init__(self, door: Door, options: tuple[Any, ...]) -> None:
        # Not that of the base class, which would make gRPC's own core first.
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(door, options)


def sturdy_server(door: Door, options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """As `grpc.aio.server` makes one. Register every method before `start`."""
    return cast(grpc.aio.Server, _SturdyServer(door, tuple(options)))
