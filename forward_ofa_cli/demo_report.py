"""What the demo tells at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forward_ofa_cli.console import size
from forward_ofa_cli.lives import SHOWN_TOUCHES
from forward_ofa_cli.report import Section, histogram, systems, verdict


def sections(result: dict[str, Any], folder: Path) -> list[Section]:
    """The report's parts, for the terminal and for report.md. result: as in demo.json."""
    return [
        _summary(result),
        systems(result["run"]),
        _blocks(result["run"]),
        _devices(result),
        _places(result, folder),
        _next(result, folder),
    ]


def _summary(result: dict[str, Any]) -> Section:
    card = result["data"]
    return Section(
        "Result",
        lines=(
            verdict(result["run"]),
            f"{card['name']}: {card['users']:,} users, {card['items']:,} items, "
            f"{card['interactions']:,} interactions. Source: {card['source']}.",
        ),
    )


def _blocks(report: dict[str, Any]) -> Section:
    ours = report["systems"]["forward-ofa"]
    counts = {kept: count for kept, count in enumerate(ours["kept_blocks_histogram"]) if kept}
    usage = ", ".join(f"{share:.0%}" for share in ours["block_usage"])
    return Section(
        "How many blocks a network keeps, over all users",
        drawing=histogram(counts),
        notes=(f"How often each block is kept, first to last: {usage}.",),
    )


def _devices(result: dict[str, Any]) -> Section:
    told, latency = result["devices"], result["devices"]["latency_ms"]
    reasons = told["reasons"]
    modules = result["run"]["device_modules"]
    flops = told["mean_device_flops"]
    once = modules["flops_per_request"]
    rows = [
        ["", "measured by the devices"],
        ["devices, all with a network of their own", f"{told['devices']:,}"],
        [f"touches lived through, up to {SHOWN_TOUCHES} a user", f"{told['steps']:,}"],
        ["RequestNetwork calls", f"{told['requests']:,}"],
        ["... of which at a shift of interest", f"{reasons.get('interest shift', 0):,}"],
        ["touches served without asking the cloud", f"{told['steps'] - told['requests']:,}"],
        [
            "RequestNetwork p50 / p95 / p99",
            " / ".join(f"{latency[name]:.1f}" for name in ("p50", "p95", "p99")) + " ms",
        ],
        ["network on the wire, float16 (mean)", size(told["mean_artefact_bytes"])],
        ["candidates with embeddings (mean)", size(told["mean_candidate_bytes"])],
        ["bundle, once for each version", size(result["bundle_bytes"])],
        ["one inference (mean, true)", f"{flops / 1e6:.4f} MFLOPs"],
        [
            "path and interest (E, H, E'), at each refresh",
            f"{once / 1e6:.4f} MFLOPs = {once / flops:.1f} inferences",
        ],
        [
            "test item sent / in the device's own top 10",
            f"{told['test_funnel']['recall']:.1%} / {told['test_funnel']['hit@10']:.1%}",
        ],
    ]
    per_touch = flops + once
    notes = [
        f"A device refreshes at every touch here, so a touch costs it {per_touch / 1e6:.2f} "
        "MFLOPs in all; refreshing less often, or a shorter extractor history, costs less.",
        "Devices share this machine with the cloud, so latency is that of loopback. FLOPs are "
        f"multiply-accumulates; E and E' read the last {modules['extractor_history']} items.",
    ]
    if not reasons.get("interest shift"):
        notes.append(
            "No interest shifted by more than the SDK's threshold within these touches, so every "
            "device went on with its first network."
        )
    return Section("The devices", table=rows, notes=notes)


def _places(result: dict[str, Any], folder: Path) -> Section:
    metrics = result["metrics"]
    return Section(
        "Where things are",
        lines=(
            f"version {result['version']}, label stable: {result['registry']}",
            f"run, figures, this report: {folder} (report.json, demo.json, report.md)",
            f"what each device did at each touch: {folder / 'devices' / 'steps.jsonl'}",
            f"the services' log: {folder / 'services.log'}",
            "metrics (read while the services ran): "
            f"{metrics['networks']:.0f} networks, histograms of FLOPs and bytes a request",
        ),
    )


def _next(result: dict[str, Any], folder: Path) -> Section:
    name = result["data"]["name"]
    other = "ml-100k" if name == "ml-1m" else "ml-1m"
    tool = ".venv/bin/forward-ofa"
    return Section(
        "What to try next",
        drawing=(
            "make serve                             serve this version until Ctrl-C; meanwhile",
            "curl -s http://127.0.0.1:9464/metrics | grep -A40 forward_ofa_device_flops",
            f"make demo DATA={other:<21}  another log, or a path to yours",
            "make demo ARGS='--backbone nextitnet'  another backbone, with 12 blocks",
            f"{tool} versions list --registry {folder / 'registry'}",
            f"{tool} cost             what networks cost: the paper's tables",
            f"{tool} train --help     train with settings of your own",
        ),
    )
