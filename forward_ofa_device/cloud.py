"""A thin client of ControllerService: deadlines, limits, TLS, and errors as `CloudError`."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_api.controller.v1.controller_pb2_grpc import ControllerServiceStub
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.errors import CloudError

UNREACHABLE = "UNREACHABLE"
NO_TOKEN = "NO_TOKEN"
DETAILS_KEY = "grpc-status-details-bin"
# CANCELLED comes from a server that is flooded or ends, or from our own `close`.
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


@dataclass(frozen=True)
class Connection:
    """How to reach the controller.

    controller: "host:port", or "unix:/path". TLS is used off loopback, and on loopback if
    `root_certificates` is given: a PEM file of the authorities to trust; None: the well-known
    ones. allow_insecure: plain text off loopback too; the interest that devices send is
    personal data, so only for a network that is itself private.
    token: what the cloud's operator gave this device to show who it is, or a function that
    returns the present one (asked before each call, so that it may be rotated). It is never sent
    in plain text to another machine, unless allow_insecure says that this is meant.
    certificate, key: PEM files, both or none: shown to a cloud that asks for a certificate.
    timeout: seconds for one RequestNetwork; bundle_timeout: for one stretch of a download,
    which resumes where it stopped. max_message_bytes: the largest
    reply that is accepted.
    """

    controller: str
    root_certificates: Path | None = None
    allow_insecure: bool = False
    timeout: float = 5.0
    bundle_timeout: float = 60.0
    max_message_bytes: int = 32 * 1024 * 1024
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        host, _, port = self.controller.rpartition(":")
        if not self.controller.startswith("unix:") and not (host and port.isdigit()):
            raise ValueError(
                f'controller is {self.controller!r}: give "host:port", for example '
                '"127.0.0.1:50051"'
            )
        if self.timeout <= 0 or self.bundle_timeout <= 0 or self.max_message_bytes <= 0:
            raise ValueError("timeouts and max_message_bytes must be positive")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")
        if self.certificate is not None and not self.secure:
            raise ValueError("a certificate needs TLS: give root_certificates")
        for name in ("root_certificates", "certificate", "key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Path):
                raise TypeError(f"{name} is the pathlib.Path of a PEM file")
        if isinstance(self.token, str):
            _check_token(self.token)

    @property
    def secure(self) -> bool:
        """Whether TLS is used."""
        if self.root_certificates is not None:
            return True
        return not (self.allow_insecure or self._is_local())

    def _is_local(self) -> bool:
        if self.controller.startswith("unix:"):
            return True
        host = self.controller.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


class Cloud:
    """The controller's calls that the SDK makes. Every failure is a CloudError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel = _open_channel(connection)
        self._stub = ControllerServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def request_network(self, request: pb.RequestNetworkRequest) -> pb.RequestNetworkResponse:
        timeout = self._connection.timeout
        try:
            return self._stub.RequestNetwork(request, timeout=timeout, metadata=self._metadata())
        except (grpc.RpcError, ValueError) as error:
            _raise(error)

    def get_bundle(
        self, request: pb.GetDeviceBundleRequest
    ) -> Iterator[pb.GetDeviceBundleResponse]:
        """The chunks of one part, from `request.offset` on."""
        try:
            timeout = self._connection.bundle_timeout
            yield from self._stub.GetDeviceBundle(
                request, timeout=timeout, metadata=self._metadata()
            )
        except (grpc.RpcError, ValueError) as error:
            _raise(error)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._connection.token
        if callable(token):
            token = _present(token)
        return () if token is None else (("authorization", f"Bearer {token}"),)


def token_file(path: Path) -> Callable[[], str]:
    """For `Connection.token`: the token in a file, read before each call, so that whoever renews
    it only has to replace the file."""

    def read() -> str:
        return path.read_text().strip()

    return read


def _present(source: Callable[[], str]) -> str:
    """What an app's function returns; whatever it raises is no failure of the cloud's."""
    try:
        token = source()
        _check_token(token)
    except Exception as error:
        raise CloudError(
            "the token could not be had",
            reason=NO_TOKEN,
            action="repair what Connection.token calls; its own error is the cause",
        ) from error
    return token


def _check_token(token: object) -> None:
    """Raises ValueError for what cannot be sent, without showing it."""
    if not isinstance(token, str) or not token or not all("!" <= sign <= "~" for sign in token):
        raise ValueError("the token must be visible ASCII without spaces (a trailing newline?)")


def _open_channel(connection: Connection) -> grpc.Channel:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", connection.max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # gRPC takes the longer one of the two, and a minute by default.
        ("grpc.http2.ping_timeout_ms", 5_000),
        # A device that comes back into the network should not wait gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if not connection.secure:
        return grpc.insecure_channel(connection.controller, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(connection.root_certificates, "root_certificates"),
        private_key=_read(connection.key, "key"),
        certificate_chain=_read(connection.certificate, "certificate"),
    )
    return grpc.secure_channel(connection.controller, credentials, options=options)


def _read(path: Path | None, name: str) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error}") from error


def _raise(error: grpc.RpcError | ValueError) -> NoReturn:
    if not isinstance(error, grpc.Call):
        # A ValueError: the channel was closed by another thread.
        raise CloudError(str(error), reason=UNREACHABLE) from error
    code, text = error.code(), error.details() or ""
    detail = _detail(error)
    if detail is None:
        reason = UNREACHABLE if code in _AWAY else code.name
        action = "check the address and the network" if code in _AWAY else ""
        raise CloudError(text, reason=reason, code=code.name, action=action) from error
    retry = None
    if detail.HasField("retry"):
        retry = (detail.retry.min_ms, max(detail.retry.min_ms, detail.retry.max_ms))
    raise CloudError(
        text,
        reason=detail.reason,
        code=code.name,
        action=detail.action,
        retry_ms=retry,
        current_version=detail.current_version,
    ) from error


def _detail(call: grpc.Call) -> types.ErrorDetail | None:
    for key, value in call.trailing_metadata() or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        detail = types.ErrorDetail()
        try:
            for packed in types.StatusDetails.FromString(value).details:
                if packed.Unpack(detail):
                    return detail
        except DecodeError:
            return None
    return None
