"""Clients that ask, look at every byte of what they get, follow the version that they are told, and
keep the retry window when they are refused."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
import numpy as np

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_device import Device
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.cloud import Cloud, Connection
from forward_ofa_device.errors import CloudError, CorruptFile, NotReady, WrongVersion
from forward_ofa_device.policy import RefreshPolicy, RetrySchedule
from forward_ofa_device.store import StateStore
from tests.support.answers import candidates_mistake, mistake, network_mistake, random_request
from tests.support.versions import TinyVersion

TIMEOUT = 5.0
"""Seconds of one attempt, as in the SDK."""
ALONE = "one controller"
"""The kind of clients that know a single controller, without a balancer."""
# The SDK's own rules, but for a first backoff that suits a test.
POLICY = RefreshPolicy(backoff_first=0.5, backoff_max=4.0)
Rule = Callable[[str], str]


@dataclass
class World:
    """What clients know. versions: by their ids, those to come too. first: held at the start.

    rule: if set, the version that each session must be told from now on.
    """

    versions: Mapping[str, TinyVersion]
    first: str
    rule: Rule | None = field(default=None)

    def not_told(self, rule: Rule | None, session_id: str, told: str) -> str:
        """What is wrong with `told`, by the rule that held when the request began."""
        if rule is None or rule is not self.rule or rule(session_id) == told:
            return ""
        return f"session {session_id} is told to use {told}"


class Client(Protocol):
    """`begin` chooses a request; `attempt` makes it once: what is wrong with the answer, or ""; it
    raises CloudError if there was none. `wait`: seconds until the next attempt. version: held."""

    kind: str

    @property
    def version(self) -> str: ...
    def begin(self) -> None: ...
    def attempt(self) -> str: ...
    def wait(self) -> float: ...
    def close(self) -> None: ...


class Asker:
    """Another session with each request, over a channel of its own."""

    def __init__(self, kind: str, cloud: Cloud, world: World, seed: int, folder: Path) -> None:
        self.kind, self._cloud, self._world = kind, cloud, world
        self._held = world.first
        self._fetched = {world.first}
        self._rng = np.random.default_rng(seed)
        folder.mkdir(parents=True)
        self._store = StateStore(folder, sync=False)
        self._schedule = RetrySchedule(POLICY, self._store, time.time, random.Random(seed))
        self._request = api.RequestNetworkRequest()
        self._rule: Rule | None = None

    @property
    def version(self) -> str:
        return self._held

    def begin(self) -> None:
        self._rule = self._world.rule
        self._request = random_request(self._world.versions[self._held], self._rng)

    def attempt(self) -> str:
        try:
            return self._ask()
        except CloudError as error:
            self._schedule.failed(error)
            raise

    def wait(self) -> float:
        return self._schedule.wait()

    def close(self) -> None:
        self._cloud.close()
        self._store.close()

    def _ask(self) -> str:
        request = self._request
        try:
            reply = self._cloud.request_network(request)
        except CloudError as error:
            if error.current_version in ("", self._held):
                raise
            self._move_to(error.current_version)
            self.begin()
            return self._ask()
        self._schedule.succeeded()
        told = reply.current_version
        wrong = mistake(self._world.versions[request.version], request, reply)
        wrong = wrong or self._world.not_told(self._rule, request.session_id, told)
        if not wrong and told != self._held:
            self._move_to(told)
        return wrong

    def _move_to(self, version: str) -> None:
        """As the SDK does, which keeps the bundles of two versions."""
        if version not in self._fetched:
            request = api.GetDeviceBundleRequest(
                version=version, part=api.BUNDLE_PART_TENSORS,
                session_id=self._request.session_id,
            )  # fmt: skip
            data = b"".join(chunk.data for chunk in self._cloud.get_bundle(request))
            assert read_bundle(data).manifest.version == version
            self._fetched.add(version)
        self._held = version


class RealDevice:
    """The SDK's `Device`: one session, with candidates that build on those it holds."""

    kind = "device"

    def __init__(self, address: str, world: World, seed: int, folder: Path) -> None:
        self._world, self._rng = world, random.Random(seed)
        self._device = Device(folder, _connection(address), policy=POLICY, sync=False,
                              rng=random.Random(seed))  # fmt: skip
        self._rule: Rule | None = None
        self._exchange = (api.RequestNetworkRequest(), api.RequestNetworkResponse())
        self._tap(self._device._cloud)

    @property
    def version(self) -> str:
        return self._device.version or ""

    def begin(self) -> None:
        self._rule = self._world.rule
        self._device.observe(f"item-{self._rng.randrange(60)}")

    def attempt(self) -> str:
        try:
            outcome = self._device.refresh(force=True)
            error = outcome.error
        except NotReady as not_ready:
            error = not_ready.__cause__
        if isinstance(error, (CorruptFile, WrongVersion)):
            return f"the SDK does not take it: {error}"
        if error is not None:
            raise error
        return self._mistake() if outcome.updated else self._again(outcome.retry_in)

    def wait(self) -> float:
        return self._device._schedule.wait()

    def close(self) -> None:
        self._device.close()

    def _again(self, seconds: float) -> str:
        time.sleep(seconds)
        return self.attempt()

    def _mistake(self) -> str:
        """Of the last answer, and of what the device has made of it."""
        request, reply = self._exchange
        held = self._device._held
        assert held is not None and self._device.rerank(include_seen=True)
        tiny = self._world.versions[request.version]
        return (
            network_mistake(tiny, request, reply)
            or candidates_mistake(tiny, request, list(held.candidates.item_ids))
            or self._world.not_told(self._rule, request.session_id, reply.current_version)
        )

    def _tap(self, cloud: Cloud) -> None:
        """Both sides of each exchange are kept, as they went over the wire."""
        ask = cloud.request_network

        def recorded(request: api.RequestNetworkRequest) -> api.RequestNetworkResponse:
            reply = ask(request)
            self._exchange = (request, reply)
            return reply

        cloud.request_network = recorded  # type: ignore[method-assign]


def sdk_cloud(address: str) -> Cloud:
    """The SDK's client of one address."""
    return Cloud(_connection(address))


def _connection(address: str) -> Connection:
    return Connection(address, timeout=TIMEOUT, bundle_timeout=TIMEOUT, allow_insecure=True)


class BalancedCloud(Cloud):
    """The same calls over several controllers by gRPC's own round robin, health and retries: what
    docs/operations.md asks of a client that should see no failure."""

    def __init__(self, addresses: Sequence[str]) -> None:
        policy = {
            "maxAttempts": 3,
            "initialBackoff": "0.05s",
            "maxBackoff": "0.5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": ""},
            "methodConfig": [{"name": [{}], "retryPolicy": policy}],
        }
        options = (
            ("grpc.service_config", json.dumps(config)),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.keepalive_time_ms", 1_000),
            ("grpc.keepalive_timeout_ms", 2_000),
            ("grpc.http2.ping_timeout_ms", 2_000),
        )
        self._connection = _connection(addresses[0])
        self._channel = grpc.insecure_channel(f"ipv4:{','.join(addresses)}", options=options)
        self._stub = ControllerServiceStub(self._channel)
