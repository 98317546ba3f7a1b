"""The product's board: what devices get, what it costs them, how good it is."""

from __future__ import annotations

from deploy.monitoring.panels import Board, Panel, Row, mean, quantile

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
                ((mean("forward_ofa_device_flops", 'accounting="true"'), "FLOPs"),), kind="stat",
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
                ((mean("forward_ofa_response_bytes", 'part="artefact"'), "bytes"),),
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
                ((mean("forward_ofa_kept_blocks"), "blocks"),), kind="stat", width=4,
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
                ((mean("forward_ofa_device_flops", by="accounting"), "{{accounting}}, mean"),
                 (quantile("0.95", "forward_ofa_device_flops", by="accounting"),
                  "{{accounting}}, p95")), width=12,
            ),
            Panel(
                "How many blocks networks keep", "Of the networks that were sent.",
                ((mean("forward_ofa_kept_blocks"), "mean"),
                 (quantile("0.1", "forward_ofa_kept_blocks"), "p10"),
                 (quantile("0.9", "forward_ofa_kept_blocks"), "p90")), width=12,
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
                ((mean("forward_ofa_generation_flops"), "mean"),
                 (quantile("0.95", "forward_ofa_generation_flops"), "p95")),
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
