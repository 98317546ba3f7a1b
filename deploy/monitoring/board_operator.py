"""The operator's board: are devices served well, and if not, where to look."""

from __future__ import annotations

from deploy.monitoring.panels import Board, Panel, Row, mean, quantile

_NETWORK = 'method="RequestNetwork"'

_OBJECTIVES = Row(
    "Are devices served well?",
    (
        Panel(
            "Availability, 1 h",
            "RequestNetwork calls that were answered, of those that were answered or failed by our "
            "fault. Promised: 99.9 %. What counts: docs/monitoring.md.",
            (('1 - forward_ofa:network_failed:ratio1h{namespace=~"$namespace"}', "availability"),),
            "percentunit", "stat", ((None, "red"), (0.99, "orange"), (0.999, "green")),
            "ForwardOfaAvailabilityBurn", 4,
        ),
        Panel(
            "Error budget left, 3 d",
            "Of what may fail in three days at 99.9 %; below 0 it is overspent.",
            (('1 - forward_ofa:network_failed:ratio3d{namespace=~"$namespace"} / '
              "scalar(forward_ofa:plan:error_budget)", "budget"),),
            "percentunit", "stat", ((None, "red"), (0, "orange"), (0.5, "green")),
            "ForwardOfaAvailabilityBurn", 4,
        ),
        Panel(
            "p99 of RequestNetwork",
            "Promised: 99 % within 0.25 s, measured in the controller, to the last byte handed to "
            "the network.",
            (('forward_ofa:network_seconds:p99_5m{namespace=~"$namespace"}', "p99"),),
            "s", "stat", ((None, "green"), (0.2, "orange"), (0.25, "red")),
            "ForwardOfaLatencyBurn", 4,
        ),
        Panel(
            "Age of the version",
            "Since the version that new sessions get was made. Planned: 7 days at most.",
            (('forward_ofa:version_age_seconds{namespace=~"$namespace"}', "age"),),
            "s", "stat", ((None, "green"), (5 * 86400, "orange"), (7 * 86400, "red")),
            "ForwardOfaVersionStale", 4,
        ),
        Panel(
            "Networks a second",
            "RequestNetwork calls that were answered.",
            ((f'sum(rate(forward_ofa_requests_total{{{_NETWORK}, code="OK", $where}}$rate))',
              "networks"),),
            "reqps", "stat", width=4,
        ),
        Panel(
            "Processes that answer",
            "Of all that Prometheus knows of: their metrics ports.",
            (("sum(up{$where}) / count(up{$where})", "up"),),
            "percentunit", "stat", ((None, "red"), (0.5, "orange"), (1, "green")),
            "ForwardOfaTargetDown", 4,
        ),
        Panel(
            "Burn rate of the error budget",
            "1: what fails is just what may. Above 14.4 for 1 h and 5 min, or 6 for 6 h and 30 "
            "min, somebody is woken.",
            tuple(
                (f'forward_ofa:network_failed:ratio{window}{{namespace=~"$namespace"}} / '
                 "scalar(forward_ofa:plan:error_budget)", window)
                for window in ("5m", "30m", "1h", "6h")
            ),
            levels=((None, "green"), (6, "orange"), (14.4, "red")),
            alert="ForwardOfaAvailabilityBurn", width=12,
        ),
        Panel(
            "Share of slow calls",
            "RequestNetwork calls above 0.25 s; 1 % may be.",
            tuple(
                (f'forward_ofa:network_slow:ratio{window}{{namespace=~"$namespace"}}', window)
                for window in ("5m", "1h", "6h")
            ),
            "percentunit", levels=((None, "green"), (0.01, "orange"), (0.144, "red")),
            alert="ForwardOfaLatencyBurn", width=12,
        ),
    ),
)  # fmt: skip

_TRAFFIC = Row(
    "Traffic and refusals",
    (
        Panel(
            "Calls by method",
            "All that ended, whatever their status.",
            (("sum by (job, method) (rate(forward_ofa_requests_total{$where}$rate)) > 0",
              "{{job}} {{method}}"),),
            "reqps", stack=True,
        ),
        Panel(
            "Failed calls by reason",
            "Reasons: docs/errors.md. OVERLOADED: too few replicas; MALFORMED_...: an app that is "
            "wrong; UNKNOWN_VERSION: devices that are about to move.",
            (("sum by (job, reason) (rate(forward_ofa_rejections_total{$where}$rate)) > 0",
              "{{job}} {{reason}}"),),
            "reqps", alert="ForwardOfaRequestsRejected",
        ),
        Panel(
            "Bytes sent a second",
            "All messages, by method.",
            (('sum by (job, method) (rate(forward_ofa_message_bytes_sum{direction="sent", $where}'
              "$rate)) > 0", "{{job}} {{method}}"),),
            "Bps", stack=True, alert="ForwardOfaBytesAbovePlan",
        ),
    ),
)  # fmt: skip

_LATENCY = Row(
    "Where the time goes",
    (
        Panel(
            "RequestNetwork, by quantile",
            "In the controller, from arrival to the last byte.",
            tuple(
                (quantile(share, "forward_ofa_request_seconds", _NETWORK), name)
                for share, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
            ),
            "s", levels=((None, "green"), (0.25, "red")), alert="ForwardOfaLatencyBurn",
        ),
        Panel(
            "Stages, 95 %",
            "queue: waiting in the mapper; map: generating; assemble: artefact and hops; retrieve: "
            "candidates; total: all of it. Stages overlap.",
            ((quantile("0.95", "forward_ofa_stage_seconds", by="stage"), "{{stage}}"),),
            "s", alert="ForwardOfaLatencyBurn",
        ),
        Panel(
            "Stages, mean",
            "As beside; the mean says where CPU goes.",
            ((mean("forward_ofa_stage_seconds", by="stage"), "{{stage}}"),),
            "s",
        ),
    ),
)  # fmt: skip

_SATURATION = Row(
    "How full it is",
    (
        Panel(
            "Calls in flight and their limit",
            "The limit falls when calls wait for one another; at the limit, calls are refused.",
            (("sum by (job) (forward_ofa_requests_in_flight{$where})", "{{job}} in flight"),
             ("sum by (job) (forward_ofa_concurrency_limit{$where})", "{{job}} limit")),
            alert="ForwardOfaOverloaded",
        ),
        Panel(
            "Mapper: oldest waiting block",
            "How long it has waited for a worker.",
            (("max by (instance) (forward_ofa_mapper_queue_age_seconds{$where} "
              'and on (instance) forward_ofa_versions_loaded{target="mapper"})', "{{instance}}"),),
            "s", levels=((None, "green"), (0.1, "red")), alert="ForwardOfaMapperQueueAge",
        ),
        Panel(
            "Mapper: requests that share a product",
            "More of them under load: that is how a mapper gets cheaper when it is full.",
            ((mean("forward_ofa_mapper_batch_size"), "mean"),
             ("sum(forward_ofa_mapper_queue_depth{$where})", "requests in the mapper")),
        ),
        Panel(
            "CPU",
            "Cores in use, by process.",
            (("sum by (job, instance) (rate(process_cpu_seconds_total{$where}$rate))",
              "{{job}} {{instance}}"),),
        ),
        Panel(
            "Memory",
            "Resident; a jump is a version that was loaded.",
            (("sum by (job, instance) (process_resident_memory_bytes{$where})",
              "{{job}} {{instance}}"),),
            "bytes",
        ),
        Panel(
            "Replies that callers have not read",
            "Memory that slow readers hold; beyond a limit they get OVERLOADED.",
            (("sum by (job) (forward_ofa_unread_reply_bytes{$where})", "{{job}}"),),
            "bytes", alert="ForwardOfaOverloaded",
        ),
    ),
)  # fmt: skip

_STATE = Row(
    "Versions, sessions, files",
    (
        Panel(
            "Requests by version",
            "Devices move to a new version with their next requests.",
            (('sum by (version) (rate(forward_ofa_version_requests_total{target="controller", '
              "$where}$rate))", "{{version}}"),),
            "reqps", stack=True, alert="ForwardOfaDevicesBehind",
        ),
        Panel(
            "Processes by current version",
            "All processes should agree within seconds.",
            (("count by (target, version) (forward_ofa_current_version{$where} == 1)",
              "{{target}} {{version}}"),),
            alert="ForwardOfaVersionsDiffer",
        ),
        Panel(
            "Requests for other versions than the current ones",
            "Share of requests for versions that neither stable nor canary points at.",
            (('forward_ofa:devices_behind:ratio30m{namespace=~"$namespace"}', "behind"),),
            "percentunit", levels=((None, "green"), (0.3, "red")), alert="ForwardOfaDevicesBehind",
        ),
        Panel(
            "Session look-ups that hit",
            "A session that is not found costs a whole candidate list.",
            (('forward_ofa:session_hits:ratio30m{namespace=~"$namespace"}', "30 min"),
             ('forward_ofa:session_hits:ratio1d{namespace=~"$namespace"}', "1 day")),
            "percentunit", alert="ForwardOfaSessionHitsFall",
        ),
        Panel(
            "Trouble with files and versions, 1 h",
            "Versions that could not be loaded, changed files that make no sense, and what devices "
            "threw away. All should be 0.",
            (("sum by (target) (increase(forward_ofa_version_load_failures_total{$where}[1h]))",
              "{{target}}: version"),
             ("sum by (what) (increase(forward_ofa_file_reload_failures_total{$where}[1h]))",
              "{{what}}"),
             ("sum(increase(forward_ofa_device_damaged_total{$where}[1h]))", "damaged on devices")),
            levels=((None, "green"), (1, "red")), alert="ForwardOfaVersionLoadFails",
        ),
        Panel(
            "Certificates expire in",
            "Of processes that speak TLS; 0 or below: it has expired.",
            (("(forward_ofa_tls_certificate_expiry_timestamp_seconds{$where} > 0) - time()",
              "{{job}} {{instance}}"),),
            "s", levels=((None, "red"), (7 * 86400, "green")),
            alert="ForwardOfaCertificateExpires",
        ),
    ),
)  # fmt: skip

OPERATOR = Board(
    "operator", "Forward-OFA: operator", "Are devices served well, and if not, where to look.",
    (_OBJECTIVES, _TRAFFIC, _LATENCY, _SATURATION, _STATE),
)  # fmt: skip
