"""Work whose caller has gone, or whose time is up, is not done: seen from outside, by what the
mapper counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_api.types.v1 import types_pb2
from forward_ofa_device.backbones.contract import BackboneConfig
from services.registry.files import FileRegistry
from tests.support.fleet import Member, fleet
from tests.support.serving import network_request
from tests.support.versions import TinyVersion, publish

pytestmark = pytest.mark.slow

# One block takes one thread some milliseconds, and nothing is done together.
SLOW = BackboneConfig(blocks=4, hidden=96, history=5, heads=2)
ONE_BY_ONE = ["--mapper-workers", "1", "--mapper-batch", "1"]
# No second attempts, which would be work of their own.
PATIENT = ["--attempt-seconds", "60"]
REQUESTS, BLOCKS = 60, 4


class Work:
    """What the mapper did since this was made, in blocks."""

    def __init__(self, mapper: Member) -> None:
        self._mapper = mapper
        self._done, self._dropped = self._counts()

    def _counts(self) -> tuple[float, float]:
        return (
            self._mapper.total("forward_ofa_mapper_batch_size_sum"),
            self._mapper.total("forward_ofa_mapper_dropped_blocks_total"),
        )

    async def queued(self, requests: int) -> None:
        """Returns once so many wait at the mapper."""
        for _ in range(200):
            depth = "forward_ofa_mapper_queue_depth"
            if await asyncio.to_thread(self._mapper.total, depth) >= requests:
                return
        raise AssertionError("the mapper is too quick to show anything")

    async def settled(self) -> tuple[float, float]:
        """Blocks made and blocks left out, once nothing waits any more."""
        for _ in range(200):
            await asyncio.sleep(0.05)
            if not self._mapper.total("forward_ofa_mapper_queue_depth"):
                break
        # Cancelled blocks leave the queue when a worker comes to them.
        before = None
        while before != (now := self._counts()):
            before = now
            await asyncio.sleep(0.2)
        return now[0] - self._done, now[1] - self._dropped


async def test_nothing_is_made_for_those_who_have_gone(tmp_path: Path):
    registry = FileRegistry(tmp_path / "registry")
    slow = publish(registry, "v1", config=SLOW)
    options = {"mapper": ONE_BY_ONE, "assembler": PATIENT, "controller": PATIENT}
    with fleet(registry.root, tmp_path, 1, options) as members:
        mapper = members["mapper"][0]
        async with grpc.aio.insecure_channel(members["controller"][0].address) as channel:
            stub = ControllerServiceStub(channel)

            async def ask(timeout: float = 60.0):
                request = network_request(slow, path=_whole_path(slow))
                return await stub.RequestNetwork(request, timeout=timeout)

            assert (await ask()).artefact.data
            await all_wait(ask, Work(mapper))
            await most_go_away(ask, Work(mapper))
            await too_little_time(ask, Work(mapper))
            assert (await ask(10.0)).artefact.data


async def all_wait(ask, work: Work) -> None:
    """As a measure: everything is made, once."""
    replies = await asyncio.gather(*(ask() for _ in range(REQUESTS)))
    assert all(reply.artefact.data for reply in replies)
    assert await work.settled() == (REQUESTS * BLOCKS, 0)


async def most_go_away(ask, work: Work) -> None:
    calls = [asyncio.create_task(ask()) for _ in range(REQUESTS)]
    await work.queued(REQUESTS // 2)
    gone = [call for call in calls[4:] if not call.done()]
    for call in gone:
        call.cancel()
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(reply, asyncio.CancelledError) for reply in replies) == len(gone)
    made, left_out = await work.settled()
    # Some had not come as far as the mapper, and some blocks had been made when they went.
    assert made + left_out <= REQUESTS * BLOCKS
    assert made <= (REQUESTS - len(gone) / 2) * BLOCKS, (made, left_out, len(gone))
    assert left_out >= 5 * BLOCKS, (made, left_out, len(gone))


async def too_little_time(ask, work: Work) -> None:
    """The queue is longer than the callers can wait: they are refused in time."""
    replies = await asyncio.gather(*(ask(0.15) for _ in range(REQUESTS)), return_exceptions=True)
    refused = [reply for reply in replies if isinstance(reply, grpc.aio.AioRpcError)]
    assert {error.code() for error in refused} <= {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    made, _ = await work.settled()
    answered = REQUESTS - len(refused)
    assert len(refused) > REQUESTS / 2
    assert made <= (answered + 12) * BLOCKS, (made, answered)


def _whole_path(version: TinyVersion):
    return types_pb2.Path(bits=version.path(*range(BLOCKS)))
