"""Channels to the services behind this one."""

from __future__ import annotations

import json

import grpc

from services.runtime.settings import ChannelSettings, SettingsError, is_loopback, split_address

# One more try for a replica that has just gone; the caller's own retry window does the rest.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
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

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A generated network is some hundred KB, and no caller can make it larger than L blocks.
    ("grpc.max_receive_message_length", -1),
    # The services' own network is reached directly, whatever proxy the environment names.
    ("grpc.enable_http_proxy", 0),
)


def check_target(address: str, name: str, settings: ChannelSettings) -> None:
    """Raises SettingsError for an address that cannot be used as it is configured."""
    if address.startswith("dns:///"):
        host, _ = split_address(address.removeprefix("dns:///"), name)
    else:
        host, _ = split_address(address, name)
    if settings.ca is None and not is_loopback(host) and not settings.allow_insecure:
        raise SettingsError(
            f"{name} ({address}) is another machine, and an interest vector is personal data: "
            "give --upstream-ca, or --allow-insecure if the network between is trusted"
        )


def open_channel(address: str, settings: ChannelSettings) -> grpc.aio.Channel:
    """A channel over all addresses of a name, in turn. Connects when first used, and again
    whenever the connection was lost."""
    if settings.ca is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(settings.ca.read_bytes())
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
