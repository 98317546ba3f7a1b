"""AssemblerService over gRPC: convert, call, convert back."""

from __future__ import annotations

from typing import Any

import grpc

from forward_ofa_api.assembler.v1 import assembler_pb2, assembler_pb2_grpc
from services.ports import Assembler, GenerationRequest
from services.wire import cost_message, encoding_name, time_left

SERVICE = assembler_pb2.DESCRIPTOR.services_by_name["AssemblerService"].full_name


class AssemblerServicer(assembler_pb2_grpc.AssemblerServiceServicer):
    """See assembler.proto."""

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler

    # Bytes: a message that is serialised already; the guard passes it on.
    async def AssembleNetwork(  # type: ignore[override]
        self,
        request: assembler_pb2.AssembleNetworkRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> bytes:
        network = await self._assembler.assemble(
            GenerationRequest(
                version=request.version,
                path=request.path.bits,
                interest=request.interest.values,
                encoding=encoding_name(request.encoding),
                timeout=time_left(),
            )
        )
        rest = assembler_pb2.AssembleNetworkResponse(cost=cost_message(network.cost))
        return b"".join([*network.artefact, rest.SerializeToString()])
