"""What Prometheus scrapes: one registry a process, made by the wiring, no globals."""

from __future__ import annotations

from bisect import bisect_left
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client import Histogram as _Histogram

from services.runtime.context import exemplar

# A network of 1 to 12 blocks at usual sizes costs 0.1 to 2 MFLOPs and 40 to 600 KB.
_FLOPS = tuple(1e3 * m * 10**e for e in range(6) for m in (1, 2, 3, 5, 7))
_BYTES = tuple(1024 * 2.0**n for n in range(14))
_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip


class Histogram(_Histogram):
    """Notes the trace id beside a value where the request's trace is recorded."""

    def observe(self, amount: float, exemplar_labels: dict[str, str] | None = None) -> None:
        noted = exemplar_labels or exemplar.get()
        if noted:
            super().observe(amount, noted)
            return
        # As in the library, but the bucket is found by bisection: this runs twenty times a call.
        self._raise_if_not_observable()  # type: ignore[no-untyped-call]
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


class Metrics:
    """The time series of a process. Attribute names say what is recorded, and in what unit."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        build_info(r)
        self.requests = Counter(
            "forward_ofa_requests", "Calls by gRPC status", ["method", "code"], registry=r
        )
        self.request_seconds = Histogram(
            "forward_ofa_request_seconds",
            "From arrival to the last byte, by method",
            ["method"],
            buckets=_SECONDS,
            registry=r,
        )
        self.in_flight = Gauge("forward_ofa_requests_in_flight", "Calls being served", registry=r)
        self.unread_bytes = Gauge(
            "forward_ofa_unread_reply_bytes",
            "Memory of unary calls' replies that callers have not read yet",
            registry=r,
        )
        self.rejections = Counter(
            "forward_ofa_rejections",
            "Failed calls by method and reason (docs/errors.md)",
            ["method", "reason"],
            registry=r,
        )
        self.message_bytes = Histogram(
            "forward_ofa_message_bytes",
            "Bytes of a call, by method and direction: received, sent (all messages of a stream)",
            ["method", "direction"],
            buckets=tuple(32 * 2.0**n for n in range(20)),
            registry=r,
        )
        self.concurrency_limit = Gauge(
            "forward_ofa_concurrency_limit",
            "Unary calls that may run at once; adapts to how long they take",
            registry=r,
        )
        self._files(r)
        self._cost(r)
        self._mapper(r)
        self._versions(r)
        self._reports(r)

    def reloaded(self, what: str) -> None:
        """See `watched.Reloads`."""
        self.reloads.labels(what).inc()

    def reload_failed(self, what: str) -> None:
        """See `watched.Reloads`."""
        self.reload_failures.labels(what).inc()

    def _files(self, r: CollectorRegistry) -> None:
        self.reloads = Counter(
            "forward_ofa_file_reloads",
            "Changed files taken into use: tls, upstream, tokens, jwt",
            ["what"],
            registry=r,
        )
        self.reload_failures = Counter(
            "forward_ofa_file_reload_failures",
            "Changed files that make no sense; the old ones stay in use",
            ["what"],
            registry=r,
        )
        for what in ("tls", "upstream", "tokens", "jwt"):
            self.reload_failures.labels(what)
        self.certificate_expiry = Gauge(
            "forward_ofa_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires",
            registry=r,
        )

    def _cost(self, r: CollectorRegistry) -> None:
        self.device_flops = Histogram(
            "forward_ofa_device_flops",
            "Multiply-accumulates of one forward pass of a network that was sent; accounting: "
            "paper (as its tables count) or true (attention products too)",
            ["accounting"],
            buckets=_FLOPS,
            registry=r,
        )
        self.generation_flops = Histogram(
            "forward_ofa_generation_flops",
            "Multiply-accumulates that generating one network's parameters took",
            buckets=tuple(10 * f for f in _FLOPS),
            registry=r,
        )
        self.response_bytes = Histogram(
            "forward_ofa_response_bytes",
            "Bytes sent, by part: artefact, candidates, bundle",
            ["part"],
            buckets=_BYTES,
            registry=r,
        )
        self.dense_flops = Counter(
            "forward_ofa_dense_flops",
            "What forward_ofa_device_flops would add up to if every network had all blocks",
            ["accounting"],
            registry=r,
        )
        self.dense_bytes = Counter(
            "forward_ofa_dense_bytes",
            "What the artefacts of forward_ofa_response_bytes would add up to if every network "
            "had all blocks, each in the encoding that was asked for",
            registry=r,
        )
        self.kept_blocks = Histogram(
            "forward_ofa_kept_blocks",
            "Blocks of the networks that were sent",
            buckets=(*range(1, 13), 16, 24, 32),
            registry=r,
        )
        self.stage_seconds = Histogram(
            "forward_ofa_stage_seconds",
            "Where a request's time went: queue, map, assemble, retrieve, total",
            ["stage"],
            buckets=_SECONDS,
            registry=r,
        )

    def _mapper(self, r: CollectorRegistry) -> None:
        self.batch_size = Histogram(
            "forward_ofa_mapper_batch_size",
            "Requests that shared one product of a block",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=r,
        )
        self.queue_depth = Gauge(
            "forward_ofa_mapper_queue_depth",
            "Requests that the mapper has taken and not answered",
            registry=r,
        )
        self.queue_age = Gauge(
            "forward_ofa_mapper_queue_age_seconds",
            "How long the oldest block has waited for a worker; 0: none waits",
            registry=r,
        )
        self.dropped_blocks = Counter(
            "forward_ofa_mapper_dropped_blocks",
            "Blocks left out of a batch since their caller had gone",
            registry=r,
        )

    def _versions(self, r: CollectorRegistry) -> None:
        self.session_cache = Counter(
            "forward_ofa_session_cache", "Session look-ups: hit, miss, error", ["result"],
            registry=r,
        )  # fmt: skip
        self.session_store_failures = Counter(
            "forward_ofa_session_store_failures",
            "Reads and writes of sessions that failed, by kind: timeout, connection, auth, "
            "protocol, full, readonly, refused, rubbish, dropped (too many waiting), skipped "
            "(left alone after a failure), other",
            ["operation", "kind"],
            registry=r,
        )
        self.versions_loaded = Gauge(
            "forward_ofa_versions_loaded", "Versions in memory", ["target"], registry=r
        )
        self.current_version = Gauge(
            "forward_ofa_current_version",
            "1 for the version that new sessions get",
            ["target", "version"],
            registry=r,
        )
        self.current_version_created = Gauge(
            "forward_ofa_current_version_timestamp_seconds",
            "When the version that new sessions get was made",
            ["target"],
            registry=r,
        )
        self.version_metric = Gauge(
            "forward_ofa_version_metric",
            "What a version in memory reached in its own evaluation, on the test split",
            ["target", "version", "metric"],
            registry=r,
        )
        self.canary_percent = Gauge(
            "forward_ofa_canary_percent",
            "Share of the sessions that get the canary's version",
            ["target", "version"],
            registry=r,
        )
        self.version_requests = Counter(
            "forward_ofa_version_requests",
            "Requests by version, of the versions in memory: an old one is idle when it stands",
            ["target", "version"],
            registry=r,
        )
        self.version_load_failures = Counter(
            "forward_ofa_version_load_failures", "Loads that failed", ["target"], registry=r
        )

    def _reports(self, r: CollectorRegistry) -> None:
        self.device_reports = Counter(
            "forward_ofa_device_reports",
            "Reports of devices about the networks that they had: counted, or ignored since they "
            "make no sense",
            ["result"],
            registry=r,
        )
        self.online_touches = Counter(
            "forward_ofa_online_touches",
            "New items that users touched beside a ranking, as devices report, by the version "
            "that ranked; other: not in memory here, or not the one that the request names",
            ["version"],
            registry=r,
        )
        self.online_hits = Counter(
            "forward_ofa_online_hits",
            "Those of forward_ofa_online_touches that were among the ten best of the ranking",
            ["version"],
            registry=r,
        )
        self.device_damaged = Counter(
            "forward_ofa_device_damaged",
            "Reports of devices that threw something away: its digest or content was wrong",
            registry=r,
        )

    def forget_version(self, target: str, version: str) -> None:
        """No series of a version that has left memory, so that their number stays bounded."""
        self.version_requests.remove_by_labels({"target": target, "version": version})
        self.version_metric.remove_by_labels({"target": target, "version": version})
        if target == "controller":
            self.online_touches.remove_by_labels({"version": version})
            self.online_hits.remove_by_labels({"version": version})


def build_info(registry: CollectorRegistry) -> None:
    """Adds the gauge that says which release of this software a process is."""
    info = Gauge(
        "forward_ofa_build_info", "1, with the release of this software", ["release"],
        registry=registry,
    )  # fmt: skip
    try:
        release = version("forward-ofa")
    except PackageNotFoundError:  # run from a folder, not installed
        release = "unknown"
    info.labels(release).set(1)
