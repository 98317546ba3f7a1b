"""Clients that send a different interest each time, look at every byte of what they get, and
follow the retry window when they are refused."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import pack_path, read_artefact
from forward_ofa_device.cloud import UNREACHABLE, Cloud, Connection
from forward_ofa_device.errors import CloudError
from forward_ofa_device.policy import RefreshPolicy, RetrySchedule
from forward_ofa_device.store import StateStore
from services.wire import STATUS_DETAILS_KEY, fault_from_details
from tests.support.versions import TinyVersion

PATIENCE = 90.0
"""Seconds after which a request has failed, however often it was tried."""
TIMEOUT = 5.0
"""Seconds of one attempt, as in the SDK."""
_PAUSE = 0.02
# How far a value may be from the exact one: absolute, and relative to the largest of its tensor.
_CLOSE = {
    types.ENCODING_FLOAT32: 1e-6,
    types.ENCODING_FLOAT16: 1e-3,
    types.ENCODING_INT8: 1e-2,
}
Ask = Callable[[api.RequestNetworkRequest], api.RequestNetworkResponse]


@dataclass
class Answered:
    """One request, from its first attempt to its end. Times on the clock of `time.monotonic`.

    refused: when an attempt was refused, and why.
    """

    started: float
    ended: float = 0.0
    failed: bool = False
    wrong: str = ""
    refused: list[tuple[float, str]] = field(default_factory=list)


def random_request(tiny: TinyVersion, rng: np.random.Generator) -> api.RequestNetworkRequest:
    """A good one: any path, interest and encoding."""
    path = rng.random(tiny.config.blocks) < 0.5
    path[rng.integers(tiny.config.blocks)] = True
    interest = rng.uniform(-1, 1, tiny.config.hidden).astype("<f4")
    return api.RequestNetworkRequest(
        version=tiny.version,
        session_id=rng.bytes(12).hex(),
        path=types.Path(bits=pack_path([bool(kept) for kept in path])),
        interest=types.Interest(values=interest.tobytes()),
        accepted_encodings=[int(rng.choice(list(_CLOSE)))],
    )


def mistake(
    tiny: TinyVersion, request: api.RequestNetworkRequest, reply: api.RequestNetworkResponse
) -> str:
    """What is wrong with an answer; "" if it is, to the last value, what the version's weights
    make of this very path and interest."""
    data = reply.artefact.data
    if hashlib.sha256(data).digest() != reply.artefact.sha256:
        return "the digest is not the content's"
    if reply.version != request.version:
        return f"version {reply.version}"
    if reply.artefact.encoding != request.accepted_encodings[0]:
        return f"encoding {reply.artefact.encoding}"
    network = read_artefact(data, tiny.layout)
    if pack_path(network.path) != request.path.bits:
        return f"path {network.path}"
    interest = np.frombuffer(request.interest.values, "<f4")
    close = _CLOSE[reply.artefact.encoding]
    for block, parameters in network.blocks.items():
        for name, wanted in tiny.layout.split(tiny.parameters(block, interest)).items():
            error = np.abs(parameters[name] - wanted).max()
            if not error <= close * (1 + np.abs(wanted).max()):
                return f"block {block} {name} is off by {error}"
    items = list(reply.candidates.item_ids)
    if not items or items != tiny.best(interest, len(items)):
        return "the candidates are not this interest's"
    return ""


class Load:
    """Clients in threads, each asking again and again until `stop`.

    asks: one a client: sends a request, raises CloudError if it is refused.
    """

    def __init__(self, tiny: TinyVersion, asks: Sequence[Ask], folder: Path) -> None:
        self._tiny = tiny
        self._stopped = threading.Event()
        self.answered: list[Answered] = []
        self._crashed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(ask, seed, folder / f"client-{seed}"))
            for seed, ask in enumerate(asks)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Each client ends the request that it is at."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        assert not self._crashed, self._crashed

    def during(self, start: float, end: float) -> list[Answered]:
        """The requests that were under way between two moments."""
        return [one for one in self.answered if one.ended >= start and one.started <= end]

    def _run(self, ask: Ask, seed: int, folder: Path) -> None:
        folder.mkdir(parents=True)
        store = StateStore(folder, sync=False)
        # The SDK's own rules, but for a first backoff that suits a test.
        policy = RefreshPolicy(backoff_first=0.5, backoff_max=4.0)
        schedule = RetrySchedule(policy, store, time.time, random.Random(seed))
        rng = np.random.default_rng(seed)
        try:
            while not self._stopped.is_set():
                self.answered.append(self._one(ask, random_request(self._tiny, rng), schedule))
                time.sleep(_PAUSE)
        except BaseException as error:
            self._crashed.append(error)
        finally:
            store.close()

    def _one(
        self, ask: Ask, request: api.RequestNetworkRequest, schedule: RetrySchedule
    ) -> Answered:
        one = Answered(time.monotonic())
        while True:
            try:
                one.wrong = mistake(self._tiny, request, ask(request))
                schedule.succeeded()
                break
            except CloudError as error:
                one.refused.append((time.monotonic(), f"{error.code} {error.reason}: {error}"))
                schedule.failed(error)
            if time.monotonic() + schedule.wait() - one.started > PATIENCE:
                one.failed = True
                break
            time.sleep(schedule.wait())
        one.ended = time.monotonic()
        return one


def sdk_client(address: str) -> Ask:
    """The SDK's client of one controller."""
    return Cloud(Connection(address, timeout=TIMEOUT)).request_network


def balanced_client(addresses: Sequence[str]) -> Ask:
    """A plain gRPC client over several controllers, with gRPC's own retry policy."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{}], "retryPolicy": policy}],
    }
    options = (
        ("grpc.service_config", json.dumps(config)),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    )
    stub = ControllerServiceStub(
        grpc.insecure_channel(f"ipv4:{','.join(addresses)}", options=options)
    )

    def ask(request: api.RequestNetworkRequest) -> api.RequestNetworkResponse:
        try:
            return stub.RequestNetwork(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise _refusal(error) from error

    return ask


def _refusal(error: grpc.RpcError) -> CloudError:
    code, text = error.code(), error.details()  # type: ignore[attr-defined]
    for key, value in error.trailing_metadata() or ():  # type: ignore[attr-defined]
        fault = fault_from_details(value) if key == STATUS_DETAILS_KEY else None
        if fault is not None:
            return CloudError(text, reason=fault.reason, code=code.name, retry_ms=fault.retry)
    away = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return CloudError(text, reason=UNREACHABLE if away else code.name, code=code.name)


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows with the same keys, for people."""
    texts = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ["  ".join(t.rjust(w) for t, w in zip(row, widths, strict=True)) for row in texts]
    return "\n" + "\n".join(lines) + "\n"


def summary(name: str, answered: Sequence[Answered], start: float, end: float) -> dict[str, object]:
    """One row: what clients noticed of a fault that began at `start` and was over at `end`."""
    refused = [moment for one in answered for moment, _ in one.refused if start <= moment <= end]
    return {
        "fault": name,
        "requests": len(answered),
        "failed": sum(one.failed for one in answered),
        "wrong": sum(bool(one.wrong) for one in answered),
        "refused": len(refused),
        "retried": sum(bool(one.refused) for one in answered),
        "slowest ms": round(1e3 * max(one.ended - one.started for one in answered)),
        "lasted s": f"{end - start:.1f}",
        "last refusal s": f"{max(refused) - start:.1f}" if refused else "-",
    }


def reasons(answered: Sequence[Answered]) -> Counter[str]:
    """Why attempts were refused, and how often."""
    return Counter(text for one in answered for _, text in one.refused)
