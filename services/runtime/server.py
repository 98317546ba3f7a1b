"""The gRPC server of a process: TLS, limits, health, reflection, drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import grpc
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from services.runtime.access import Access
from services.runtime.admission import AdmissionSettings
from services.runtime.checks import SettingsError, split_address
from services.runtime.core import sturdy_server
from services.runtime.guard import CallGuard
from services.runtime.health import POLL_SECONDS, Health
from services.runtime.metrics import Metrics
from services.runtime.settings import Ready, ServerSettings
from services.runtime.tls import Identity, server_credentials, watch_identity
from services.runtime.tracing import Tracing
from services.runtime.watched import Watched

_LOOK_SECONDS = 1.0


class Server:
    """One port for all services of a process.

    `services`: full service name -> whether it can answer; `offered`: those that the port
    offers, for reflection. Register the servicers on `grpc`, then `start`. Health is polled
    from the answers, under each name and, for all together, under "".
    Raises SettingsError for TLS or token files that make no sense.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        services: Mapping[str, Ready],
        offered: Sequence[str] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self.settings, self._metrics = settings, metrics
        self._identity = _identity(settings, metrics)
        self._access = Access(settings.access, metrics)
        guard = CallGuard(metrics, settings, self._access, tracing)
        self.grpc: grpc.aio.Server = sturdy_server(
            guard,
            (
                ("grpc.max_receive_message_length", settings.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                # Calls that send no message are kept until their connection ends. Far above what
                # may run: gRPC counts a call that was refused unread as open a moment longer
                # than its caller does, who would then meet REFUSED_STREAM.
                ("grpc.max_concurrent_streams", max(4096, 4 * settings.max_concurrent_requests)),
                ("grpc.max_connection_age_ms", _ms(settings.admission.max_connection_seconds)),
                ("grpc.max_connection_age_grace_ms", _ms(_longest_call(settings.admission))),
                ("grpc.server.max_pending_requests", settings.admission.max_waiting),
                ("grpc.server.max_pending_requests_hard_limit", settings.admission.max_waiting),
                # Unless it is meant, two processes on one port are a mistake.
                ("grpc.so_reuseport", int(settings.share_port)),
                # Our own channels ask once a second whether we live.
                ("grpc.http2.min_ping_interval_without_data_ms", 500),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        self.health = Health(services)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)
        if settings.reflection:
            names = (*offered, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self.grpc)
        self._poll: asyncio.Task[None] | None = None
        self.address = ""

    async def start(self) -> None:
        """Listens. Raises SettingsError if the address cannot be taken."""
        host, _ = split_address(self.settings.listen, "listen")
        try:
            port = self._bind()
        except (RuntimeError, OSError, ValueError) as error:
            raise SettingsError(
                f"cannot listen on {self.settings.listen}: is the port in use? ({error})"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{port}"
        self.health.refresh()
        await self.grpc.start()
        self._poll = asyncio.create_task(self._look_around())

    def _bind(self) -> int:
        if self._identity is None:
            return self.grpc.add_insecure_port(self.settings.listen)
        credentials = server_credentials(self._identity, self._note_expiry)
        return self.grpc.add_secure_port(self.settings.listen, credentials)

    def _note_expiry(self, identity: Identity) -> None:
        self._metrics.certificate_expiry.set(identity.expires)

    async def _look_around(self) -> None:
        """Health, and files that changed, also when nobody connects or calls."""
        while True:
            self.health.refresh()
            if self._identity is not None:
                self._identity.get()
            self._access.refresh()
            await asyncio.sleep(POLL_SECONDS)

    async def ended(self) -> None:
        """Returns once gRPC's server has ended, stopped or, which should not happen, by itself."""
        with contextlib.suppress(Exception):
            # With a time, since gRPC's own `stop` fails once a wait without one was cancelled.
            while await self.grpc.wait_for_termination(_LOOK_SECONDS):
                pass

    async def stop(self) -> None:
        """In the order in which nobody notices: not ready, some time in which balancers see
        that, no new calls, running ones to their end within drain_seconds."""
        self.health.drain()
        await asyncio.sleep(self.settings.drain_delay)
        self.health.close()
        await self.grpc.stop(self.settings.drain_seconds)
        if self._poll is not None:
            self._poll.cancel()


def _ms(seconds: float) -> int:
    return min(2**31 - 1, round(1e3 * seconds))


def _longest_call(limits: AdmissionSettings) -> float:
    return max(limits.max_seconds, limits.max_download_seconds)


def _identity(settings: ServerSettings, metrics: Metrics) -> Watched[Identity] | None:
    if settings.tls_cert is None:
        return None
    files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    try:
        return watch_identity("tls", *files, metrics)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"the TLS certificate, key or authorities cannot be used: {error}"
        ) from error
