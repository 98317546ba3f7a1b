"""What settings of the plumbing have in common."""

from __future__ import annotations

import ipaddress


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
