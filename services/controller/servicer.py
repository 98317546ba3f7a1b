"""ControllerService over gRPC: convert, call, convert back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc

from forward_ofa_api.controller.v1 import controller_pb2, controller_pb2_grpc
from forward_ofa_api.types.v1 import types_pb2
from services.controller.bundles import BundlePart
from services.controller.candidates import CandidateList
from services.controller.domain import (
    CandidatesRequest,
    Controller,
    NetworkReply,
    NetworkRequest,
)
from services.controller.reports import DeviceReport
from services.controller.served import Allowance
from services.wire import (
    choose_encoding,
    cost_message,
    encoding_number,
    time_left,
)

SERVICE = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"].full_name
_PARTS: dict[int, BundlePart] = {
    controller_pb2.BUNDLE_PART_TENSORS: "tensors",
    controller_pb2.BUNDLE_PART_ITEMS: "items",
    controller_pb2.BUNDLE_PART_EXTRACTOR_ONNX: "extractor_onnx",
    controller_pb2.BUNDLE_PART_BACKBONE_ONNX: "backbone_onnx",
}
_Context = grpc.aio.ServicerContext[Any, Any]


class ControllerServicer(controller_pb2_grpc.ControllerServiceServicer):
    """See controller.proto."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    # Bytes: a message that is serialised already; the guard passes it on.
    async def RequestNetwork(  # type: ignore[override]
        self, request: controller_pb2.RequestNetworkRequest, context: _Context
    ) -> bytes:
        budget = request.budget
        reply = await self._controller.request_network(
            NetworkRequest(
                version=request.version,
                session_id=request.session_id,
                path=request.path.bits,
                interest=request.interest.values,
                encoding=choose_encoding(request.accepted_encodings),
                allowance=Allowance(budget.max_artefact_bytes, budget.max_flops),
                held_etag=request.held_candidates_etag,
                accept_partial=request.accept_partial_candidates,
                timeout=time_left(),
                report=_report(request),
            )
        )
        return _network_message(reply)

    async def GetDeviceBundle(
        self, request: controller_pb2.GetDeviceBundleRequest, context: _Context
    ) -> AsyncGenerator[controller_pb2.GetDeviceBundleResponse, None]:
        chunks = self._controller.bundle(
            request.version,
            _PARTS.get(request.part),
            request.shard,
            request.offset,
            request.session_id,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield controller_pb2.GetDeviceBundleResponse(
                    version=chunk.version,
                    total_bytes=chunk.total_bytes,
                    sha256=chunk.sha256,
                    offset=chunk.offset,
                    data=chunk.data,
                )

    async def GetCandidates(
        self, request: controller_pb2.GetCandidatesRequest, context: _Context
    ) -> controller_pb2.GetCandidatesResponse:
        found = await self._controller.candidates(
            CandidatesRequest(
                version=request.version,
                session_id=request.session_id,
                interest=request.interest.values if request.HasField("interest") else None,
                encoding=choose_encoding(request.accepted_encodings),
                held_etag=request.held_candidates_etag,
                accept_partial=request.accept_partial_candidates,
            )
        )
        return controller_pb2.GetCandidatesResponse(
            version=request.version, candidates=_candidates_message(found)
        )


def _report(request: controller_pb2.RequestNetworkRequest) -> DeviceReport | None:
    if not request.HasField("report"):
        return None
    told = request.report
    return DeviceReport(told.version, told.touched, told.hits, told.damaged)


def _network_message(reply: NetworkReply) -> bytes:
    """A serialised RequestNetworkResponse, with the artefact as the assembler wrote it."""
    cost = cost_message(reply.network.cost)
    cost.candidate_bytes = reply.candidates.bytes
    cost.times.assemble_us = reply.assemble_us
    cost.times.retrieve_us = reply.retrieve_us
    cost.times.total_us = reply.total_us
    rest = controller_pb2.RequestNetworkResponse(
        version=reply.version,
        candidates=_candidates_message(reply.candidates),
        cost=cost,
        ttl_seconds=reply.ttl_seconds,
        retry=types_pb2.RetryWindow(min_ms=reply.retry[0], max_ms=reply.retry[1]),
        current_version=reply.current_version,
    )
    return b"".join([*reply.network.artefact, rest.SerializeToString()])


def _candidates_message(found: CandidateList) -> types_pb2.Candidates:
    if found.not_modified:
        return types_pb2.Candidates(etag=found.etag, not_modified=True)
    return types_pb2.Candidates(
        etag=found.etag,
        item_ids=found.item_ids,
        encoding=encoding_number(found.encoding),
        embeddings=found.embeddings,
        base_etag=found.base_etag,
        held_positions=found.held_positions,
    )
