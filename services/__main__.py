"""`python -m services --registry DIR`: run one, several or all services in this process."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from services.assembler.settings import AssemblerSettings
from services.controller.settings import ControllerSettings
from services.mapper.settings import MapperSettings
from services.registry.location import place
from services.registry.settings import CacheSettings
from services.runtime.logs import configure
from services.runtime.settings import ChannelSettings, ServerSettings, SettingsError
from services.sessions.settings import SessionSettings
from services.settings import ServeSettings, parse_targets
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
    add("--target", default="all", help="all, or a comma list of controller, assembler, mapper")
    add("--listen", default=server.listen, help="HOST:PORT for gRPC; port 0 takes a free one")
    add("--mapper", help="HOST:PORT of a mapper elsewhere, for --target assembler")
    add("--assembler", help="HOST:PORT of an assembler elsewhere, for --target controller")
    add("--metrics", default="127.0.0.1:0", help="HOST:PORT for /metrics over HTTP")
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
    _add_network(parser, server)
    return parser


def _add_network(parser: argparse.ArgumentParser, server: ServerSettings) -> None:
    add = parser.add_argument
    add("--tls-cert", type=Path, help="PEM certificate chain; with --tls-key: TLS")
    add("--tls-key", type=Path, help="PEM private key")
    add("--upstream-ca", type=Path, help="PEM authority of the services behind: TLS to them")
    add("--allow-insecure", action="store_true", help="no TLS off loopback; ends elsewhere")
    add("--max-request-bytes", type=int, default=server.max_request_bytes, help="a message")
    add("--max-concurrent", type=int, default=server.max_concurrent_requests, help="calls")
    add("--drain-seconds", type=float, default=server.drain_seconds, help="on SIGTERM")
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="least")


def read_settings(
    arguments: Sequence[str] | None = None, find_registry: Callable[[], Path] | None = None
) -> tuple[ServeSettings, str]:
    """The settings and the log level that a command line says. Raises SettingsError.

    find_registry: asked where --registry is left out; None: it may not be.
    """
    a = make_parser(find_registry=find_registry is not None).parse_args(arguments)
    settings = ServeSettings(
        registry=find_registry() if a.registry is None and find_registry else a.registry,
        targets=parse_targets(a.target),
        mapper=a.mapper,
        assembler=a.assembler,
        metrics=a.metrics,
        ready_file=a.ready_file,
        registry_cache=CacheSettings(a.registry_cache, a.registry_cache_bytes),
        server=ServerSettings(
            a.listen,
            a.tls_cert,
            a.tls_key,
            a.allow_insecure,
            a.max_request_bytes,
            a.max_concurrent,
            a.drain_seconds,
        ),
        channels=ChannelSettings(a.upstream_ca, a.allow_insecure),
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


def main() -> int:
    """Exit code 0 after a drained stop, 2 for settings that cannot work."""
    try:
        settings, level = read_settings()
        configure(level)
        asyncio.run(serve(settings))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
