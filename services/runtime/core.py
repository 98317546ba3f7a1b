"""gRPC's server, made to outlive a path that is not UTF-8.

grpc.aio decodes the path of a call that no registered method takes within the loop that accepts
calls. Bytes that are not UTF-8 end that loop, and with it the server: one malformed request of
a stranger would stop the whole process. So such calls are not given to that loop. All methods
of ours are registered ones; whatever else arrives is answered UNIMPLEMENTED here, its path unread.

This leans on parts of grpcio that are not public, so requirements pin grpcio, and
tests/integration/services/test_rubbish.py sends such a path. Should another release lack those
parts, or the loop end for another reason, `Server.ended` says so and the process ends, to be
started again, in place of living on with a closed port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """What accepts calls."""

    def _make_request_call_future(self, method: bytes | None) -> Any:
        if method is not None:
            return super()._make_request_call_future(method)
        return asyncio.get_running_loop().create_task(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        """Calls of methods that nobody registered. Ends with the server, by an exception of
        gRPC's own."""
        loop = asyncio.get_running_loop()
        nothing = cygrpc._MethodResolver([], {})
        running: set[asyncio.Task[None]] = set()
        while True:
            state = await self._request_call()
            answer = cygrpc._handle_rpc("", nothing, (), state, loop, False)
            task = loop.create_task(cygrpc._schedule_rpc_coro(answer, state, loop, ""))
            running.add(task)
            task.add_done_callback(running.discard)


class _SturdyServer(_server.Server):
    def __init__(self, interceptors: tuple[Any, ...], options: tuple[Any, ...]) -> None:
        # Not that of the base class, which would make gRPC's own core first.
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, None, (), interceptors, options, None)


def sturdy_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]
) -> grpc.aio.Server:
    """As `grpc.aio.server` makes one. Register every method before `start`."""
    return cast(grpc.aio.Server, _SturdyServer(tuple(interceptors), tuple(options)))
