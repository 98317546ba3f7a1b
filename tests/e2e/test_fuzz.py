"""Fuzzed requests against running servers: never a crash, a hang, or an answer that blames us.

$FORWARD_OFA_FUZZ_SEED chooses other requests than those of every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_device.artefact import read_artefact
from services.registry.files import FileRegistry
from tests.support.fuzz import METHODS, Shot, shots, volleys
from tests.support.rubbish import connection, throw
from tests.support.serving import Process, network_request, three_processes
from tests.support.versions import TinyVersion, publish

VOLLEY = 100
SEED = int(os.environ.get("FORWARD_OFA_FUZZ_SEED", "0"))
ANSWERS = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
}
MEMORY = 96 * 2**20
"""Bytes by which a process may grow under rubbish."""
_REQUEST_NETWORK = next(iter(METHODS))


class Range:
    """Servers to shoot at, and what they answered. address: of each service, by its prefix."""

    def __init__(self, tiny: TinyVersion, processes: Sequence[Process], at: Mapping[str, str]):
        self.tiny, self.processes = tiny, processes
        self.codes: Counter[str] = Counter()
        self.right = 0
        self._runner = asyncio.Runner()
        self._at = at
        self._channels = self._run(_open({*at.values()}))
        self._default = at["/forward_ofa_api.controller"]
        self._memory = [0] * len(processes)

    def close(self) -> None:
        self._run(_together(channel.close() for channel in self._channels.values()))
        self._runner.close()

    def volley(self, several: Sequence[Shot]) -> None:
        """All at once. Raises AssertionError for an answer that should not be."""
        codes = self._run(_together(self._fire(shot) for shot in several))
        for shot, code in zip(several, codes, strict=True):
            if not _allowed(shot, code):
                # Alone, since a machine that stood still for a while would look like a hang.
                again = self._run(self._fire(shot))
                assert _allowed(shot, again), f"{code}, then {again}: {shot}"
        self.codes.update(codes)

    def rubbish(self, several: Sequence[bytes]) -> None:
        """Connections that keep no rule, all at once."""
        self._run(_together(throw(self._default, data) for data in several))

    def still_good(self) -> None:
        """A good request is answered well, nobody died, and nobody grew without bounds."""
        request = network_request(self.tiny)
        code = self._run(
            self._fire(Shot(_REQUEST_NETWORK, request.SerializeToString(), (), 20.0, False))
        )
        assert code == "OK"
        for index, process in enumerate(self.processes):
            assert process.process.poll() is None, process.log()[-5000:]
            now = psutil.Process(process.process.pid).memory_info().rss
            # The first look comes after a good part of the rubbish: everything is warm then.
            self._memory[index] = self._memory[index] or now
            assert now - self._memory[index] < MEMORY, f"{self._memory[index]} -> {now} bytes"

    def logs_are_clean(self) -> None:
        for process in self.processes:
            text = process.log()
            assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:3000]
            assert '"ERROR"' not in text, text[text.index('"ERROR"') - 500 :][:1500]

    def _run(self, work: Any) -> Any:
        return self._runner.run(work)

    async def _fire(self, shot: Shot) -> str:
        """The status, as a name."""
        at = next((a for prefix, a in self._at.items() if shot.method.startswith(prefix)), None)
        channel = self._channels[at or self._default]
        options = {"timeout": shot.seconds, "metadata": shot.metadata}
        try:
            if shot.stream:
                async for _ in channel.unary_stream(shot.method)(shot.data, **options):
                    pass
            else:
                self._look_at(shot, await channel.unary_unary(shot.method)(shot.data, **options))
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    def _look_at(self, shot: Shot, reply: bytes) -> None:
        """An artefact is whole and finite, whatever it was asked for with."""
        if shot.method == _REQUEST_NETWORK:
            artefact = api.RequestNetworkResponse.FromString(reply).artefact
            assert hashlib.sha256(artefact.data).digest() == artefact.sha256
            assert read_artefact(artefact.data, self.tiny.layout).blocks
            self.right += 1


async def _open(addresses: set[str]) -> dict[str, grpc.aio.Channel]:
    # Here, since a channel belongs to the loop that it is made in.
    return {address: grpc.aio.insecure_channel(address) for address in addresses}


async def _together(several: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*several)


def _allowed(shot: Shot, code: str) -> bool:
    if shot.hurried and code == "DEADLINE_EXCEEDED":
        return True
    if shot.method in METHODS:
        return code in ANSWERS
    # RESOURCE_EXHAUSTED: headers above gRPC's own limit.
    return code in ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED")


@contextlib.contextmanager
def one_process(folder: Path) -> Iterator[Range]:
    """Everything on one port."""
    registry = FileRegistry(folder / "registry")
    tiny = publish(registry, "v1")
    process = Process(registry.root, folder / "all", "--expose-internal")
    try:
        address = process.wait_ready()["address"]
        made = Range(tiny, [process], {"/forward_ofa_api.controller": address})
        yield made
        made.close()
    finally:
        process.stop()


@contextlib.contextmanager
def split(folder: Path) -> Iterator[Range]:
    """Rubbish for each of three processes, and through those in front."""
    registry = FileRegistry(folder / "registry")
    tiny = publish(registry, "v1")
    with three_processes(registry.root, folder) as processes:
        at = {
            f"/forward_ofa_api.{name}": process.wait_ready()["address"]
            for name, process in processes.items()
        }
        made = Range(tiny, list(processes.values()), at)
        yield made
        made.close()


def fuzz(target: Range, calls: int, look_every: int = 20) -> None:
    """`calls` requests in volleys, the same ones in every run."""
    number = 0

    @settings(
        max_examples=calls // VOLLEY,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(volleys(VOLLEY))
    def volley(drawn: Any) -> None:
        nonlocal number
        number += 1
        seed, choices = drawn
        target.volley(shots(target.tiny, seed ^ SEED, choices))
        if number % look_every == 0:
            target.still_good()

    volley()
    target.still_good()
    target.logs_are_clean()
    assert sum(target.codes.values()) >= calls, target.codes
    # Neither turned away at the door nor all refused at the first look.
    assert target.right > calls / 50, target.codes
    assert target.codes["INVALID_ARGUMENT"] > calls / 10, target.codes
    assert target.codes["RESOURCE_EXHAUSTED"] < calls / 5, target.codes


def fuzz_connections(target: Range, count: int) -> None:
    rng = random.Random(SEED)
    for _ in range(count // VOLLEY):
        target.rubbish([connection(rng) for _ in range(VOLLEY)])
        target.still_good()
    target.logs_are_clean()


def test_a_thousand_fuzzed_requests(tmp_path: Path):
    with one_process(tmp_path) as target:
        fuzz(target, 1_000)
        fuzz_connections(target, 100)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_fuzzed_requests(tmp_path: Path, capsys):
    with one_process(tmp_path) as target:
        started = time.monotonic()
        fuzz(target, 100_000)
        took = time.monotonic() - started
        fuzz_connections(target, 2_000)
    with capsys.disabled():
        print(f"\n{took:.0f} s, {target.right} networks, {dict(target.codes.most_common())}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_fuzzed_requests_to_three_processes(tmp_path: Path, capsys):
    with split(tmp_path) as target:
        fuzz(target, 10_000)
    with capsys.disabled():
        print(f"\n{target.right} networks, {dict(target.codes.most_common())}")
