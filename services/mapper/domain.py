"""W_k = H'_k(h) for the kept blocks (paper, Eq. 9), each ready for the wire."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import torch

from services.checks import check_interest, check_path
from services.errors import Fault, Reason
from services.mapper.encoding import BlockEncoder
from services.mapper.hypernetworks import BlockHypernetworks, Precision
from services.mapper.settings import MapperSettings
from services.mapper.workers import Generation, Workers
from services.ports import GeneratedBlocks, GenerationRequest
from services.registry.contract import PublishedVersion
from services.runtime.metrics import Metrics
from services.versions import Versions

# About a millisecond of one core: so long may a lone request keep the event loop.
_HERE_WEIGHTS = 10_000_000
_CALM, _PROBE_EVERY = 8, 16


@dataclass(frozen=True)
class MappedVersion:
    """What the mapper holds of a version."""

    networks: BlockHypernetworks
    encoder: BlockEncoder

    @classmethod
    def load(cls, published: PublishedVersion, precision: Precision = "float32") -> MappedVersion:
        """Verified and warm. Raises Fault CORRUPT_VERSION."""
        networks = BlockHypernetworks.load(published, precision)
        loaded = cls(networks, BlockEncoder(networks.layout))
        row = torch.zeros(1, networks.hidden + 1)
        out = torch.empty(1, networks.layout.size)
        with torch.inference_mode():
            # The libraries set themselves up at their first call; no request should wait for that.
            for block in range(networks.blocks):
                loaded.encoder.encode(networks.multiply(block, row, out), "float16")
        return loaded


class LocalMapper:
    """Keeps `ports.Mapper` with worker threads: the event loop only queues and waits.

    Make it in the event loop that will call it.
    """

    def __init__(
        self, versions: Versions[MappedVersion], settings: MapperSettings, metrics: Metrics
    ) -> None:
        torch.set_num_threads(settings.torch_threads)
        self._versions, self._metrics = versions, metrics
        self._limit = settings.workers + settings.queue
        self._pending = 0
        self._alone = 0
        # bfloat16 may take many times longer, and nobody knows that of a processor beforehand.
        self._here_weights = _HERE_WEIGHTS if settings.precision == "float32" else 0
        self._workers = Workers(settings.workers, settings.max_batch, metrics)

    async def generate(self, request: GenerationRequest) -> GeneratedBlocks:
        """Raises Fault; OVERLOADED at once if the queue is full, DEADLINE if it ends waiting."""
        version = await self._versions.get(request.version)
        networks = version.networks
        path = check_path(request.path, networks.blocks)
        row = networks.row(check_interest(request.interest, networks.hidden))
        if self._pending >= self._limit:
            raise Fault(Reason.OVERLOADED, detail="mapper queue")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        generation = Generation(
            networks,
            version.encoder,
            row,
            request.encoding,
            [block for block, kept in enumerate(path) if kept],
            done,
        )
        self._count(1)
        try:
            # A caller that goes away, or whose time is up, cancels the future: the workers
            # then leave its blocks out of their next batches.
            async with asyncio.timeout(request.timeout):
                if self._is_alone(len(generation.blocks) * networks.weight_values):
                    self._workers.generate_here(generation)
                else:
                    self._workers.submit(generation)
                await done
        except TimeoutError as error:
            raise Fault(Reason.DEADLINE, detail="waiting for a mapper worker") from error
        finally:
            self._count(-1)
        return GeneratedBlocks(
            generation.payloads,
            networks.flops(len(generation.blocks)),
            _us(generation.started - generation.queued),
            _us(generation.finished - generation.started),
        )

    def _is_alone(self, weights: int) -> bool:
        """Whether to generate at once in the event loop, since nobody else is there.

        Then waking a thread and handing the interpreter lock to and fro would cost as much as
        the products of a small network. A busy loop looks alone too: it generates before it
        reads the next request. So every few times the workers get one, and if another request
        comes in meanwhile, they get all until it is quiet again.
        """
        self._alone = self._alone + 1 if self._pending == 1 else 0
        calm = self._alone > _CALM and self._alone % _PROBE_EVERY
        return bool(calm) and weights <= self._here_weights

    def ready(self) -> bool:
        """Whether a version is here and workers to generate with it."""
        return self._versions.ready() and self._workers.alive()

    def close(self) -> None:
        """Drops what waits, ends the workers."""
        self._workers.close()

    def _count(self, change: int) -> None:
        self._pending += change
        self._metrics.queue_depth.set(self._pending)


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
