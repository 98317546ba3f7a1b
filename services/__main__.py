"""`python -m services --registry DIR`: run one, several or all services in this process."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from services.assembler.settings import AssemblerSettings
from services.controller.settings import ControllerSettings
from services.mapper.settings import MapperSettings
from services.options import make_parser
from services.processes import supervise
from services.registry.settings import CacheSettings
from services.runtime.access import AccessSettings
from services.runtime.admission import AdmissionSettings
from services.runtime.logs import configure
from services.runtime.settings import ChannelSettings, ServerSettings, SettingsError
from services.runtime.tracing import TracingSettings
from services.sessions.settings import SessionSettings
from services.settings import ServeSettings, parse_targets
from services.trainer.settings import TrainerSettings
from services.versions import VersionSettings
from services.wiring import serve


def read_settings(
    arguments: Sequence[str] | None = None, find_registry: Callable[[], Path] | None = None
) -> tuple[ServeSettings, str]:
    """The settings and the log level that a command line says. Raises SettingsError.

    find_registry: asked where --registry is left out; None: it may not be.
    """
    a = make_parser(find_registry=find_registry is not None).parse_args(arguments)
    targets = parse_targets(a.target)
    training = _read_trainer(a) if "trainer" in targets else None
    if training is None and a.broker is not None:
        raise SettingsError("--broker is for --target trainer")
    settings = ServeSettings(
        registry=find_registry() if a.registry is None and find_registry else a.registry,
        targets=targets,
        training=training,
        mapper=a.mapper,
        assembler=a.assembler,
        metrics=a.metrics,
        ready_file=a.ready_file,
        registry_cache=CacheSettings(a.registry_cache, a.registry_cache_bytes),
        expose_internal=a.expose_internal,
        processes=a.processes,
        exit_with=a.exit_with,
        server=_read_server(a),
        tracing=TracingSettings(
            a.otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None, a.trace_ratio
        ),
        channels=ChannelSettings(
            a.upstream_ca, a.allow_insecure, a.upstream_cert, a.upstream_key, a.attempt_seconds
        ),
        versions=VersionSettings(
            a.label, a.poll_seconds, a.keep_versions, a.canary_label, a.version_idle_seconds
        ),
        sessions=SessionSettings(a.sessions, a.session_ttl, a.session_limit, a.session_timeout),
        mapping=MapperSettings(
            a.mapper_workers, a.mapper_queue, a.mapper_batch, a.mapper_precision, a.torch_threads
        ),
        assembling=AssemblerSettings(a.mapper_seconds),
        controlling=ControllerSettings(
            a.candidates, a.network_ttl, a.retry_min_ms, a.retry_max_ms, a.retrieval_workers
        ),
    )
    return settings, a.log_level


def _read_trainer(a: argparse.Namespace) -> TrainerSettings:
    if a.broker is None or a.registry is None:
        raise SettingsError("the target trainer needs --broker and --registry")
    cache = CacheSettings(a.registry_cache, a.registry_cache_bytes)
    return TrainerSettings(a.broker, a.home, a.registry, cache)


def _read_server(a: argparse.Namespace) -> ServerSettings:
    return ServerSettings(
        listen=a.listen,
        tls_cert=a.tls_cert,
        tls_key=a.tls_key,
        allow_insecure=a.allow_insecure,
        max_request_bytes=a.max_request_bytes,
        max_concurrent_requests=a.max_concurrent,
        drain_seconds=a.drain_seconds,
        tls_client_ca=a.tls_client_ca,
        tls_client_names=tuple(filter(None, map(str.strip, a.tls_client_names.split(",")))),
        drain_delay=a.drain_delay,
        share_port=a.share_port,
        reflection=not a.no_reflection,
        admission=AdmissionSettings(
            target_ms=a.target_ms,
            calm_concurrent=a.calm_concurrent,
            max_waiting=a.max_waiting,
            max_unread_bytes=a.max_unread_bytes,
            max_connection_seconds=a.max_connection_seconds,
            max_downloads=a.max_downloads,
            download_rate=a.download_rate,
            stream_rate=a.stream_rate,
            max_seconds=a.max_seconds,
            max_download_seconds=a.max_download_seconds,
        ),
        access=AccessSettings(
            tokens=a.tokens,
            jwt_keys=a.jwt_keys,
            jwt_secret=a.jwt_secret,
            jwt_issuer=a.jwt_issuer,
            jwt_audience=a.jwt_audience,
            jwt_scope=a.jwt_scope,
            device_rate=a.device_rate,
            device_burst=a.device_burst,
        ),
    )


def run(arguments: Sequence[str], find_registry: Callable[[], Path] | None = None) -> None:
    """Until SIGTERM or SIGINT. Raises SettingsError."""
    settings, level = read_settings(arguments, find_registry)
    configure(level)
    if settings.processes > 1:
        asyncio.run(supervise(settings, [*arguments, "--registry", str(settings.registry)]))
    else:
        asyncio.run(serve(settings))


def main() -> int:
    """Exit code 0 after a drained stop, 2 for settings that cannot work."""
    try:
        run(sys.argv[1:])
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
