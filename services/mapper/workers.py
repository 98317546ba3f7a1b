"""The threads that generate, and their queues.

One queue a (version, block), so that devices with different paths share a batch. Nobody waits
for a batch to fill: a free worker takes the block that has waited longest, and everything
that is queued for it. Callers who have gone are dropped when a batch is formed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.mapper.encoding import BlockEncoder
from services.mapper.hypernetworks import BlockHypernetworks
from services.ports import Encoding
from services.runtime.metrics import Metrics


@dataclass(eq=False)
class Generation:
    """One request on its way. row: [h, 1]. payloads: filled a block at a time, in order.

    Everything below `done` belongs to the workers' lock.
    """

    networks: BlockHypernetworks
    encoder: BlockEncoder
    row: np.ndarray
    encoding: Encoding
    blocks: Sequence[int]
    done: asyncio.Future[None]
    queued: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    finished: float = 0.0
    payloads: list[bytes] = field(default_factory=list)
    missing: int = 0

    def __post_init__(self) -> None:
        self.missing = len(self.blocks)
        self.payloads = [b""] * self.missing


_Key = tuple[BlockHypernetworks, int]
_Job = tuple[Generation, int]


class Workers:
    """Worker threads of one process.

    threads: how many. max_batch: requests of one product. Submit from one event loop only; it
    is told there when a generation is done.
    """

    def __init__(self, threads: int, max_batch: int, metrics: Metrics) -> None:
        self._max_batch, self._metrics = max_batch, metrics
        self._loop = asyncio.get_running_loop()
        self._queues: OrderedDict[_Key, deque[_Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        metrics.queue_age.set_function(self._oldest_age)
        self._threads = [
            threading.Thread(target=self._run, name=f"mapper-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, generation: Generation) -> None:
        """Queues every block. `generation.done` is resolved in the event loop."""
        with self._changed:
            for slot, block in enumerate(generation.blocks):
                key = (generation.networks, block)
                self._queues.setdefault(key, deque()).append((generation, slot))
            self._changed.notify(len(generation.blocks))

    def close(self) -> None:
        """Drops what waits, ends the threads."""
        with self._changed:
            self._closed = True
            self._queues.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _oldest_age(self) -> float:
        with self._changed:
            heads = [queue[0][0].queued for queue in self._queues.values() if queue]
        return time.perf_counter() - min(heads) if heads else 0.0

    def _run(self) -> None:
        scratch = _Scratch(self._max_batch)
        with torch.inference_mode():
            while (taken := self._take()) is not None:
                (networks, block), jobs = taken
                try:
                    payloads = scratch.generate(networks, block, [job for job, _ in jobs])
                except Exception as error:
                    self._tell([job for job, _ in jobs], error)
                else:
                    self._finish(jobs, payloads)
                # Nothing of a version stays here once its last request is done.
                del networks, jobs, taken

    def _take(self) -> tuple[_Key, list[_Job]] | None:
        """The block that waits longest with what is queued for it; None at the end."""
        jobs: list[_Job] = []
        with self._changed:
            while not jobs:
                while not self._queues:
                    if self._closed:
                        return None
                    self._changed.wait()
                key, queue = self._queues.popitem(last=False)
                now = time.perf_counter()
                while queue and len(jobs) < self._max_batch:
                    generation, slot = queue.popleft()
                    if generation.done.done():
                        self._metrics.dropped_blocks.inc()
                        continue
                    generation.started = generation.started or now
                    jobs.append((generation, slot))
                if queue:
                    self._queues[key] = queue
                elif not jobs:
                    del key, queue
        self._metrics.batch_size.observe(len(jobs))
        return key, jobs

    def _finish(self, jobs: Sequence[_Job], payloads: Iterator[bytes]) -> None:
        whole = []
        now = time.perf_counter()
        with self._changed:
            for (generation, slot), payload in zip(jobs, payloads, strict=True):
                generation.payloads[slot] = payload
                generation.missing -= 1
                if not generation.missing:
                    generation.finished = now
                    whole.append(generation)
        if whole:
            self._tell(whole, None)

    def _tell(self, generations: Sequence[Generation], error: Exception | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, generations, error)


def _resolve(generations: Sequence[Generation], error: Exception | None) -> None:
    for generation in generations:
        if generation.done.done():
            continue
        if error is None:
            generation.done.set_result(None)
        else:
            generation.done.set_exception(error)


class _Scratch:
    """What one thread computes in: reused, since fresh pages cost as much as the product."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._rows = torch.empty(0)
        self._out = torch.empty(0)

    def generate(
        self, networks: BlockHypernetworks, block: int, batch: Sequence[Generation]
    ) -> Iterator[bytes]:
        """The payload of one block for each request of the batch, in its order."""
        rows, out = self._buffers(len(batch), networks)
        # Equal encodings side by side, so that each is one call.
        order = sorted(range(len(batch)), key=lambda index: batch[index].encoding)
        view = rows.numpy()
        for place, index in enumerate(order):
            view[place] = batch[index].row
        networks.multiply(block, rows, out)
        payloads = [b""] * len(batch)
        start = 0
        while start < len(order):
            encoding = batch[order[start]].encoding
            end = start
            while end < len(order) and batch[order[end]].encoding == encoding:
                end += 1
            made = batch[order[start]].encoder.encode(out[start:end], encoding)
            for index, payload in zip(order[start:end], made, strict=True):
                payloads[index] = payload
            start = end
        return iter(payloads)

    def _buffers(self, n: int, networks: BlockHypernetworks) -> tuple[Tensor, Tensor]:
        width, size = networks.hidden + 1, networks.layout.size
        if self._rows.shape != (self._max_batch, width):
            self._rows = torch.empty(self._max_batch, width)
        if self._out.shape != (self._max_batch, size):
            self._out = torch.empty(self._max_batch, size)
        return self._rows[:n], self._out[:n]
