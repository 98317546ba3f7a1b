"""`ports.Mapper` and `ports.Assembler` over gRPC: the same promises, the same Faults."""

from __future__ import annotations

import time
from typing import Any

import grpc

from forward_ofa_api.assembler.v1 import assembler_pb2, assembler_pb2_grpc
from forward_ofa_api.mapper.v1 import mapper_pb2, mapper_pb2_grpc
from forward_ofa_api.types.v1 import types_pb2
from services.errors import Fault, Reason
from services.ports import AssembledNetwork, GeneratedBlocks, GenerationRequest, NetworkCost
from services.runtime.logs import request_id
from services.wire import (
    REQUEST_ID_KEY,
    STATUS_DETAILS_KEY,
    encoding_name,
    encoding_number,
    fault_from_details,
)

# What a status without our details means: it comes from gRPC or something between.
_BARE = {
    grpc.StatusCode.UNAVAILABLE: Reason.UPSTREAM_UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Reason.UPSTREAM_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.OVERLOADED,
}


class RemoteMapper:
    """A mapper in another process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: mapper_pb2_grpc.MapperServiceAsyncStub = mapper_pb2_grpc.MapperServiceStub(
            channel
        )

    async def generate(self, request: GenerationRequest) -> GeneratedBlocks:
        message = mapper_pb2.GenerateBlocksRequest(
            version=request.version,
            path=types_pb2.Path(bits=request.path),
            interest=types_pb2.Interest(values=request.interest),
            encoding=encoding_number(request.encoding),
        )
        answer = await _call(self._stub.GenerateBlocks, message, request.timeout)
        return GeneratedBlocks(
            answer.blocks, answer.generation_flops, answer.queue_us, answer.map_us
        )


class RemoteAssembler:
    """An assembler in another process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: assembler_pb2_grpc.AssemblerServiceAsyncStub = (
            assembler_pb2_grpc.AssemblerServiceStub(channel)
        )

    async def assemble(self, request: GenerationRequest) -> AssembledNetwork:
        message = assembler_pb2.AssembleNetworkRequest(
            version=request.version,
            path=types_pb2.Path(bits=request.path),
            interest=types_pb2.Interest(values=request.interest),
            encoding=encoding_number(request.encoding),
        )
        answer = await _call(self._stub.AssembleNetwork, message, request.timeout)
        cost, artefact = answer.cost, answer.artefact
        return AssembledNetwork(
            artefact.data,
            artefact.sha256,
            encoding_name(artefact.encoding),
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


async def _call(method: Any, message: Any, timeout: float | None) -> Any:
    started = time.monotonic()
    metadata = ((REQUEST_ID_KEY, current),) if (current := request_id.get()) else None
    try:
        return await method(message, timeout=timeout, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise _fault(error, timeout, time.monotonic() - started) from error


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
