"""What the three dashboards show. Expressions name only series that the services have: a test
scrapes them."""

from __future__ import annotations

from deploy.monitoring.panels import Board, Panel, Row

_NETWORK = 'method="RequestNetwork"'


def _quantile(share: str, series: str, more: str = "", by: str = "") -> str:
    filters = f"{more}, $where" if more else "$where"
    keys = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({keys}) (rate({series}_bucket{{{filters}}}$rate)))"


def _mean(series: str, more: str = "", by: str = "") -> str:
    filters = f"{more}, $where" if more else "$where"
    over = f"sum by ({by}) " if by else "sum"
    return (
        f"{over}(rate({series}_sum{{{filters}}}$rate))"
        f" / ({over}(rate({series}_count{{{filters}}}$rate)) > 0)"
    )


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
            (("sum by (job, method) (rate(forward_ofa_requests_total{$where}$rate))",
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
              "$rate))", "{{job}} {{method}}"),),
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
                (_quantile(share, "forward_ofa_request_seconds", _NETWORK), name)
                for share, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))
            ),
            "s", levels=((None, "green"), (0.25, "red")), alert="ForwardOfaLatencyBurn",
        ),
        Panel(
            "Stages, 95 %",
            "queue: waiting in the mapper; map: generating; assemble: artefact and hops; retrieve: "
            "candidates; total: all of it. Stages overlap.",
            ((_quantile("0.95", "forward_ofa_stage_seconds", by="stage"), "{{stage}}"),),
            "s", alert="ForwardOfaLatencyBurn",
        ),
        Panel(
            "Stages, mean",
            "As beside; the mean says where CPU goes.",
            ((_mean("forward_ofa_stage_seconds", by="stage"), "{{stage}}"),),
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
            (("max by (instance) (forward_ofa_mapper_queue_age_seconds{$where})", "{{instance}}"),),
            "s", levels=((None, "green"), (0.1, "red")), alert="ForwardOfaMapperQueueAge",
        ),
        Panel(
            "Mapper: requests that share a product",
            "More of them under load: that is how a mapper gets cheaper when it is full.",
            ((_mean("forward_ofa_mapper_batch_size"), "mean"),
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

_HITS = "forward_ofa_online_hits_total"
_TOUCHES = "forward_ofa_online_touches_total"
_OF_VERSION = 'version=~"$version", $where'

PRODUCT = Board(
    "product", "Forward-OFA: product", "What devices get, what it costs them, how good it is.",
    (
        Row("Now", (
            Panel(
                "On-device FLOPs, mean",
                "Multiply-accumulates of one pass of the networks that were sent, all counted.",
                ((_mean("forward_ofa_device_flops", 'accounting="true"'), "FLOPs"),), kind="stat",
                width=4,
            ),
            Panel(
                "FLOPs saved",
                "Against a network with all blocks, in the paper's count.",
                (('1 - sum(rate(forward_ofa_device_flops_sum{accounting="paper", $where}$rate)) / '
                  'sum(rate(forward_ofa_dense_flops_total{accounting="paper", $where}$rate))',
                  "saved"),), "percentunit", "stat", width=4,
            ),
            Panel(
                "Bytes a network, mean",
                "The artefact alone: the parameters of the kept blocks.",
                ((_mean("forward_ofa_response_bytes", 'part="artefact"'), "bytes"),),
                "bytes", "stat", width=4,
            ),
            Panel(
                "Bytes saved",
                "Against sending a network with all blocks, in the encoding that was asked for.",
                (('1 - sum(rate(forward_ofa_response_bytes_sum{part="artefact", $where}$rate)) / '
                  "sum(rate(forward_ofa_dense_bytes_total{$where}$rate))", "saved"),),
                "percentunit", "stat", width=4,
            ),
            Panel(
                "Kept blocks, mean", "Of the networks that were sent.",
                ((_mean("forward_ofa_kept_blocks"), "blocks"),), kind="stat", width=4,
            ),
            Panel(
                "Hits among the ten best",
                "Of the new items that users touched beside a ranking, as devices report.",
                ((f"sum(rate({_HITS}{{{_OF_VERSION}}}$rate)) / "
                  f"sum(rate({_TOUCHES}{{{_OF_VERSION}}}$rate))", "hits"),),
                "percentunit", "stat", alert="ForwardOfaQualityDrops", width=4,
            ),
        )),
        Row("What a device computes", (
            Panel(
                "On-device FLOPs", "paper: as its tables count; true: attention products too.",
                ((_mean("forward_ofa_device_flops", by="accounting"), "{{accounting}}, mean"),
                 (_quantile("0.95", "forward_ofa_device_flops", by="accounting"),
                  "{{accounting}}, p95")), width=12,
            ),
            Panel(
                "How many blocks networks keep", "Networks a second, by kept blocks at most.",
                (("sum by (le) (rate(forward_ofa_kept_blocks_bucket{$where}$rate))",
                  "at most {{le}}"),), "reqps", width=12,
            ),
        )),
        Row("What a device receives", (
            Panel(
                "Bytes a network, by part",
                "Per answered RequestNetwork. bundle: what devices fetch once for each version.",
                (("sum by (part) (rate(forward_ofa_response_bytes_sum{$where}$rate)) / on () "
                  'group_left () sum(rate(forward_ofa_requests_total{method="RequestNetwork", '
                  'code="OK", $where}$rate))', "{{part}}"),), "bytes",
                stack=True, alert="ForwardOfaBytesAbovePlan",
            ),
            Panel(
                "Bytes a network against the plan", "Over an hour, bundles included.",
                (('forward_ofa:bytes_per_network:rate1h{namespace=~"$namespace"}', "received"),
                 ("forward_ofa:plan:bytes_per_network", "plan")), "bytes",
                alert="ForwardOfaBytesAbovePlan",
            ),
            Panel(
                "Generating a network", "Multiply-accumulates on the cloud.",
                ((_mean("forward_ofa_generation_flops"), "mean"),
                 (_quantile("0.95", "forward_ofa_generation_flops"), "p95")),
            ),
        )),
        Row("How good it is", (
            Panel(
                "Hits among the ten best, by version",
                "What devices report: of the new items that users touched, the share that their "
                "network had among its ten best. Compare versions of the same hours.",
                ((f"sum by (version) (rate({_HITS}{{{_OF_VERSION}}}$rate)) / "
                  f"(sum by (version) (rate({_TOUCHES}{{{_OF_VERSION}}}$rate)) > 0)",
                  "{{version}}"),), "percentunit", alert="ForwardOfaQualityDrops", width=12,
            ),
            Panel(
                "Touched items reported, by version",
                "How much the graph beside rests on. other: versions that are not in memory.",
                ((f"sum by (version) (rate({_TOUCHES}{{{_OF_VERSION}}}$rate))",
                  "{{version}}"),), "cps", stack=True, alert="ForwardOfaQualityDrops", width=12,
            ),
            Panel(
                "Evaluation of the versions in memory",
                "On the test split of the log that each was trained on: of different logs, so not "
                "to be compared when the log has grown much.",
                (('max by (version, metric) (forward_ofa_version_metric{target="controller", '
                  f"{_OF_VERSION}}})", "{{version}} {{metric}}"),), width=12,
            ),
            Panel(
                "Canary", "Share of the sessions that get the canary; no line: there is none.",
                (('max by (version) (forward_ofa_canary_percent{target="controller", '
                  f'{_OF_VERSION}}}) or on () vector(0)', "{{version}}"),), "percent",
                alert="ForwardOfaCanaryWorse", width=12,
            ),
        )),
    ),
    versions=True,
)  # fmt: skip

_T = "forward_ofa_trainer_"
TRAINER = Board(
    "trainer", "Forward-OFA: trainer", "Jobs, their progress, the gate, and what was published.",
    (
        Row("Now", (
            Panel("Jobs queued", "Waiting for a worker.",
                  ((f'max({_T}jobs{{state="queued", $where}})', "queued"),), kind="stat",
                  alert="ForwardOfaTrainerQueueAge", width=4),
            Panel("Jobs running", "On all workers.",
                  ((f'max({_T}jobs{{state="running", $where}})', "running"),), kind="stat",
                  width=4),
            Panel("Oldest queued job waits", "0: none waits.",
                  ((f"max({_T}queue_age_seconds{{$where}})", "waits"),), "s", "stat",
                  ((None, "green"), (600, "orange"), (3600, "red")),
                  "ForwardOfaTrainerQueueAge", 4),
            Panel("Last success", "Since the newest job that ended well.",
                  ((f'time() - (max({_T}last_ended_timestamp_seconds{{state="done", $where}}) > 0)',
                    "ago"),), "s", "stat", alert="ForwardOfaTrainerJobFailed", width=4),
            Panel("Last gate", "1: passed, 0: refused; of the worker that judged last.",
                  ((f"max({_T}gate_passed{{$where}})", "passed"),), kind="stat",
                  levels=((None, "red"), (1, "green")), alert="ForwardOfaTrainerGateRefuses",
                  width=4),
            Panel("Redis answers", "The queue's, asked by the beat.",
                  ((f"min({_T}redis_reachable{{$where}})", "reachable"),), kind="stat",
                  levels=((None, "red"), (1, "green")), alert="ForwardOfaTrainerRedisAway",
                  width=4),
        )),
        Row("Jobs", (
            Panel("Jobs on record", "By state.",
                  ((f"max by (state) ({_T}jobs{{$where}})", "{{state}}"),),
                  alert="ForwardOfaTrainerJobFailed"),
            Panel("Queue, signs of life, progress",
                  "queued: the oldest waiting job; silent: since a running job's last sign of "
                  "life; standing: since one went a step further.",
                  ((f"max({_T}queue_age_seconds{{$where}})", "queued"),
                   (f"max({_T}oldest_heartbeat_seconds{{$where}})", "silent"),
                   (f"max({_T}oldest_progress_seconds{{$where}})", "standing")), "s",
                  alert="ForwardOfaTrainerJobStuck"),
            Panel("Optimiser steps a second", "Of the job that each worker heard last.",
                  ((f"{_T}steps_per_second{{$where}}", "{{instance}}"),), "ops",
                  alert="ForwardOfaTrainerJobStuck"),
            Panel("Jobs that ended", "By state and reason of failure (docs/trainer.md).",
                  ((f"sum by (state, reason) ({_T}jobs_ended_total{{$where}})",
                    "{{state}} {{reason}}"),), alert="ForwardOfaTrainerJobFailed"),
            Panel("How long jobs take", "From first start to end, by state.",
                  ((f"sum by (state) ({_T}job_seconds_sum{{$where}}) / "
                    f"sum by (state) ({_T}job_seconds_count{{$where}})", "{{state}}, mean"),), "s"),
            Panel("Rescued", "Jobs whose worker went silent, and messages that were gone.",
                  ((f"sum({_T}jobs_lost_total{{$where}})", "lost"),
                   (f"sum({_T}jobs_announced_again_total{{$where}})", "announced again")),
                  alert="ForwardOfaTrainerJobSilent"),
        )),
        Row("The gate and what it let through", (
            Panel("The gate's metric", "On the validation split, at each worker's last gate.",
                  ((f"{_T}gate_metric{{$where}}", "{{instance}} {{of}}"),), width=12,
                  alert="ForwardOfaTrainerGateRefuses"),
            Panel("Versions published", "By all workers since they were started.",
                  ((f"sum({_T}versions_published_total{{$where}})", "versions"),), width=12),
        )),
        Row("Processes", (
            Panel("CPU", "Cores in use; training processes are the workers' children and counted "
                  "by the machine, not here.",
                  (("sum by (job, instance) (rate(process_cpu_seconds_total{$where}$rate))",
                    "{{job}} {{instance}}"),), width=12),
            Panel("Memory", "Resident.",
                  (("sum by (job, instance) (process_resident_memory_bytes{$where})",
                    "{{job}} {{instance}}"),), "bytes", width=12),
        )),
    ),
    jobs="trainer-api|trainer-worker|trainer-beat",
)  # fmt: skip

BOARDS = (OPERATOR, PRODUCT, TRAINER)
