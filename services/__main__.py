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
from services.processes import supervise
from services.registry.location import place
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


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown where there are any, texts as written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def make_parser(*, find_registry: bool = False) -> argparse.ArgumentParser:
    """The command line. Defaults are those of the settings classes.

    find_registry: --registry may be left out, the caller finds one then.
    """
    parser = argparse.ArgumentParser(
        prog="python -m services", description=__doc__, formatter_class=HelpFormatter
    )
    server, mapping, controlling = ServerSettings(), MapperSettings(), ControllerSettings()
    versions, sessions, cache = VersionSettings(), SessionSettings(), CacheSettings()
    add = parser.add_argument
    found = "; left out: the one here that was labelled last" if find_registry else ""
    add(
        "--registry",
        type=place,
        required=not find_registry,
        help="of the published versions: a folder, or a URL such as s3://BUCKET/PREFIX" + found,
    )
    add("--registry-cache", type=Path, default=cache.folder, help="for copies, with a URL")
    add("--registry-cache-bytes", type=int, default=cache.limit_bytes, help="of it at most")
    add(
        "--target",
        default="all",
        help="all, or a comma list of controller, assembler, mapper; or trainer alone",
    )
    add("--processes", type=int, default=1, help="that share the port and the work")
    add("--exit-with", type=int, help=argparse.SUPPRESS)
    add("--listen", default=server.listen, help="HOST:PORT for gRPC; port 0 takes a free one")
    add("--mapper", help="HOST:PORT of a mapper elsewhere, or a comma list")
    add(
        "--assembler",
        help="HOST:PORT of an assembler elsewhere, or a comma list",
    )
    add("--metrics", default="127.0.0.1:0", help="HOST:PORT for /metrics, /livez, /readyz (HTTP)")
    add("--ready-file", type=Path, help="written as JSON once requests are answered")
    add("--sessions", default=sessions.url, help="memory://, or Redis: see docs/sessions.md")
    add("--session-ttl", type=float, default=sessions.ttl_seconds, help="seconds")
    add("--session-limit", type=int, default=sessions.limit, help="sessions in memory at most")
    add("--session-timeout", type=float, default=sessions.timeout_seconds, help="seconds, of Redis")
    add("--label", default=versions.label, help="the label that new sessions follow")
    add("--canary-label", default=versions.canary, help="whose share of sessions differs; '': none")
    add("--keep-versions", type=int, default=versions.keep, help="versions in memory at most")
    add(
        "--version-idle-seconds",
        type=float,
        default=versions.idle_seconds,
        help="a version without a label leaves memory once it was not asked for so long",
    )
    add("--poll-seconds", type=float, default=versions.poll_seconds, help="between label reads")
    add("--candidates", type=int, default=controlling.candidates, help="items sent to rerank")
    add("--network-ttl", type=int, default=controlling.network_ttl_seconds, help="seconds")
    add("--retry-min-ms", type=int, default=controlling.retry_min_ms, help="of a reply's window")
    add("--retry-max-ms", type=int, default=controlling.retry_max_ms, help="of a reply's window")
    add("--retrieval-workers", type=int, default=controlling.retrieval_workers, help="threads")
    add("--mapper-workers", type=int, default=mapping.workers, help="threads that generate")
    add("--mapper-queue", type=int, default=mapping.queue, help="requests that may wait")
    add("--mapper-batch", type=int, default=mapping.max_batch, help="requests of one product")
    add(
        "--mapper-precision",
        default=mapping.precision,
        choices=("float32", "bfloat16"),
        help="of the products; float32 is exact",
    )
    add("--torch-threads", type=int, default=mapping.torch_threads, help="of one generation")
    add(
        "--mapper-seconds",
        type=float,
        default=AssemblerSettings().mapper_seconds,
        help="that the assembler waits for the mapper at most",
    )
    add("--broker", help="target trainer: Redis of the jobs, redis://HOST:PORT/DB or unix://PATH")
    add("--home", type=Path, default=Path("runs/trainer"), help="target trainer: run folders")
    _add_network(parser, server)
    _add_operations(parser)
    return parser


def _add_network(parser: argparse.ArgumentParser, server: ServerSettings) -> None:
    add = parser.add_argument
    add("--tls-cert", type=Path, help="PEM certificate chain; with --tls-key: TLS")
    add("--tls-key", type=Path, help="PEM private key")
    add("--tls-client-ca", type=Path, help="PEM authorities: callers must show a certificate")
    add("--tls-client-names", default="", help="comma list: whom that certificate must be for")
    add("--upstream-ca", type=Path, help="PEM authority of the services behind: TLS to them")
    add("--upstream-cert", type=Path, help="PEM certificate that the services behind are shown")
    add("--upstream-key", type=Path, help="PEM private key of --upstream-cert")
    add(
        "--attempt-seconds",
        type=float,
        default=ChannelSettings().attempt_seconds,
        help="without an answer from a service behind, then another replica is asked",
    )
    add("--allow-insecure", action="store_true", help="no TLS off loopback; ends elsewhere")
    add("--expose-internal", action="store_true", help="offer mapper and assembler to others too")
    add("--no-reflection", action="store_true", help="callers cannot learn the API by asking")
    add("--max-request-bytes", type=int, default=server.max_request_bytes, help="a message")
    add("--max-concurrent", type=int, default=server.max_concurrent_requests, help="calls")
    add("--drain-delay", type=float, default=server.drain_delay, help="not ready, still serving")
    add("--drain-seconds", type=float, default=server.drain_seconds, help="on SIGTERM")
    add("--share-port", action="store_true", help="with other processes that do so too")
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="least")


def _add_operations(parser: argparse.ArgumentParser) -> None:
    add, limits, access = parser.add_argument, AdmissionSettings(), AccessSettings()
    tracing = TracingSettings()
    add(
        "--target-ms",
        type=float,
        default=limits.target_ms,
        help="above, fewer calls at once; 0: never",
    )
    add("--min-concurrent", type=int, default=limits.min_concurrent, help="calls, never fewer")
    add("--max-waiting", type=int, default=limits.max_waiting, help="calls not looked at yet")
    add(
        "--max-unread-bytes",
        type=int,
        default=limits.max_unread_bytes,
        help="replies not read yet, together",
    )
    add(
        "--max-connection-seconds",
        type=float,
        default=limits.max_connection_seconds,
        help="then clients connect anew",
    )
    add("--max-downloads", type=int, default=limits.max_downloads, help="bundles at once")
    add(
        "--download-rate",
        type=float,
        default=limits.download_rate,
        help="bytes/s of all; 0: no limit",
    )
    add("--stream-rate", type=float, default=limits.stream_rate, help="bytes/s of one; 0: no limit")
    add("--max-seconds", type=float, default=limits.max_seconds, help="of a call")
    add("--max-download-seconds", type=float, default=limits.max_download_seconds, help="of a part")
    add("--tokens", type=Path, help="devices' API tokens, see `forward-ofa token`")
    add("--jwt-keys", type=Path, help="PEM public key or JWKS: devices' tokens may be JWTs")
    add("--jwt-secret", type=Path, help="file with the secret of HS256, in place of --jwt-keys")
    add("--jwt-issuer", default=access.jwt_issuer, help="what iss must be")
    add("--jwt-audience", default=access.jwt_audience, help="what aud must be")
    add("--jwt-scope", default=access.jwt_scope, help="a word that scope must contain")
    add(
        "--device-rate",
        type=float,
        default=access.device_rate,
        help="calls/s of a device; 0: no limit",
    )
    add("--device-burst", type=int, default=access.device_burst, help="calls after a pause")
    add("--otlp-endpoint", help="URL of an OTLP/gRPC collector ($OTEL_EXPORTER_OTLP_ENDPOINT)")
    add("--trace-ratio", type=float, default=tracing.ratio, help="of requests that are traced")


def read_settings(
    arguments: Sequence[str] | None = None, find_registry: Callable[[], Path] | None = None
) -> tuple[ServeSettings, str]:
    """The settings and the log level that a command line says. Raises SettingsError.

    find_registry: asked where --registry is left out; None: it may not be.
    """
    a = make_parser(find_registry=find_registry is not None).parse_args(arguments)
    targets = parse_targets(a.target)
    training = _read_trainer(a) if "trainer" in targets else None
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
            min_concurrent=a.min_concurrent,
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
