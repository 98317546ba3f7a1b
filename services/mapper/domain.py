"""W_k = H'_k(h) for the kept blocks (paper, Eq. 9), each ready for the wire.

Shape legend: D hidden width, P parameters of a block.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from forward_ofa_device.artefact import BlockLayout, encode_block
from forward_ofa_device.backbones import build
from services.checks import check_interest, check_path
from services.errors import Fault, Reason
from services.mapper.settings import MapperSettings
from services.ports import Encoding, GeneratedBlocks, GenerationRequest
from services.registry.contract import MAPPER, PublishedVersion
from services.versions import Versions

_HALF_MAX = torch.finfo(torch.float16).max


class BlockHypernetworks:
    """H'_0 .. H'_{L-1} of one version. Stateless after loading: threads may share it.

    weights: [P, D] a block, biases: [P] a block, memory-mapped float32.
    """

    def __init__(self, hidden: int, layout: BlockLayout, tensors: dict[str, Tensor]) -> None:
        self.hidden, self.layout = hidden, layout
        self.blocks = len(tensors) // 2
        self._weights = [tensors[f"block.{index}.weight"] for index in range(self.blocks)]
        self._biases = [tensors[f"block.{index}.bias"] for index in range(self.blocks)]

    @classmethod
    def load(cls, published: PublishedVersion) -> BlockHypernetworks:
        """Raises Fault CORRUPT_VERSION if the tensors are not those of the backbone."""
        config = published.manifest.backbone
        layout = BlockLayout.of(build(config).block_parameters())
        try:
            tensors = load_file(published.path(MAPPER))
        except SafetensorError as error:
            raise published.corrupt(MAPPER, error) from error
        expected: dict[str, tuple[int, ...]] = {}
        for block in range(config.blocks):
            expected[f"block.{block}.weight"] = (layout.size, config.hidden)
            expected[f"block.{block}.bias"] = (layout.size,)
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected or any(
            tensor.dtype != torch.float32 for tensor in tensors.values()
        ):
            raise published.corrupt(MAPPER, "the tensors are not those of the backbone")
        loaded = cls(config.hidden, layout, tensors)
        loaded.generate(tuple([True] * config.blocks), torch.zeros(config.hidden), "float16")
        return loaded

    def generate(self, path: tuple[bool, ...], interest: Tensor, encoding: Encoding) -> list[bytes]:
        """The payload of each kept block, ascending. interest: [D].

        Raises Fault NON_FINITE_INTEREST if a parameter overflows float32.
        """
        payloads = []
        for block in (index for index, kept in enumerate(path) if kept):
            flat = torch.addmv(self._biases[block], self._weights[block], interest)
            if not torch.isfinite(flat).all():
                raise Fault(Reason.NON_FINITE_INTEREST, detail="generated parameters overflow")
            payloads.append(self._encode(flat, encoding))
        return payloads

    def _encode(self, flat: Tensor, encoding: Encoding) -> bytes:
        if encoding == "float16":
            # The same bytes as encode_block's; torch converts several times faster.
            return flat.clamp(-_HALF_MAX, _HALF_MAX).to(torch.float16).numpy().tobytes()
        return encode_block(flat.numpy(), self.layout, encoding)

    def flops(self, kept: int) -> int:
        """Multiply-accumulates of generating so many blocks."""
        return kept * self.hidden * self.layout.size


class LocalMapper:
    """Keeps `ports.Mapper` with worker threads: the event loop only queues and waits."""

    def __init__(self, versions: Versions[BlockHypernetworks], settings: MapperSettings) -> None:
        torch.set_num_threads(settings.torch_threads)
        self._versions = versions
        self._limit = settings.workers + settings.queue
        self._pending = 0
        self._pool = ThreadPoolExecutor(settings.workers, "mapper")

    async def generate(self, request: GenerationRequest) -> GeneratedBlocks:
        """Raises Fault; OVERLOADED at once if the queue is full, DEADLINE if it ends waiting."""
        networks = await self._versions.get(request.version)
        path = check_path(request.path, networks.blocks)
        # A copy: the bytes are read-only, which torch does not know.
        interest = torch.from_numpy(check_interest(request.interest, networks.hidden).copy())
        work = partial(networks.generate, path, interest, request.encoding)
        if self._pending >= self._limit:
            raise Fault(Reason.OVERLOADED, detail="mapper queue")
        self._pending += 1
        try:
            # A caller that goes away cancels this, and the pool drops what has not started.
            async with asyncio.timeout(request.timeout):
                payloads, queue_us, map_us = await asyncio.get_running_loop().run_in_executor(
                    self._pool, _timed, work, time.perf_counter()
                )
        except TimeoutError as error:
            raise Fault(Reason.DEADLINE, detail="waiting for a mapper worker") from error
        finally:
            self._pending -= 1
        return GeneratedBlocks(payloads, networks.flops(sum(path)), queue_us, map_us)

    def close(self) -> None:
        """Drops what waits, ends the workers."""
        self._pool.shutdown(cancel_futures=True)


def _timed(work: partial[list[bytes]], queued: float) -> tuple[list[bytes], int, int]:
    started = time.perf_counter()
    with torch.inference_mode():
        payloads = work()
    return payloads, _us(started - queued), _us(time.perf_counter() - started)


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
