"""Settings of the plumbing, validated when they are made."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path


class SettingsError(ValueError):
    """A setting that cannot work. The text says which one and what to do."""


def split_address(address: str, name: str) -> tuple[str, int]:
    """HOST:PORT ([::1]:80 for IPv6) to its parts. Raises SettingsError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise SettingsError(f"{name} is {address!r}: use HOST:PORT, for example 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServerSettings:
    """The gRPC server of a process.

    listen: HOST:PORT; port 0 takes a free one.
    tls_cert, tls_key: PEM files, both or none; the server speaks TLS with them.
    allow_insecure: listen without TLS on an address that other machines reach, for
        example behind a proxy or mesh that ends TLS. Loopback needs no permission.
    max_request_bytes: larger messages are refused by gRPC with RESOURCE_EXHAUSTED. A
        valid request has a few hundred bytes.
    max_concurrent_requests: more than so many at once are refused with OVERLOADED; bundle
        downloads have as many places of their own.
    drain_seconds: how long running requests may go on when the process is told to stop.
    """

    listen: str = "127.0.0.1:50051"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_insecure: bool = False
    max_request_bytes: int = 64 * 1024
    max_concurrent_requests: int = 256
    drain_seconds: float = 10.0

    def __post_init__(self) -> None:
        host, _ = split_address(self.listen, "listen")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("tls_cert and tls_key belong together: give both or none")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise SettingsError(f"there is no file {path}: TLS needs it")
        if self.tls_cert is None and not is_loopback(host) and not self.allow_insecure:
            raise SettingsError(
                f"{self.listen} can be reached from other machines, and an interest vector is "
                "personal data: give --tls-cert and --tls-key, or --allow-insecure if "
                "something in front ends TLS"
            )
        if self.max_request_bytes < 1024 or self.max_concurrent_requests < 1:
            raise SettingsError(
                "max_request_bytes must be at least 1024, max_concurrent_requests at least 1"
            )
        if not 0 <= self.drain_seconds < math.inf:
            raise SettingsError("drain_seconds must be a number and not negative")


@dataclass(frozen=True)
class ChannelSettings:
    """How this process reaches the services behind it.

    ca: PEM file of the authority that signed their certificates; None: no TLS, which off
        loopback needs allow_insecure.
    allow_insecure: speak without TLS to other machines, for example within a mesh.
    """

    ca: Path | None = None
    allow_insecure: bool = False

    def __post_init__(self) -> None:
        if self.ca is not None and not self.ca.is_file():
            raise SettingsError(f"there is no file {self.ca}: TLS to other services needs it")
