"""Kept blocks' parameters to one artefact, with its digest and its cost."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from forward_ofa_device.artefact import BlockLayout, artefact_header
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import Flops
from services.assembler.settings import AssemblerSettings
from services.checks import check_interest, check_path
from services.errors import Fault, Reason
from services.ports import (
    AssembledNetwork,
    Buffer,
    Encoding,
    GeneratedBlocks,
    GenerationRequest,
    Mapper,
    NetworkCost,
)
from services.registry.contract import PublishedVersion
from services.versions import Versions
from services.wire import artefact_field

_MOST_HEADERS = 4096


@dataclass(frozen=True)
class Blueprint:
    """What assembling for one version takes: no tensors. blocks: L, hidden: D.

    headers: those that were made, by path and encoding.
    """

    version: str
    backbone: str
    blocks: int
    hidden: int
    layout: BlockLayout
    block_flops: Flops
    fixed_flops: Flops
    headers: dict[tuple[tuple[bool, ...], Encoding], bytes] = field(default_factory=dict)

    @classmethod
    def load(cls, published: PublishedVersion) -> Blueprint:
        config = published.manifest.backbone
        backbone = build(config)
        return cls(
            published.manifest.version,
            config.name,
            config.blocks,
            config.hidden,
            BlockLayout.of(backbone.block_parameters()),
            backbone.block_flops(),
            backbone.fixed_flops(),
        )

    def header(self, path: tuple[bool, ...], encoding: Encoding) -> bytes:
        """What an artefact begins with."""
        known = self.headers.get((path, encoding))
        if known is None:
            known = artefact_header(self.version, self.backbone, path, encoding, self.layout)
            if len(self.headers) < _MOST_HEADERS:
                self.headers[path, encoding] = known
        return known

    def flops(self, kept: int) -> Flops:
        """One forward pass of a network with so many blocks."""
        return self.fixed_flops + self.block_flops * kept


class LocalAssembler:
    """Keeps `ports.Assembler` on top of any Mapper."""

    def __init__(
        self, versions: Versions[Blueprint], mapper: Mapper, settings: AssemblerSettings
    ) -> None:
        self._versions, self._mapper, self._settings = versions, mapper, settings

    async def assemble(self, request: GenerationRequest) -> AssembledNetwork:
        """Raises Fault: a malformed request's before the mapper is asked, else the mapper's."""
        blueprint = await self._versions.get(request.version)
        path = check_path(request.path, blueprint.blocks)
        check_interest(request.interest, blueprint.hidden)
        limit = self._settings.mapper_seconds
        timeout = limit if request.timeout is None else min(limit, request.timeout)
        asked = time.perf_counter()
        generated = await self._mapper.generate(replace(request, timeout=timeout))
        answered = time.perf_counter()
        header = blueprint.header(path, request.encoding)
        expected = sum(path) * blueprint.layout.encoded_bytes(request.encoding)
        if sum(len(piece) for piece in generated.payload) != expected:
            # A mapper of another build could answer with other blocks than the header names.
            raise Fault(Reason.INTERNAL, detail="the mapper's blocks are not those of the layout")
        data = [header, *generated.payload]
        artefact = artefact_field(data, _digest(data), request.encoding)
        flops = blueprint.flops(sum(path))
        cost = NetworkCost(
            paper_device_flops=flops.paper,
            true_device_flops=flops.true,
            generation_flops=generated.generation_flops,
            artefact_bytes=len(header) + expected,
            queue_us=generated.queue_us,
            map_us=_map_us(generated, answered - asked),
            assemble_us=round((time.perf_counter() - answered) * 1e6),
        )
        return AssembledNetwork(artefact, cost)


def _digest(data: Sequence[Buffer]) -> bytes:
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    return digest.digest()


def _map_us(generated: GeneratedBlocks, seconds: float) -> int:
    """The mapper's time with its hop, without its queue."""
    return max(generated.map_us, round(seconds * 1e6) - generated.queue_us)
