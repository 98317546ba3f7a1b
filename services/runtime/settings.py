"""Settings of the plumbing, validated when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.runtime.access import AccessSettings
from services.runtime.admission import AdmissionSettings
from services.runtime.checks import SettingsError, is_loopback, split_address

__all__ = [
    "ChannelSettings",
    "Ready",
    "ServerSettings",
    "SettingsError",
    "is_loopback",
    "split_address",
]

Ready = Callable[[], bool]
"""Whether a service can answer."""


@dataclass(frozen=True)
class ServerSettings:
    """The gRPC server of a process.

    listen: HOST:PORT; port 0 takes a free one.
    tls_cert, tls_key: PEM files, both or none; the server speaks TLS with them. All TLS and
        token files are read again when they change.
    allow_insecure: listen without TLS on an address that other machines reach, for
        example behind a proxy or mesh that ends TLS. Loopback needs no permission.
    max_request_bytes: larger messages are refused by gRPC with RESOURCE_EXHAUSTED. A
        valid request has a few hundred bytes.
    max_concurrent_requests: more than so many at once are refused with OVERLOADED; bundle
        downloads have places of their own.
    drain_seconds: how long running requests may go on when the process is told to stop.
    tls_client_ca: PEM file of authorities; callers must show a certificate that one of them
        signed.
    tls_client_names: if not empty, that certificate must be for one of these names
        (subjectAltName or common name).
    drain_delay: how long requests are still taken after readiness ended, so that balancers
        notice before the port closes.
    share_port: other processes may listen on the same port; the kernel gives each connection to
        one of them. Not for port 0.
    reflection: whether callers can learn the API from the server.
    admission, access: see there.
    """

    listen: str = "127.0.0.1:50051"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_insecure: bool = False
    max_request_bytes: int = 64 * 1024
    max_concurrent_requests: int = 256
    drain_seconds: float = 10.0
    tls_client_ca: Path | None = None
    tls_client_names: tuple[str, ...] = ()
    drain_delay: float = 0.0
    reflection: bool = True
    share_port: bool = False
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    access: AccessSettings = field(default_factory=AccessSettings)

    def __post_init__(self) -> None:
        host, _ = split_address(self.listen, "listen")
        self._check_tls()
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
        for name in ("drain_seconds", "drain_delay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be a number and not negative")

    def _check_tls(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("tls_cert and tls_key belong together: give both or none")
        for path in (self.tls_cert, self.tls_key, self.tls_client_ca):
            if path is not None and not path.is_file():
                raise SettingsError(f"there is no file {path}: TLS needs it")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise SettingsError("tls_client_ca needs tls_cert and tls_key: there is no TLS")
        if self.tls_client_names and self.tls_client_ca is None:
            raise SettingsError(
                "tls_client_names needs tls_client_ca: nobody is asked for a certificate"
            )


@dataclass(frozen=True)
class ChannelSettings:
    """How this process reaches the services behind it.

    ca: PEM file of the authority that signed their certificates; None: no TLS, which off
        loopback needs allow_insecure.
    allow_insecure: speak without TLS to other machines, for example within a mesh.
    cert, key: PEM files, both or none: our own certificate, for services that ask for one.
    attempt_seconds: a call without an answer after so long is made again, by round robin
        elsewhere, since a replica may hang; at most half of the time that is left. The next
        attempt gets twice as long, the third and last one all that is left.
    """

    ca: Path | None = None
    allow_insecure: bool = False
    cert: Path | None = None
    key: Path | None = None
    attempt_seconds: float = 1.0

    def __post_init__(self) -> None:
        for path in (self.ca, self.cert, self.key):
            if path is not None and not path.is_file():
                raise SettingsError(f"there is no file {path}: TLS to other services needs it")
        if (self.cert is None) != (self.key is None):
            raise SettingsError("upstream cert and key belong together: give both or none")
        if self.cert is not None and self.ca is None:
            raise SettingsError("an upstream cert needs --upstream-ca: without it there is no TLS")
        if not self.attempt_seconds > 0:
            raise SettingsError("attempt_seconds must be above 0")
