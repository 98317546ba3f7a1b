"""The gRPC server of a process: TLS, limits, health, reflection, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from services.runtime.interceptor import CallGuard
from services.runtime.metrics import Metrics
from services.runtime.settings import ServerSettings, SettingsError, split_address

HEALTH_POLL_SECONDS = 0.2
# Calls that wait to be looked at. Beyond, gRPC cancels them without a word of ours.
_PENDING_CALLS = 10_000
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

Ready = Callable[[], bool]


class Server:
    """One port for all services of a process.

    `services`: full service name -> whether it can answer. Register the servicers on
    `grpc`, then `start`. Health is polled from those answers, under each name and, for all
    together, under "".
    """

    def __init__(
        self, settings: ServerSettings, metrics: Metrics, services: Mapping[str, Ready]
    ) -> None:
        self.settings = settings
        self.grpc = grpc.aio.server(
            interceptors=[CallGuard(metrics, settings.max_concurrent_requests)],
            options=(
                ("grpc.max_receive_message_length", settings.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.server.max_pending_requests", _PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
                # Two processes on one port would be a mistake, not a set-up.
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        self._services = dict(services)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.grpc)
        self._poll: asyncio.Task[None] | None = None
        self.address = ""

    async def start(self) -> None:
        """Listens. Raises SettingsError if the address cannot be taken or TLS files are bad."""
        host, _ = split_address(self.settings.listen, "listen")
        try:
            port = self._bind()
        except (RuntimeError, OSError, ValueError) as error:
            raise SettingsError(
                f"cannot listen on {self.settings.listen}: is the port in use, or the TLS "
                f"certificate malformed? ({error})"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{port}"
        await self.refresh_health()
        await self.grpc.start()
        self._poll = asyncio.create_task(self._poll_health())

    def _bind(self) -> int:
        settings = self.settings
        if settings.tls_cert is None or settings.tls_key is None:
            return self.grpc.add_insecure_port(settings.listen)
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        return self.grpc.add_secure_port(settings.listen, grpc.ssl_server_credentials([pair]))

    async def refresh_health(self) -> None:
        """Asks every service now, without waiting for the next poll."""
        answers = {name: ready() for name, ready in self._services.items()}
        answers[""] = all(answers.values())
        for name, ready in answers.items():
            await self._health.set(name, _SERVING if ready else _NOT_SERVING)

    async def _poll_health(self) -> None:
        while True:
            await self.refresh_health()
            await asyncio.sleep(HEALTH_POLL_SECONDS)

    async def stop(self) -> None:
        """NOT_SERVING at once, no new calls, running ones may end within drain_seconds."""
        if self._poll is not None:
            self._poll.cancel()
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(self.settings.drain_seconds)
