"""`ports.Mapper` and `ports.Assembler` over gRPC: the same promises, the same Faults."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from forward_ofa_api.assembler.v1 import assembler_pb2
from forward_ofa_api.mapper.v1 import mapper_pb2
from forward_ofa_api.types.v1 import types_pb2
from services.errors import Fault, Reason
from services.ports import AssembledNetwork, GeneratedBlocks, GenerationRequest, NetworkCost
from services.runtime.context import request_id, seconds_left, traceparent
from services.runtime.logs import log
from services.wire import (
    REQUEST_ID_KEY,
    STATUS_DETAILS_KEY,
    TRACEPARENT_KEY,
    encoding_number,
    fault_from_details,
    split_artefact,
    split_payload,
)

_LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
_Method = grpc.aio.UnaryUnaryMultiCallable[Any, bytes]

# For the way back: each hop asks the next one to be done a little before its own caller gives up.
_MARGIN_SECONDS = 0.005
_ATTEMPTS = 3

# What a status without our details means: it comes from gRPC or something between.
_BARE = {
    grpc.StatusCode.UNAVAILABLE: Reason.UPSTREAM_UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Reason.UPSTREAM_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.OVERLOADED,
}


class RemoteMapper:
    """A mapper in another process. The payload is passed on as a view of the reply.

    attempt_seconds: see `ChannelSettings`.
    """

    def __init__(self, channel: grpc.aio.Channel, attempt_seconds: float = math.inf) -> None:
        self._attempt_seconds = attempt_seconds
        self._generate: _Method = channel.unary_unary(
            _method(mapper_pb2.DESCRIPTOR, "MapperService", "GenerateBlocks"),
            request_serializer=mapper_pb2.GenerateBlocksRequest.SerializeToString,
        )

    async def generate(self, request: GenerationRequest) -> GeneratedBlocks:
        message = mapper_pb2.GenerateBlocksRequest(
            version=request.version,
            path=types_pb2.Path(bits=request.path),
            interest=types_pb2.Interest(values=request.interest),
            encoding=encoding_number(request.encoding),
        )
        payload, rest = await _call(
            self._generate, message, request.timeout, split_payload, self._attempt_seconds
        )
        return GeneratedBlocks([payload], rest.generation_flops, rest.queue_us, rest.map_us)


class RemoteAssembler:
    """An assembler in another process. The artefact is passed on as a view of the reply.

    attempt_seconds: see `ChannelSettings`.
    """

    def __init__(self, channel: grpc.aio.Channel, attempt_seconds: float = math.inf) -> None:
        self._attempt_seconds = attempt_seconds
        self._assemble: _Method = channel.unary_unary(
            _method(assembler_pb2.DESCRIPTOR, "AssemblerService", "AssembleNetwork"),
            request_serializer=assembler_pb2.AssembleNetworkRequest.SerializeToString,
        )

    async def assemble(self, request: GenerationRequest) -> AssembledNetwork:
        message = assembler_pb2.AssembleNetworkRequest(
            version=request.version,
            path=types_pb2.Path(bits=request.path),
            interest=types_pb2.Interest(values=request.interest),
            encoding=encoding_number(request.encoding),
        )
        artefact, rest = await _call(
            self._assemble, message, request.timeout, split_artefact, self._attempt_seconds
        )
        cost = rest.cost
        return AssembledNetwork(
            [artefact],
            NetworkCost(
                cost.paper_device_flops,
                cost.true_device_flops,
                cost.generation_flops,
                cost.artefact_bytes,
                cost.times.queue_us,
                cost.times.map_us,
                cost.times.assemble_us,
            ),
        )


def _method(file: Any, service: str, method: str) -> str:
    return f"/{file.services_by_name[service].full_name}/{method}"


async def _call(
    method: Any,
    message: Any,
    timeout: float | None,
    read: Callable[[bytes], T],
    attempt_seconds: float,
) -> T:
    """The reply as `read` takes it: gRPC itself hands the bytes over as they came.

    A replica that hangs must not use up all the time that there is: without an answer the call
    is given up and made again, by round robin elsewhere. Nothing but time is lost by that, since
    who is asked drops work whose caller has gone.
    """
    ends = time.monotonic() + min(
        seconds_left(_MARGIN_SECONDS), math.inf if timeout is None else timeout
    )
    for attempt in range(1, _ATTEMPTS + 1):
        left = ends - time.monotonic()
        if left <= 0:
            raise Fault(Reason.DEADLINE, detail="no time left for the next hop")
        if attempt < _ATTEMPTS:
            left = min(left / 2, attempt_seconds * 2 ** (attempt - 1))
        try:
            return await _attempt(method, message, left, read)
        except Fault as fault:
            if fault.reason is not Reason.DEADLINE or attempt == _ATTEMPTS:
                raise
        log(_LOGGER, logging.INFO, "no answer in time, asked again", seconds=round(left, 3))
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _attempt(method: Any, message: Any, left: float, read: Callable[[bytes], T]) -> T:
    started = time.monotonic()
    timeout = None if math.isinf(left) else left
    try:
        return read(await method(message, timeout=timeout, metadata=_metadata()))
    except DecodeError as error:
        raise Fault(Reason.INTERNAL, detail=f"a reply that is not the API's: {error}") from error
    except grpc.aio.AioRpcError as error:
        raise _fault(error, timeout, time.monotonic() - started) from error


def _metadata() -> tuple[tuple[str, str], ...]:
    """What travels with a request from hop to hop."""
    pairs = ((REQUEST_ID_KEY, request_id.get()), (TRACEPARENT_KEY, traceparent.get()))
    return tuple(pair for pair in pairs if pair[1])


def _fault(error: grpc.aio.AioRpcError, timeout: float | None, seconds: float) -> Fault:
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            fault = fault_from_details(value)
            if fault is not None:
                return fault
    code = error.code()
    if code is grpc.StatusCode.CANCELLED and timeout is not None and seconds >= timeout:
        # Our deadline passed there a moment before it passed here.
        return Fault(Reason.DEADLINE)
    return Fault(_BARE.get(code, Reason.INTERNAL), detail=f"{code.name}: {error.details()}")
