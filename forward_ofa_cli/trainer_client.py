"""A connection to a trainer's gRPC service, and its errors in a user's words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forward_ofa_cli.errors import VERSION_REASONS, CommandError, Exit

DEFAULT_SERVER = "127.0.0.1:50071"
SERVER_VARIABLE = "FORWARD_OFA_TRAINER"
_CALL_SECONDS = 30.0
_USAGE = ("BAD_JOB", "UNKNOWN_JOB_STATE", "BAD_PAGE", "TOO_LARGE", "MALFORMED_MESSAGE")
_UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


@dataclass(frozen=True)
class Connection:
    """server: HOST:PORT. root_certificates: PEM file of the authorities to trust, for TLS.
    token_file: with the caller's token. certificate, key: PEM files, for a server that asks.
    allow_insecure: plain text to another machine."""

    server: str | None = None
    root_certificates: Path | None = None
    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    allow_insecure: bool = False

    @property
    def address(self) -> str:
        """What was given, the environment's, or this machine's."""
        return self.server or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER


class Client:
    """Calls one method after the other. Failures are CommandError."""

    def __init__(self, connection: Connection) -> None:
        from forward_ofa_api.trainer.v1.trainer_pb2_grpc import TrainerServiceStub

        self.address = connection.address
        self._channel = _channel(connection)
        self._stub = TrainerServiceStub(self._channel)
        self._metadata = _metadata(connection)

    def call(self, method: str, request: Any) -> Any:
        """One answer."""
        with self._explained():
            return getattr(self._stub, method)(
                request, timeout=_CALL_SECONDS, metadata=self._metadata
            )

    def watch(self, request: Any) -> Iterator[Any]:
        """Every answer of a stream; again after a server's time limit or a short absence."""
        import grpc

        misses = 0
        while True:
            try:
                for answer in self._stub.WatchJob(request, metadata=self._metadata):
                    misses = 0
                    yield answer
                return
            except grpc.RpcError as error:
                code = error.code().name
                misses += 1
                if code not in _UNREACHABLE or misses > 30:
                    with self._explained():
                        raise
            _pause()

    def close(self) -> None:
        self._channel.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise _explain(error, self.address) from None


def _pause() -> None:
    import time

    time.sleep(1.0)


def _channel(connection: Connection) -> Any:
    import grpc

    from services.runtime.checks import SettingsError, is_loopback, split_address

    try:
        host, _ = split_address(connection.address, "--server")
    except SettingsError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
    if connection.root_certificates is None:
        if not is_loopback(host) and not connection.allow_insecure:
            raise CommandError(
                f"{connection.address} is another machine: give --root-certificates for TLS, or "
                "--allow-insecure if the network between is trusted",
                Exit.USAGE,
            )
        return grpc.insecure_channel(connection.address, options=options)
    files = (connection.root_certificates, connection.key, connection.certificate)
    parts = [None if path is None else path.read_bytes() for path in files]
    return grpc.secure_channel(
        connection.address, grpc.ssl_channel_credentials(*parts), options=options
    )


def _metadata(connection: Connection) -> tuple[tuple[str, str], ...]:
    if connection.token_file is None:
        return ()
    return (("authorization", f"Bearer {connection.token_file.read_text().strip()}"),)


def _explain(error: Any, address: str) -> CommandError:
    from services.wire import STATUS_DETAILS_KEY, fault_from_details

    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and (fault := fault_from_details(value)) is not None:
            reason = str(fault.reason)
            code = Exit.UNREACHABLE if fault.status in _UNREACHABLE else Exit.FAILED
            code = Exit.BAD_VERSION if reason in (*VERSION_REASONS, "REGISTRY_REFUSED") else code
            return CommandError(
                f"{fault.text}. {fault.action}", Exit.USAGE if reason in _USAGE else code
            )
    if error.code().name == "DEADLINE_EXCEEDED":
        return CommandError(
            f"the trainer at {address} did not answer within {_CALL_SECONDS:g} s. It may have "
            "done what was asked: look with `forward-ofa jobs list` before you ask again",
            Exit.UNREACHABLE,
        )
    if error.code().name in _UNREACHABLE:
        return CommandError(
            f"the trainer at {address} cannot be reached: is `make trainer` running there? "
            f"Another one: --server HOST:PORT or ${SERVER_VARIABLE}",
            Exit.UNREACHABLE,
        )
    return CommandError(f"{address}: {error.code().name}: {error.details()}")
