"""Certificates and keys: checked when they are read, read again when they change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from services.runtime.watched import Reloads, Watched


@dataclass(frozen=True)
class Identity:
    """A certificate chain with its key, and the authorities that others must be signed by.

    key, chain, authorities: PEM; empty where there is none. expires: seconds since the epoch.
    """

    key: bytes = b""
    chain: bytes = b""
    authorities: bytes = b""
    expires: float = 0.0


def read_identity(chain: bytes, key: bytes, authorities: bytes = b"") -> Identity:
    """PEM files' bytes, checked to fit together; empty ones are left out. Raises ValueError."""
    expires = 0.0
    if chain or key:
        certificate = _certificates(chain, "certificate chain")[0]
        try:
            private = load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(
                f"not a PEM private key without a password ({type(error).__name__})"
            ) from None
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
            raise ValueError("the private key is not that of the certificate")
        expires = certificate.not_valid_after_utc.timestamp()
    if authorities:
        _certificates(authorities, "file of authorities")
    return Identity(key, chain, authorities, expires)


def _certificates(data: bytes, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ValueError(f"not a PEM {name}: no certificate in it can be read") from None


def watch_identity(
    what: str,
    chain: Path | None,
    key: Path | None,
    authorities: Path | None,
    reloads: Reloads | None = None,
) -> Watched[Identity]:
    """Those of the three files that are given. Raises OSError, ValueError."""
    given = {"chain": chain, "key": key, "authorities": authorities}
    names = [name for name, path in given.items() if path is not None]
    paths = [path for path in given.values() if path is not None]

    def parse(contents: list[bytes]) -> Identity:
        parts = dict(zip(names, contents, strict=True))
        return read_identity(
            parts.get("chain", b""), parts.get("key", b""), parts.get("authorities", b"")
        )

    return Watched(what, paths, parse, reloads)


def server_credentials(
    identity: Watched[Identity], used: Callable[[Identity], None]
) -> grpc.ServerCredentials:
    """For a port. gRPC asks before each handshake, so a new connection sees the new files.

    With authorities, callers must show a certificate that one of them signed. used: told of
    each identity that is taken into use.
    """
    last = identity.value
    used(last)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        identity.refresh()
        if identity.value is last:
            return None
        last = identity.value
        used(last)
        return _configuration(last)

    # The stubs forget that None means no change.
    return grpc.dynamic_ssl_server_credentials(
        _configuration(last),
        fetch,  # type: ignore[arg-type]
        require_client_authentication=bool(last.authorities),
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.chain)], root_certificates=identity.authorities or None
    )


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """To the services behind, with our own certificate if there is one."""
    return grpc.ssl_channel_credentials(
        identity.authorities or None, identity.key or None, identity.chain or None
    )
