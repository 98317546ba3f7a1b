"""Channels to the services behind this one."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from services.runtime.checks import SettingsError, is_loopback, split_address
from services.runtime.logs import log
from services.runtime.settings import ChannelSettings
from services.runtime.tls import Identity, channel_credentials, watch_identity
from services.runtime.watched import Reloads, Watched

_LOGGER = logging.getLogger(__name__)
_OLD_CALLS_SECONDS = 60.0

# One more try for a replica that has just gone; the caller's own retry window does the rest.
# Replicas that say NOT_SERVING, because they drain or have no version yet, are passed over.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

_Options = Sequence[tuple[str, int | str]]
_OPTIONS: _Options = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A replica that hangs, or whose machine has gone, is found out within three seconds, which
    # is less than the time that a device waits. Its calls are then made again elsewhere.
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # gRPC takes the longer one of the two, and a minute by default.
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A generated network is some hundred KB, and no caller can make it larger than L blocks.
    ("grpc.max_receive_message_length", -1),
    # The services' own network is reached directly, whatever proxy the environment names.
    ("grpc.enable_http_proxy", 0),
)


def check_target(address: str, name: str, settings: ChannelSettings) -> None:
    """Raises SettingsError for an address that cannot be used as it is configured."""
    if address.startswith("unix:"):
        return
    hosts = [split_address(a, name)[0] for a in address.removeprefix("dns:///").split(",")]
    if len(hosts) > 1 and (address.startswith("dns:") or not _is_one_family(hosts)):
        raise SettingsError(
            f"{name} is {address!r}: a list is of IP addresses, all IPv4 or all IPv6, for example "
            "10.0.0.1:50051,10.0.0.2:50051; for all addresses of a name use dns:///NAME:PORT"
        )
    for host in hosts:
        if settings.ca is None and not is_loopback(host) and not settings.allow_insecure:
            raise SettingsError(
                f"{name} ({host}) is another machine, and an interest vector is personal data: "
                "give --upstream-ca, or --allow-insecure if the network between is trusted"
            )


def _is_one_family(hosts: Sequence[str]) -> bool:
    try:
        return len({ipaddress.ip_address(host).version for host in hosts}) == 1
    except ValueError:
        return False


def open_channel(
    address: str, settings: ChannelSettings, reloads: Reloads | None = None
) -> grpc.aio.Channel:
    """A channel over all addresses of a name, or of a comma list, in turn. Connects when first
    used, and again whenever the connection was lost or certificates change.

    Raises SettingsError for TLS files that make no sense.
    """
    target, options = _target(address)
    if settings.ca is None:
        return grpc.aio.insecure_channel(target, options=options)
    try:
        identity = watch_identity("upstream", settings.cert, settings.key, settings.ca, reloads)
    except (OSError, ValueError) as error:
        raise SettingsError(f"TLS to {address}: {error}") from error
    return RenewedChannel(identity, target, options)


def _target(address: str) -> tuple[str, _Options]:
    """gRPC's name of the addresses. Several speak for one name in TLS: the first one's host."""
    if "," not in address:
        return address, _OPTIONS
    kind = "ipv6" if address.startswith("[") else "ipv4"
    return f"{kind}:{address}", (*_OPTIONS, ("grpc.default_authority", address.partition(",")[0]))


class RenewedChannel(grpc.aio.Channel):
    """A channel that is made anew when its certificates change; running calls end on the old one.

    Only what our stubs use is offered: unary calls and `close`.
    """

    def __init__(self, identity: Watched[Identity], target: str, options: _Options) -> None:
        self._identity, self._target, self._options = identity, target, options
        self._used = identity.value
        self._channel = self._open()
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """The channel to use for the next call."""
        identity = self._identity.get()
        if identity is not self._used:
            old, self._used = self._channel, identity
            self._channel = self._open()
            task = asyncio.create_task(old.close(_OLD_CALLS_SECONDS))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            log(_LOGGER, logging.INFO, "channel renewed", target=self._target)
        return self._channel

    def _open(self) -> grpc.aio.Channel:
        credentials = channel_credentials(self._used)
        return grpc.aio.secure_channel(self._target, credentials, options=self._options)

    def unary_unary(  # type: ignore[override]
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Callable[..., Any]:
        channel: grpc.aio.Channel | None = None
        inner: Any = None

        def call(request: Any, **options: Any) -> Any:
            nonlocal channel, inner
            current = self.current()
            if current is not channel:
                channel = current
                inner = current.unary_unary(method, request_serializer, response_deserializer)
            return inner(request, **options)

        return call

    async def close(self, grace: float | None = None) -> None:
        """Ends this channel and those before it."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace)

    async def __aenter__(self) -> RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("no service of ours streams to another")

    stream_unary = stream_stream = unary_stream
