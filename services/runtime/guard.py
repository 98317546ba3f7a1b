"""Around every call: who may, how many at once, how long; errors, metrics, ids, spans."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from services.errors import CATALOGUE, OUR_FAULT, Fault, Reason
from services.runtime.access import Access
from services.runtime.admission import Admission, Pacer, Unread
from services.runtime.context import (
    choose_request_id,
    deadline,
    request_id,
    sane_traceparent,
    seconds_left,
    traceparent,
)
from services.runtime.core import Metadata
from services.runtime.logs import log
from services.runtime.metrics import Metrics
from services.runtime.settings import ServerSettings
from services.runtime.tracing import Tracing
from services.wire import REQUEST_ID_KEY, STATUS_DETAILS_KEY, TRACEPARENT_KEY, status_details

_LOGGER = logging.getLogger(__name__)
_OURS = "/forward_ofa_api."
# Called from outside: by devices, and by operators of the trainer. Who calls the others is known
# by its certificate.
_WITH_TOKEN = ("/forward_ofa_api.controller.", "/forward_ofa_api.trainer.")
_Context = grpc.aio.ServicerContext[Any, Any]
Refusal = tuple[grpc.StatusCode, str, Metadata]
# A line for each would cost more than the refusal; the metrics count them.
_QUIET = {Reason.OVERLOADED: logging.DEBUG, Reason.RATE_LIMITED: logging.DEBUG}
_LOUD = {Reason.INTERNAL, Reason.CORRUPT_VERSION}
_CERTIFICATE_NAMES = ("x509_subject_alternative_name", "x509_common_name")
# These took as long as a call takes; others end early.
_WHOLE = {"OK", "DEADLINE_EXCEEDED"}
# gRPC's clock and ours tell a deadline a little apart.
_DEADLINE_MARGIN = 0.005


class CallGuard:
    """Lets a call in or refuses it, cheapest check first and before its message is parsed.

    Turns a Fault into its gRPC status with details, and anything else into INTERNAL: nothing
    of an unexpected exception reaches the caller but the request id under which the log has
    it. Health and reflection pass, but read rubbish as an empty request. A handler may answer
    with bytes: a message that it has serialised already.

    access: the door for calls from outside. tracing: None makes no spans.
    """

    def __init__(
        self,
        metrics: Metrics,
        settings: ServerSettings,
        access: Access | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.metrics, self.tracing = metrics, tracing
        self.access = access
        self.client_names = frozenset(name.encode() for name in settings.tls_client_names)
        limits = settings.admission
        self.unary = Admission(
            settings.max_concurrent_requests, limits.target_ms, limits.calm_concurrent
        )
        # Apart, so that phones on slow lines fetching bundles never crowd out networks.
        self.streams = Admission(limits.max_downloads, resumable=True)
        self.downloads = Pacer(limits.download_rate)
        self.unread = Unread(limits.max_unread_bytes)
        self.limits = limits
        # Read when scraped: counting costs nothing a call.
        metrics.in_flight.set_function(lambda: self.unary.running + self.streams.running)
        metrics.concurrency_limit.set_function(lambda: int(self.unary.limit))
        metrics.unread_bytes.set_function(lambda: self.unread.total)
        self._methods: dict[str, _Method] = {}

    def wrap(self, path: str, handler: Any) -> Any:
        """See `core.Door`."""
        if not path.startswith(_OURS):
            empty = _lenient(handler.request_deserializer)
            return handler._replace(request_deserializer=empty)
        method = self._methods[path] = _Method(self, path, handler)
        # Without coders: bytes come in and go out, parsed by us after the call was let in.
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_unary(method, handler.unary_unary))
        return grpc.unary_stream_rpc_method_handler(_stream(method, handler.unary_stream))

    def refusal(self, path: str) -> Refusal | None:
        """See `core.Door`: OVERLOADED at once while as many run as may."""
        method = self._methods.get(path)
        if method is None or not method.admission.full:
            return None
        return method.refuse()


class _Method:
    """What all calls of a method share, looked up once."""

    def __init__(self, guard: CallGuard, path: str, handler: Any) -> None:
        self.guard, self.metrics = guard, guard.metrics
        self.name = path.rpartition("/")[2]
        self.span_name = path[1:]
        self._decode, self._encode = handler.request_deserializer, handler.response_serializer
        access = guard.access if path.startswith(_WITH_TOKEN) else None
        self.access = None if access is None or access.open else access
        self.admission = guard.unary if handler.unary_unary else guard.streams
        limits = guard.limits
        self.seconds = limits.max_seconds if handler.unary_unary else limits.max_download_seconds
        self.took = self.metrics.request_seconds.labels(self.name)
        self.received = self.metrics.message_bytes.labels(self.name, "received")
        self.sent = self.metrics.message_bytes.labels(self.name, "sent")
        # There from the start: the rate of a series that begins with its first failure is 0.
        self._ended = {"OK": self.metrics.requests.labels(self.name, "OK")}
        for reason in OUR_FAULT:
            self.metrics.rejections.labels(self.name, reason)

    def decode(self, data: bytes) -> Any:
        """Raises Fault MALFORMED_MESSAGE; gRPC would answer UNKNOWN with an internal text."""
        try:
            return self._decode(data)
        except DecodeError as error:
            raise Fault(Reason.MALFORMED_MESSAGE, method=self.name) from error

    def encode(self, answer: Any) -> bytes:
        """Passes on bytes."""
        return answer if type(answer) is bytes else self._encode(answer)

    def refuse(self) -> Refusal:
        """Status, text and metadata of OVERLOADED, counted. No line in the log: see `_QUIET`."""
        fault = Fault(Reason.OVERLOADED, retry=self.admission.window())
        self.reject(fault.reason)
        self.count(fault.status)
        details = (STATUS_DETAILS_KEY, status_details(fault))
        return grpc.StatusCode[fault.status], fault.text, (details,)

    def reject(self, reason: Reason) -> None:
        """One more failed call."""
        self.metrics.rejections.labels(self.name, reason).inc()

    def count(self, code: str) -> None:
        """One more call that ended so."""
        counter = self._ended.get(code)
        if counter is None:
            counter = self._ended[code] = self.metrics.requests.labels(self.name, code)
        counter.inc()


def _unary(method: _Method, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    async def guarded(data: bytes, context: _Context) -> bytes:
        call = _Call(method, data, context)
        try:
            call.admit()
            request = method.decode(data)
            if call.alarm is None:
                answer = await inner(request, context)
            else:
                async with asyncio.timeout(call.alarm):
                    answer = await inner(request, context)
            reply = method.encode(answer)
        except BaseException as error:
            await call.fail(error)
        method.guard.unread.add(context, len(reply))
        call.end("OK", len(reply))
        return reply

    return guarded


def _stream(
    method: _Method, inner: Callable[..., AsyncGenerator[Any, None]]
) -> Callable[..., Awaitable[None]]:
    # A coroutine that writes, and no generator: it notices when a caller stops reading.
    async def guarded(data: bytes, context: _Context) -> None:
        call = _Call(method, data, context)
        pacer, together = Pacer(method.guard.limits.stream_rate), method.guard.downloads
        sent = 0
        try:
            call.admit()
            request = method.decode(data)
            async with asyncio.timeout(call.alarm), aclosing(inner(request, context)) as messages:
                async for message in messages:
                    chunk = method.encode(message)
                    await together.pause(len(chunk))
                    await pacer.pause(len(chunk))
                    await _write(context, chunk)
                    sent += len(chunk)
        except BaseException as error:
            await call.fail(error, sent)
        call.end("OK", sent)

    return guarded


async def _write(context: _Context, chunk: bytes) -> None:
    try:
        await context.write(chunk)
    except grpc.aio.InternalError as error:
        # What gRPC says if the caller hung up at this very moment, before it cancels us.
        raise asyncio.CancelledError from error


def _lenient(deserialise: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads bytes that are no message as an empty one."""

    def read(data: bytes) -> Any:
        try:
            return deserialise(data)
        except DecodeError:
            return deserialise(b"")

    return read


class _Call:
    """One call: its ids, its clock, its end.

    alarm: seconds after which we end it ourselves; None: its caller's deadline comes first, and
    gRPC cancels it then.
    """

    __slots__ = ("_admitted", "_context", "_id", "_metadata", "_method", "_span", "_started",
                 "alarm")  # fmt: skip

    def __init__(self, method: _Method, data: bytes, context: _Context) -> None:
        self._method, self._context = method, context
        self._started = time.perf_counter()
        self._admitted = False
        self.alarm: float | None = None
        self._metadata = metadata = dict(context.invocation_metadata() or ())
        self._id = choose_request_id(metadata.get(REQUEST_ID_KEY))
        request_id.set(self._id)
        trace = metadata.get(TRACEPARENT_KEY)
        parent = "" if trace is None else sane_traceparent(trace)
        self._span = None
        if (tracing := method.guard.tracing) is not None:
            self._span = tracing.begin(method.span_name, parent)
        elif parent:
            traceparent.set(parent)
        method.received.observe(len(data))

    def admit(self) -> None:
        """Raises Fault if the caller may not, too many run, or there is no time."""
        method = self._method
        if names := method.guard.client_names:
            _check_certificate(self._context, names)
        if method.access is not None:
            method.access.admit(self._metadata, self._context.peer)
        left = self._context.time_remaining()
        if left is None or left > method.seconds:
            left = self.alarm = method.seconds
        method.admission.check_deadline(left)
        deadline.set(time.monotonic() + left)
        method.guard.unread.check(self._context)
        method.admission.enter()
        self._admitted = True

    def end(self, code: str, sent: int = 0, reason: str = "", counted: str = "") -> None:
        """sent: bytes of the answer. counted: the status that the metrics have, if not `code`."""
        method = self._method
        seconds = time.perf_counter() - self._started
        if self._admitted:
            self._admitted = False
            method.admission.leave(seconds, whole=code in _WHOLE)
        method.count(counted or code)
        method.took.observe(seconds)
        if sent:
            method.sent.observe(sent)
        if self._span is not None:
            self._span.end(code, reason)

    async def fail(self, error: BaseException, sent: int = 0) -> NoReturn:
        """Ends the call with the status of `error`."""
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            # The caller has gone or its deadline passed; gRPC has answered already.
            self._abandoned(sent)
            raise error
        if isinstance(error, Fault):
            fault = self._with_window(error)
        elif isinstance(error, TimeoutError):
            fault = Fault(Reason.DEADLINE)
        elif isinstance(error, Exception):
            fault = Fault(Reason.INTERNAL)
        else:
            raise error
        self._log(fault, error)
        self._method.reject(fault.reason)
        self.end(fault.status, sent, fault.reason)
        trailing = ((STATUS_DETAILS_KEY, status_details(fault)), (REQUEST_ID_KEY, self._id))
        await self._context.abort(grpc.StatusCode[fault.status], fault.text, trailing)

    def _abandoned(self, sent: int) -> None:
        """Counts what the caller saw: who waits no longer is no failure of ours, who waited until
        its deadline is one."""
        late = seconds_left(_DEADLINE_MARGIN) == 0
        if late:
            self._method.reject(Reason.DEADLINE)
        self.end("CANCELLED", sent, counted="DEADLINE_EXCEEDED" if late else "")

    def _with_window(self, fault: Fault) -> Fault:
        """A queue that is full knows the load no better than we do."""
        if fault.reason is Reason.OVERLOADED and fault.retry == CATALOGUE[fault.reason].retry:
            fault.retry = self._method.admission.window()
        return fault

    def _log(self, fault: Fault, error: BaseException) -> None:
        loud = fault.reason in _LOUD
        level = logging.ERROR if loud else _QUIET.get(fault.reason, logging.INFO)
        text = str(error) if loud else fault.detail
        name, reason = self._method.name, str(fault.reason)
        log(_LOGGER, level, "call failed", method=name, reason=reason, detail=text)


def _check_certificate(context: _Context, names: frozenset[bytes]) -> None:
    """Raises Fault NOT_ALLOWED unless the caller's certificate is for one of the names."""
    shown = context.auth_context()
    if not any(name in names for key in _CERTIFICATE_NAMES for name in shown.get(key, ())):
        raise Fault(Reason.NOT_ALLOWED, detail="certificate name")
