"""The threads that generate, and their queues.

One queue a (version, block), so that devices with different paths share a batch. Nobody waits
for a batch to fill: a free worker takes the block that has waited longest, and everything
that is queued for it. Callers who have gone are dropped when a batch is formed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.mapper.encoding import BlockEncoder
from services.mapper.hypernetworks import BlockHypernetworks
from services.ports import Encoding
from services.runtime.metrics import Metrics

_NICE = 4


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
_Jobs = list[_Job]


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
        self._scratch = _Scratch(1)
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

    def generate_here(self, generation: Generation) -> None:
        """The same at once, in the calling thread."""
        generation.started = time.perf_counter()
        with torch.inference_mode():
            for slot, block in enumerate(generation.blocks):
                (made,) = self._scratch.generate(generation.networks, block, [generation])
                generation.payloads[slot] = made
                self._metrics.batch_size.observe(1)
        generation.finished = time.perf_counter()
        generation.done.set_result(None)

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

    def alive(self) -> bool:
        """Whether all threads work."""
        return all(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        _step_back()
        scratch = _Scratch(self._max_batch)
        with torch.inference_mode():
            while batches := self._take():
                self._work(scratch, batches)
                # Nothing of a version stays here once its last request is done.
                del batches

    def _work(self, scratch: _Scratch, batches: Sequence[tuple[_Key, _Jobs]]) -> None:
        finished: list[tuple[_Jobs, list[bytes]]] = []
        for (networks, block), jobs in batches:
            try:
                made = scratch.generate(networks, block, [job for job, _ in jobs])
            except Exception as error:
                self._tell([job for job, _ in jobs], error)
            else:
                finished.append((jobs, made))
        self._finish(finished)

    def _take(self) -> list[tuple[_Key, _Jobs]]:
        """This worker's share of the blocks that wait, longest first; empty at the end.

        A share and not one block: a worker is woken once for all blocks of a lone request.
        """
        taken: list[tuple[_Key, _Jobs]] = []
        with self._changed:
            while not taken:
                while not self._queues:
                    if self._closed:
                        return []
                    # An idle thread holds on to no version.
                    key = queue = None
                    self._changed.wait()
                now = time.perf_counter()
                for _ in range(-(-len(self._queues) // len(self._threads))):
                    key, queue = self._queues.popitem(last=False)
                    if jobs := self._batch(queue, now):
                        taken.append((key, jobs))
                    if queue:
                        self._queues[key] = queue
        for _, jobs in taken:
            self._metrics.batch_size.observe(len(jobs))
        return taken

    def _batch(self, queue: deque[_Job], now: float) -> _Jobs:
        """What is queued, without those who have gone."""
        jobs: _Jobs = []
        while queue and len(jobs) < self._max_batch:
            generation, slot = queue.popleft()
            if generation.done.done():
                self._metrics.dropped_blocks.inc()
                continue
            generation.started = generation.started or now
            jobs.append((generation, slot))
        return jobs

    def _finish(self, finished: Sequence[tuple[_Jobs, Sequence[bytes]]]) -> None:
        whole = []
        now = time.perf_counter()
        with self._changed:
            for jobs, payloads in finished:
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


def _step_back() -> None:
    """Let the event loop's threads go first where cores are scarce.

    While requests wait to be read, reading them makes the next batch larger; a product started
    before that would read all weights for one of them. With idle cores nothing changes.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # From where it is: a process that was started with `nice` may not go below that.
        now = os.getpriority(os.PRIO_PROCESS, thread)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(now + _NICE, 19))


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
    ) -> list[bytes]:
        """The payload of one block for each request of the batch, in its order."""
        rows, out = self._buffers(len(batch), networks)
        view = rows.numpy()
        for place, generation in enumerate(batch):
            view[place] = generation.row
        networks.multiply(block, rows, out)
        encodings = {generation.encoding for generation in batch}
        if len(encodings) == 1:
            return batch[0].encoder.encode(out, batch[0].encoding)
        payloads = [b""] * len(batch)
        for encoding in encodings:
            places = [n for n, generation in enumerate(batch) if generation.encoding == encoding]
            made = batch[0].encoder.encode(out[places], encoding)
            for place, payload in zip(places, made, strict=True):
                payloads[place] = payload
        return payloads

    def _buffers(self, n: int, networks: BlockHypernetworks) -> tuple[Tensor, Tensor]:
        width, size = networks.hidden + 1, networks.layout.size
        if self._rows.shape != (self._max_batch, width):
            self._rows = torch.empty(self._max_batch, width)
        if self._out.shape != (self._max_batch, size):
            self._out = torch.empty(self._max_batch, size)
        return self._rows[:n], self._out[:n]
