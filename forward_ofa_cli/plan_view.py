"""A plan as tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from forward_ofa_cli.console import note

if TYPE_CHECKING:
    from forward_ofa_cli.capacity.comparison import Way
    from forward_ofa_cli.capacity.costs import Costs
    from forward_ofa_cli.capacity.planning import Plan


def as_json(plan: Plan, ways: list[Way], costs: Costs) -> dict[str, Any]:
    """Every figure. Seconds, bytes and cores unless the name says otherwise."""
    demand, request, releases = plan.demand, plan.request, plan.releases
    return {
        "requests_per_second": {
            "mean": demand.requests_per_second,
            "peak": demand.requests_per_second * demand.peak_to_mean,
        },
        "request": {
            "artefact_bytes": request.artefact,
            "candidate_bytes": request.candidates,
            "header_bytes": request.rest,
            "down_bytes": request.down,
            "up_bytes": request.up,
            "device_flops": {"paper": request.flops[0], "true": request.flops[1]},
        },
        "bytes_per_network": plan.bytes_per_network,
        "pods": [asdict(each) for each in plan.pods],
        "totals": {
            "cores_peak": plan.cores_peak,
            "cores_rented": plan.cores_rented,
            "pods": plan.pod_count,
            "memory_bytes": sum(each.pods * each.memory for each in plan.pods),
        },
        "egress": {
            "gbit_mean": plan.egress.gbit(),
            "gbit_peak": plan.egress.gbit(peak=True),
            "tb_a_month": plan.egress.month_tb(),
            "tb_a_month_by_part": {part: plan.egress.month_tb(part) for part in plan.egress.parts},
        },
        "ingress_gbit_peak": plan.ingress * demand.peak_to_mean * 8 / 1e9,
        "internal": {
            "gbit_peak": plan.internal * demand.peak_to_mean * 8 / 1e9,
            "between_zones_share": plan.crossing,
        },
        "redis": asdict(plan.redis),
        "releases": asdict(releases),
        "comparison": [asdict(way) for way in ways],
        "version": {
            "source": plan.shape.source,
            "backbone": asdict(plan.shape.config),
            "items": plan.shape.items,
            "bytes": plan.shape.whole,
        },
        "assumptions": demand.assumptions(),
        "costs": {"origin": dict(costs.origin), "residual": dict(costs.residual)},
    }


def show(out: Console, plan: Plan, ways: list[Way], costs: Costs) -> None:
    """Tables, and what they rest on."""
    demand, request = plan.demand, plan.request
    peak = demand.requests_per_second * demand.peak_to_mean
    out.print(
        f"[bold]{demand.devices:,} devices[/]: {demand.requests_per_second:,.1f} requests/s, "
        f"{peak:,.1f} at the peak; a request {request.down:,.0f} bytes down, "
        f"{request.up:,.0f} up; {request.flops[1] / 1e6:.3f} MFLOPs an inference on the device"
    )
    out.print(_pods(plan))
    out.print(_traffic(plan))
    for line in _rest(plan):
        out.print(line)
    out.print(_ways(ways))
    out.print("[bold]Assumptions[/] (*: not the default)")
    for each in demand.assumptions():
        mark, why = "*" if each["changed"] else " ", each["why"]
        text = f" {mark} {each['name']} = {each['value']}" + (f": {why}" if why else "")
        out.print(text, markup=False)
    origin = costs.origin
    kinds = [each.kind for each in plan.pods]
    fit = ", ".join(f"{costs.residual[kind]:.0%} ({kind})" for kind in kinds)
    note(
        out,
        f"Costs: {origin['cpu']}, Python {origin['python']}, measured {origin['time'][:10]} at "
        f"revision {origin['revision']} by `{origin['command']}`; {origin['load']}. The "
        f"measured points deviate from the fit by {fit} (root of the mean square). "
        f"Sizes: {plan.shape.source}.",
    )


def _pods(plan: Plan) -> Table:
    table = Table(
        title="Processes, all regions: at the peak, and what to run so that the spare may be lost",
        title_justify="left",
    )
    for name in ("kind", "CPU-ms a request", "cores in use, mean", "peak", "pods", "a core in use",
                 "GB a pod"):  # fmt: skip
        table.add_column(name, justify="left" if name == "kind" else "right")
    for each in plan.pods:
        table.add_row(
            each.kind, f"{each.cpu_ms:.2f}", f"{each.cores_mean:,.1f}", f"{each.cores_peak:,.1f}",
            f"{each.pods:,}", f"{each.in_use:.0%}", f"{each.memory / 1e9:.2f}",
        )  # fmt: skip
    table.add_row(
        "together", f"{sum(each.cpu_ms for each in plan.pods):.2f}",
        f"{sum(each.cores_mean for each in plan.pods):,.1f}", f"{plan.cores_peak:,.1f}",
        f"{plan.pod_count:,}", "", "",
    )  # fmt: skip
    return table


def _traffic(plan: Plan) -> Table:
    table = Table(title="Egress to devices", title_justify="left")
    for name in ("part", "Gbit/s, mean", "peak", "TB a month"):
        table.add_column(name, justify="left" if name == "part" else "right")
    peak = plan.demand.peak_to_mean
    for part, rate in plan.egress.parts.items():
        gbit = rate * 8 / 1e9
        table.add_row(
            part, f"{gbit:,.3f}", f"{gbit * peak:,.3f}", f"{plan.egress.month_tb(part):,.1f}"
        )
    table.add_row(
        "together", f"{plan.egress.gbit():,.3f}", f"{plan.egress.gbit(peak=True):,.3f}",
        f"{plan.egress.month_tb():,.1f}",
    )  # fmt: skip
    return table


def _rest(plan: Plan) -> list[str]:
    demand, redis, releases = plan.demand, plan.redis, plan.releases
    internal = plan.internal * demand.peak_to_mean * 8 / 1e9
    most = "any number of" if redis.most_devices is None else f"{redis.most_devices:,.0f}"
    return [
        f"[bold]bytes_per_network[/]: {plan.bytes_per_network:,.0f}, with bundles and without "
        "headers (the rule forward_ofa:plan:bytes_per_network, docs/monitoring.md).",
        f"[bold]Between services[/]: {internal:,.2f} Gbit/s at the peak, of which "
        f"{plan.crossing:.0%} from zone to zone if calls are spread over zones.",
        f"[bold]Redis[/]: {redis.sessions:,.0f} sessions of {redis.session_bytes:,.0f} bytes "
        f"at the peak, {redis.memory / 1e9:,.2f} GB; {redis.commands:,.0f} commands/s, "
        f"{redis.cores:.2f} cores; {redis.nodes} master(s), each with a replica. One is enough for "
        f"{most} devices.",
        f"[bold]A version[/]: {releases.bundle / 1e6:,.2f} MB to a device, "
        f"{releases.downloads:,.1f} downloads/s; pods read {releases.pulled / 1e9:,.2f} GB of the "
        f"registry, {releases.pull_gbit:,.2f} Gbit/s if all do within a minute, and poll it "
        f"{releases.polls:,.0f} times a second; training "
        f"{releases.training_core_hours:,.0f} core-hours, {releases.training_cores:,.2f} cores on "
        "average.",
    ]


def _ways(ways: list[Way]) -> Table:
    table = Table(title="The same devices, served in other ways", title_justify="left")
    for name in ("way", "calls/s at the peak", "cores in use", "Gbit/s", "TB a month", "offline"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for way in ways:
        table.add_row(
            f"{way.name}: {way.about}", f"{way.calls:,.0f}", f"{way.cores:,.1f}",
            f"{way.gbit:,.2f}", f"{way.month_tb:,.0f}", "yes" if way.offline else "no",
        )  # fmt: skip
    return table
