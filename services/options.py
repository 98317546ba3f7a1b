"""The command line of the services. Defaults are those of the settings classes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from services.assembler.settings import AssemblerSettings
from services.controller.settings import ControllerSettings
from services.mapper.settings import MapperSettings
from services.registry.location import place
from services.registry.settings import CacheSettings
from services.runtime.access import AccessSettings
from services.runtime.admission import AdmissionSettings
from services.runtime.settings import ChannelSettings, ServerSettings
from services.runtime.tracing import TracingSettings
from services.sessions.settings import SessionSettings
from services.versions import VersionSettings


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown where there are any, texts as written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == "":
            return action.help
        if isinstance(action.default, Path) and action.default.is_relative_to(Path.home()):
            # As it holds for whoever reads it.
            return f"{action.help} (default: ~/{action.default.relative_to(Path.home())})"
        return super()._get_help_string(action)


class _Group:
    """Options under one heading. A default gives the type, unless that is said."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def add(self, name: str, default: Any, text: str, **more: Any) -> None:
        if default is not None and "type" not in more:
            more["type"] = type(default)
        self._group.add_argument(name, default=default, help=text, **more)

    def file(self, name: str, text: str) -> None:
        self._group.add_argument(name, type=Path, help=text)

    def flag(self, name: str, text: str) -> None:
        self._group.add_argument(name, action="store_true", help=text)


def make_parser(*, find_registry: bool = False) -> argparse.ArgumentParser:
    """find_registry: --registry may be left out, the caller finds one then."""
    parser = argparse.ArgumentParser(
        prog="python -m services",
        usage="%(prog)s [options]",
        description="Run one, several or all services in this process.",
        formatter_class=HelpFormatter,
    )
    _what(parser, find_registry)
    _versions(parser)
    _components(parser)
    _sessions(parser)
    _tls(parser)
    _devices(parser)
    _limits(parser)
    _watching(parser)
    return parser


def _what(parser: argparse.ArgumentParser, find_registry: bool) -> None:
    group = _Group(parser, "what is served, and where")
    found = "; left out: the one here that was labelled last" if find_registry else ""
    group.add(
        "--registry", None,
        "the published versions: a folder, or a URL such as s3://BUCKET/PREFIX" + found,
        type=place, required=not find_registry,
    )  # fmt: skip
    group.add(
        "--target", "all", "all, or a comma list of controller, assembler, mapper; or trainer alone"
    )
    group.add("--listen", ServerSettings().listen, "HOST:PORT for gRPC; port 0 takes a free one")
    group.add("--processes", 1, "whole processes that share the port and the work")
    group.add("--mapper", None, "HOST:PORT of a mapper elsewhere; a comma list: by round robin")
    group.add("--assembler", None, "HOST:PORT of an assembler elsewhere, or a comma list")
    group.flag("--expose-internal", "offer mapper and assembler to other machines too")
    group.flag("--share-port", "let other processes that do so too listen on the same port")
    group.file("--ready-file", "JSON: addresses, pid, version; written when all answers")
    group.add("--broker", None, "trainer: Redis of the jobs, redis://HOST:PORT/DB or unix://PATH")
    group.add("--home", Path("runs/trainer"), "trainer: where jobs have their run folders")
    parser.add_argument("--exit-with", type=int, help=argparse.SUPPRESS)


def _versions(parser: argparse.ArgumentParser) -> None:
    group, versions, cache = _Group(parser, "versions"), VersionSettings(), CacheSettings()
    group.add("--label", versions.label, "the label that new sessions follow")
    group.add(
        "--canary-label", versions.canary,
        "the label that gets a share of new sessions; \'\': none does",
    )  # fmt: skip
    group.add("--poll-seconds", versions.poll_seconds, "how often labels are read, in seconds")
    group.add("--keep-versions", versions.keep, "most versions in memory at once")
    group.add(
        "--version-idle-seconds", versions.idle_seconds,
        "a version without a label leaves memory when nobody asked for it for so long",
    )  # fmt: skip
    group.add(
        "--registry-cache",
        cache.folder,
        "local copies of files, if the registry is a URL",
        type=Path,
    )
    group.add("--registry-cache-bytes", cache.limit_bytes, "most bytes of these copies")


def _components(parser: argparse.ArgumentParser) -> None:
    group = _Group(parser, "controller, assembler, mapper")
    controlling, mapping = ControllerSettings(), MapperSettings()
    group.add("--candidates", controlling.candidates, "items that a device gets to rerank")
    group.add(
        "--network-ttl", controlling.network_ttl_seconds,
        "seconds after which a device should ask for a new network",
    )  # fmt: skip
    group.add("--retry-min-ms", controlling.retry_min_ms, "replies: earliest next request")
    group.add("--retry-max-ms", controlling.retry_max_ms, "replies: latest next request")
    group.add("--retrieval-workers", controlling.retrieval_workers, "threads that search items")
    group.add("--mapper-workers", mapping.workers, "threads that generate parameters")
    group.add("--mapper-queue", mapping.queue, "requests that the mapper holds; more are refused")
    group.add("--mapper-batch", mapping.max_batch, "most requests that share a matrix product")
    group.add(
        "--mapper-precision", mapping.precision, "of the products; float32 is exact",
        choices=("float32", "bfloat16"),
    )  # fmt: skip
    group.add("--torch-threads", mapping.torch_threads, "threads of one product")
    group.add(
        "--mapper-seconds", AssemblerSettings().mapper_seconds,
        "longest time that the assembler waits for the mapper",
    )  # fmt: skip


def _sessions(parser: argparse.ArgumentParser) -> None:
    group, sessions = _Group(parser, "sessions (docs/sessions.md)"), SessionSettings()
    group.add("--sessions", sessions.url, "memory://, or Redis: redis://, rediss://, ...")
    group.add("--session-ttl", sessions.ttl_seconds, "seconds that a session is remembered")
    group.add("--session-limit", sessions.limit, "most sessions in this process's memory")
    group.add("--session-timeout", sessions.timeout_seconds, "longest wait for Redis, in seconds")


def _tls(parser: argparse.ArgumentParser) -> None:
    group = _Group(parser, "TLS (files are read again when they change)")
    group.file("--tls-cert", "PEM certificate chain of this port; with --tls-key")
    group.file("--tls-key", "PEM private key")
    group.file("--tls-client-ca", "PEM authorities: callers must show a certificate of theirs")
    group.add("--tls-client-names", "", "comma list: names that such a certificate must be for")
    group.flag("--allow-insecure", "no TLS off loopback: something in front of this ends it")
    group.file("--upstream-ca", "PEM authority of the services behind this one: TLS to them")
    group.file("--upstream-cert", "PEM certificate that the services behind are shown")
    group.file("--upstream-key", "PEM private key of --upstream-cert")
    group.add(
        "--attempt-seconds", ChannelSettings().attempt_seconds,
        "a service behind that has not answered by then: another replica is asked",
    )  # fmt: skip


def _devices(parser: argparse.ArgumentParser) -> None:
    group, access = _Group(parser, "devices' tokens and rates"), AccessSettings()
    group.file("--tokens", "API tokens of devices, made by `forward-ofa token`")
    group.file("--jwt-keys", "PEM public key or JWKS: devices' tokens may be JWTs")
    group.file("--jwt-secret", "file with the secret of HS256, in place of --jwt-keys")
    group.add("--jwt-issuer", access.jwt_issuer, "what a JWT's iss must be")
    group.add("--jwt-audience", access.jwt_audience, "what a JWT's aud must be")
    group.add("--jwt-scope", access.jwt_scope, "a word that a JWT's scope must contain")
    group.add("--device-rate", access.device_rate, "calls a second of a device; 0: no limit")
    group.add("--device-burst", access.device_burst, "calls that a rested device may make at once")


def _limits(parser: argparse.ArgumentParser) -> None:
    group, server, limits = _Group(parser, "limits"), ServerSettings(), AdmissionSettings()
    group.add("--max-request-bytes", server.max_request_bytes, "largest message that is taken")
    group.add("--max-concurrent", server.max_concurrent_requests, "most unary calls at once")
    group.add(
        "--target-ms", limits.target_ms,
        "while calls are refused and none is as quick, fewer are let in at once; 0: never",
    )  # fmt: skip
    group.add(
        "--calm-concurrent", limits.calm_concurrent,
        "calls at once that are let in while nobody was refused for a second",
    )  # fmt: skip
    group.add(
        "--max-waiting", limits.max_waiting, "calls of a method that may wait to be looked at"
    )
    group.add(
        "--max-unread-bytes", limits.max_unread_bytes,
        "memory of replies that callers have not read yet",
    )  # fmt: skip
    group.add(
        "--max-connection-seconds", limits.max_connection_seconds,
        "age at which a client is told to connect anew",
    )  # fmt: skip
    group.add("--max-seconds", limits.max_seconds, "longest unary call")
    group.add("--max-downloads", limits.max_downloads, "most bundle downloads at once")
    group.add("--download-rate", limits.download_rate, "bytes/s of all downloads; 0: no limit")
    group.add("--stream-rate", limits.stream_rate, "bytes/s of one download; 0: no limit")
    group.add(
        "--max-download-seconds", limits.max_download_seconds,
        "longest stretch of a download; devices resume",
    )  # fmt: skip
    group.add(
        "--drain-delay", server.drain_delay,
        "on SIGTERM: seconds in which calls are still taken, though not ready any more",
    )  # fmt: skip
    group.add(
        "--drain-seconds", server.drain_seconds, "then: seconds in which running calls may end"
    )


def _watching(parser: argparse.ArgumentParser) -> None:
    group = _Group(parser, "watching it")
    group.add("--metrics", "127.0.0.1:0", "HOST:PORT of /metrics, /livez, /readyz (HTTP)")
    group.add(
        "--log-level", "INFO", "least severe lines that are logged",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
    )  # fmt: skip
    group.add(
        "--otlp-endpoint", None, "URL of an OTLP/gRPC collector, or $OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    group.add("--trace-ratio", TracingSettings().ratio, "share of requests that are traced")
    group.flag("--no-reflection", "callers cannot learn the API from the server")
