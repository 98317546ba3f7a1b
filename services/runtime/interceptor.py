"""Around every call: admission, errors, metrics, request id."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from services.errors import Fault, Reason
from services.runtime.logs import choose_request_id, log, request_id
from services.runtime.metrics import Metrics
from services.wire import REQUEST_ID_KEY, STATUS_DETAILS_KEY, status_details

_LOGGER = logging.getLogger(__name__)
_OURS = "/forward_ofa_api."
_Context = grpc.aio.ServicerContext
_OUR_FAULT = {Reason.INTERNAL, Reason.CORRUPT_VERSION}


class CallGuard(grpc.aio.ServerInterceptor):
    """Turns a Fault into its gRPC status with details, and anything else into INTERNAL.

    Nothing of an unexpected exception reaches the caller but the request id under which
    the log has it. More than `limit` unary calls at once, or so many streams, are refused
    with OVERLOADED. Health and reflection pass, but read rubbish as an empty request.
    """

    def __init__(self, metrics: Metrics, limit: int) -> None:
        self._metrics = metrics
        self._limit = limit
        # Apart, so that phones on slow lines fetching bundles never crowd out networks.
        self._running = {"unary": 0, "stream": 0}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if not method.startswith(_OURS):
            empty = _lenient(handler.request_deserializer, b"")
            return handler._replace(request_deserializer=empty)
        name = method.rpartition("/")[2]
        coders = (
            _lenient(handler.request_deserializer),
            _unless_bytes(handler.response_serializer),
        )
        if handler.unary_unary:
            unary = self._unary(name, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(unary, *coders)
        stream = self._stream(name, handler.unary_stream)
        return grpc.unary_stream_rpc_method_handler(stream, *coders)

    def _unary(self, name: str, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def guarded(request: Any, context: _Context[Any, Any]) -> Any:
            call = _Call(self._metrics, name, request, context)
            try:
                if request is None:
                    raise Fault(Reason.MALFORMED_MESSAGE, method=name)
                self._enter("unary")
                try:
                    answer = await inner(request, context)
                finally:
                    self._leave("unary")
            except BaseException as error:
                await call.fail(error)
            call.end("OK")
            return answer

        return guarded

    def _stream(
        self, name: str, inner: Callable[..., AsyncGenerator[Any, None]]
    ) -> Callable[..., Any]:
        async def guarded(request: Any, context: _Context[Any, Any]) -> AsyncGenerator[Any, None]:
            call = _Call(self._metrics, name, request, context)
            try:
                if request is None:
                    raise Fault(Reason.MALFORMED_MESSAGE, method=name)
                self._enter("stream")
                try:
                    async with aclosing(inner(request, context)) as messages:
                        async for message in messages:
                            yield message
                finally:
                    self._leave("stream")
            except BaseException as error:
                await call.fail(error)
            call.end("OK")

        return guarded

    def _enter(self, kind: str) -> None:
        self._running[kind] += 1
        self._metrics.in_flight.inc()
        if self._running[kind] > self._limit:
            self._leave(kind)
            raise Fault(Reason.OVERLOADED, detail=f"{self._limit} calls at once")

    def _leave(self, kind: str) -> None:
        self._running[kind] -= 1
        self._metrics.in_flight.dec()


def _unless_bytes(serialise: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Passes on bytes: a message that the handler has serialised already."""

    def write(answer: Any) -> bytes:
        return answer if type(answer) is bytes else serialise(answer)

    return write


def _lenient(
    deserialise: Callable[[bytes], Any], instead: bytes | None = None
) -> Callable[[bytes], Any]:
    """Reads `instead` for bytes that are no message, or gives None: gRPC would answer UNKNOWN
    with an internal text."""

    def read(data: bytes) -> Any:
        try:
            return deserialise(data)
        except DecodeError:
            return None if instead is None else deserialise(instead)

    return read


class _Call:
    """One call: its id, its clock, its end."""

    def __init__(
        self, metrics: Metrics, name: str, request: Any, context: _Context[Any, Any]
    ) -> None:
        self._metrics, self._name, self._context = metrics, name, context
        self._started = time.perf_counter()
        self._id = choose_request_id(list(context.invocation_metadata() or ()), REQUEST_ID_KEY)
        request_id.set(self._id)
        if request is not None:
            metrics.request_bytes.labels(name).observe(request.ByteSize())

    def end(self, code: str) -> None:
        self._metrics.requests.labels(self._name, code).inc()
        seconds = time.perf_counter() - self._started
        self._metrics.request_seconds.labels(self._name).observe(seconds)

    async def fail(self, error: BaseException) -> NoReturn:
        """Ends the call with the status of `error`."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            # The caller has gone or its deadline passed; gRPC has answered already.
            self.end("CANCELLED")
            raise error
        if isinstance(error, Fault):
            fault = error
        elif isinstance(error, TimeoutError):
            fault = Fault(Reason.DEADLINE)
        elif isinstance(error, Exception):
            fault = Fault(Reason.INTERNAL)
        else:
            raise error
        self._log(fault, error)
        self._metrics.rejections.labels(fault.reason).inc()
        self.end(fault.status)
        trailing = ((STATUS_DETAILS_KEY, status_details(fault)), (REQUEST_ID_KEY, self._id))
        await self._context.abort(grpc.StatusCode[fault.status], fault.text, trailing)

    def _log(self, fault: Fault, error: BaseException) -> None:
        ours = fault.reason in _OUR_FAULT
        level = logging.ERROR if ours else logging.INFO
        text = str(error) if ours else fault.detail
        log(_LOGGER, level, "call failed", method=self._name, reason=str(fault.reason), detail=text)
