"""MapperService over gRPC: convert, call, convert back."""

from __future__ import annotations

from typing import Any

import grpc

from forward_ofa_api.mapper.v1 import mapper_pb2, mapper_pb2_grpc
from services.ports import GenerationRequest, Mapper
from services.wire import encoding_name, time_left

SERVICE = mapper_pb2.DESCRIPTOR.services_by_name["MapperService"].full_name


class MapperServicer(mapper_pb2_grpc.MapperServiceServicer):
    """See mapper.proto."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    async def GenerateBlocks(
        self,
        request: mapper_pb2.GenerateBlocksRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> mapper_pb2.GenerateBlocksResponse:
        generated = await self._mapper.generate(
            GenerationRequest(
                version=request.version,
                path=request.path.bits,
                interest=request.interest.values,
                encoding=encoding_name(request.encoding),
                timeout=time_left(),
            )
        )
        return mapper_pb2.GenerateBlocksResponse(
            payload=b"".join(generated.payload),
            generation_flops=generated.generation_flops,
            queue_us=generated.queue_us,
            map_us=generated.map_us,
        )
