"""What devices ask for: networks, candidates, bundles."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from services.checks import check_interest, check_path, check_session_id
from services.controller.bundles import BundleChunk, BundlePart, bundle_file, stream_file
from services.controller.candidates import (
    CandidateFinder,
    CandidateList,
    CandidateOrder,
    check_etag,
)
from services.controller.reports import DeviceReport, Reports
from services.controller.served import Allowance, DenseNetwork, ServedVersion
from services.controller.settings import ControllerSettings
from services.errors import Fault, Reason, RetryMs
from services.ports import (
    AssembledNetwork,
    Assembler,
    Encoding,
    GenerationRequest,
)
from services.runtime.metrics import Metrics
from services.runtime.tracing import stage
from services.versions import Versions


@dataclass(frozen=True)
class NetworkRequest:
    """See RequestNetworkRequest; `timeout`: seconds left to the caller, None: no deadline."""

    version: str
    session_id: str
    path: bytes
    interest: bytes
    encoding: Encoding = "float16"
    allowance: Allowance = field(default_factory=Allowance)
    held_etag: str = ""
    accept_partial: bool = False
    timeout: float | None = None
    report: DeviceReport | None = None

    @property
    def order(self) -> CandidateOrder:
        return CandidateOrder(self.session_id, self.encoding, self.held_etag, self.accept_partial)


@dataclass(frozen=True)
class CandidatesRequest:
    """See GetCandidatesRequest; interest None: the session's current candidates."""

    version: str
    session_id: str
    interest: bytes | None = None
    encoding: Encoding = "float16"
    held_etag: str = ""
    accept_partial: bool = False

    @property
    def order(self) -> CandidateOrder:
        return CandidateOrder(self.session_id, self.encoding, self.held_etag, self.accept_partial)


@dataclass(frozen=True)
class NetworkReply:
    """See RequestNetworkResponse. Times in microseconds."""

    version: str
    network: AssembledNetwork
    candidates: CandidateList
    assemble_us: int
    retrieve_us: int
    total_us: int
    ttl_seconds: int
    retry: RetryMs
    current_version: str


class _Series:
    """The time series of a network request, looked up once."""

    def __init__(self, metrics: Metrics) -> None:
        self.paper_flops = metrics.device_flops.labels("paper")
        self.true_flops = metrics.device_flops.labels("true")
        self.dense_paper_flops = metrics.dense_flops.labels("paper")
        self.dense_true_flops = metrics.dense_flops.labels("true")
        self.dense_bytes = metrics.dense_bytes
        self.generation_flops = metrics.generation_flops
        self.kept_blocks = metrics.kept_blocks
        self.artefact_bytes = metrics.response_bytes.labels("artefact")
        self.candidate_bytes = metrics.response_bytes.labels("candidates")
        self.queue = metrics.stage_seconds.labels("queue")
        self.map = metrics.stage_seconds.labels("map")
        self.assemble = metrics.stage_seconds.labels("assemble")
        self.retrieve = metrics.stage_seconds.labels("retrieve")
        self.total = metrics.stage_seconds.labels("total")


class Controller:
    """See ControllerService in controller.proto; knows no transport."""

    def __init__(
        self,
        versions: Versions[ServedVersion],
        assembler: Assembler,
        finder: CandidateFinder,
        settings: ControllerSettings,
        metrics: Metrics,
    ) -> None:
        self._versions, self._assembler, self._finder = versions, assembler, finder
        self._settings, self._metrics = settings, metrics
        self._series = _Series(metrics)
        self._reports = Reports(metrics, lambda: versions.loaded)

    async def request_network(self, request: NetworkRequest) -> NetworkReply:
        """One network and its candidates. Raises Fault."""
        arrived = time.perf_counter()
        served = await self._versions.get(request.version, request.session_id)
        check_etag(request.held_etag)
        check_session_id(request.session_id)
        path = check_path(request.path, served.backbone.blocks)
        interest = check_interest(request.interest, served.backbone.hidden)
        served.check_budget(path, request.encoding, request.allowance)
        assembling = asyncio.create_task(self._assemble(request))
        retrieving = time.perf_counter()
        try:
            with stage("retrieve"):
                candidates = await self._finder.find(served, interest, request.order)
            retrieve_us = _us_since(retrieving)
            network, assemble_us = await assembling
        finally:
            assembling.cancel()
        reply = NetworkReply(
            request.version,
            network,
            candidates,
            assemble_us,
            retrieve_us,
            _us_since(arrived),
            self._settings.network_ttl_seconds,
            (self._settings.retry_min_ms, self._settings.retry_max_ms),
            self._versions.current_for(request.session_id),
        )
        self._observe(reply, sum(path), served.dense(request.encoding))
        if request.report is not None:
            self._reports.count(request.report, request.version)
        return reply

    async def candidates(self, request: CandidatesRequest) -> CandidateList:
        """Candidates alone, by interest or as the session has them. Raises Fault."""
        served = await self._versions.get(request.version, request.session_id)
        check_etag(request.held_etag)
        check_session_id(request.session_id)
        if request.interest is not None:
            interest = check_interest(request.interest, served.backbone.hidden)
            found = await self._finder.find(served, interest, request.order)
        else:
            found = await self._finder.current(served, request.order)
        self._metrics.response_bytes.labels("candidates").observe(found.bytes)
        return found

    async def bundle(
        self,
        version: str,
        part: BundlePart | None,
        shard: int,
        offset: int,
        session_id: str = "",
    ) -> AsyncGenerator[BundleChunk, None]:
        """One file of a bundle; version "": the one of the session, if it is named. Raises
        Fault."""
        if session_id:
            check_session_id(session_id)
        if not version and offset:
            raise Fault(Reason.MISSING_VERSION)
        if not version and not self._versions.current:
            raise Fault(Reason.NO_VERSION)
        version = version or self._versions.current_for(session_id)
        served = await self._versions.get(version, session_id)
        name = bundle_file(served.published, part, shard)
        sent = 0
        try:
            async with aclosing(stream_file(served.published, name, offset)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    sent += len(chunk.data)
        finally:
            self._metrics.response_bytes.labels("bundle").observe(sent)

    async def _assemble(self, request: NetworkRequest) -> tuple[AssembledNetwork, int]:
        """The network, and the assembler's microseconds with its hop, without the mapper's."""
        asked = time.perf_counter()
        try:
            network = await self._assembler.assemble(
                GenerationRequest(
                    request.version,
                    request.path,
                    request.interest,
                    request.encoding,
                    request.timeout,
                )
            )
        except Fault as fault:
            if fault.reason in (Reason.UNKNOWN_VERSION, Reason.NO_VERSION):
                # Served here, not there yet: the device did nothing wrong.
                raise Fault(Reason.UPSTREAM_UNAVAILABLE, detail=str(fault)) from fault
            raise
        cost = network.cost
        elsewhere = cost.queue_us + cost.map_us
        return network, max(cost.assemble_us, _us_since(asked) - elsewhere)

    def _observe(self, reply: NetworkReply, kept: int, dense: DenseNetwork) -> None:
        cost, series = reply.network.cost, self._series
        series.paper_flops.observe(cost.paper_device_flops)
        series.true_flops.observe(cost.true_device_flops)
        series.dense_paper_flops.inc(dense.flops.paper)
        series.dense_true_flops.inc(dense.flops.true)
        series.dense_bytes.inc(dense.bytes)
        series.generation_flops.observe(cost.generation_flops)
        series.kept_blocks.observe(kept)
        series.artefact_bytes.observe(cost.artefact_bytes)
        series.candidate_bytes.observe(reply.candidates.bytes)
        series.queue.observe(cost.queue_us / 1e6)
        series.map.observe(cost.map_us / 1e6)
        series.assemble.observe(reply.assemble_us / 1e6)
        series.retrieve.observe(reply.retrieve_us / 1e6)
        series.total.observe(reply.total_us / 1e6)


def _us_since(moment: float) -> int:
    return round((time.perf_counter() - moment) * 1e6)
