"""The same devices served in other ways, by the same measured costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from forward_ofa_cli.capacity.costs import LAYOUTS, Costs
from forward_ofa_cli.capacity.demand import DAY, Demand
from forward_ofa_cli.capacity.planning import (
    MONTH_DAYS,
    Plan,
    make_plan,
    mean_request,
    search_extra_ms,
)
from forward_ofa_cli.capacity.sizes import HANDSHAKE_BYTES, Shape, on_the_wire

_ANSWER_ITEMS = 10


@dataclass(frozen=True)
class Way:
    """calls: a second at the peak. cores: at the peak, without room. gbit: egress at the peak.
    offline: whether rankings need no cloud."""

    name: str
    about: str
    calls: float
    cores: float
    gbit: float
    month_tb: float
    offline: bool


def compare(plan: Plan, costs: Costs) -> list[Way]:
    """This plan first."""
    demand, shape = plan.demand, plan.shape
    ways = [_planned("a network for each interest", "this plan", plan)]
    if (demand.kept_blocks or shape.config.blocks) < shape.config.blocks:
        whole = make_plan(replace(demand, kept_blocks=None), shape, costs)
        ways.append(_planned("the same, every block", "parameters generated, no structure", whole))
    return [*ways, _dense(demand, shape, costs), _cloud(demand, shape, costs)]


def _planned(name: str, about: str, plan: Plan) -> Way:
    peak = plan.demand.requests_per_second * plan.demand.peak_to_mean
    return Way(
        name,
        about,
        peak,
        plan.cores_peak,
        plan.egress.gbit(peak=True),
        plan.egress.month_tb(),
        True,
    )


def _dense(demand: Demand, shape: Shape, costs: Costs) -> Way:
    """One network for all devices, fetched with the bundle of a version; candidates as before."""
    rate, updates = demand.requests_per_second, demand.devices * demand.updates_per_day / DAY
    request = mean_request(demand, shape)
    network = shape.artefact(shape.config.blocks, demand.encoding)
    bundle = shape.tensors + shape.popular + min(demand.more_shards, shape.shards - 1) * shape.shard
    front = LAYOUTS[demand.layout][0]
    kiloitem = costs.cpu[front].get("kiloitem", 0.0)
    down = on_the_wire(request.candidates, tls=demand.tls)
    cpu = _call_ms(shape, costs) + kiloitem * request.work.kiloitem + _tls_ms(demand, costs, down)
    files = costs.downloads.request * 3 + costs.downloads.megabyte * (bundle + network) / 1e6
    mean = (
        rate * down
        + updates * on_the_wire(bundle + network, tls=demand.tls)
        + _handshakes(demand, demand.sessions_per_second)
    )
    return _way(
        "one dense network for all",
        "sent once a version; every device has the same",
        demand, rate, (rate * cpu + updates * files) / 1e3, mean, offline=True,
    )  # fmt: skip


def _cloud(demand: Demand, shape: Shape, costs: Costs) -> Way:
    """Every ranking is a call: retrieval, the dense network's pass, ten items back."""
    rate = demand.sessions_per_second * demand.rankings_per_session
    # The forward pass grows with blocks and the width squared; measured with 6 of 64.
    flops = shape.config.blocks / 6 * (shape.config.hidden / 64) ** 2
    answer = _ANSWER_ITEMS * (shape.id_bytes + 6) + 100
    down = on_the_wire(answer, tls=demand.tls)
    per_session = replace(demand, requests_per_session=max(1.0, demand.rankings_per_session))
    network = costs.ranking.network * flops
    cpu = _call_ms(shape, costs) + network + _tls_ms(per_session, costs, down)
    mean = rate * down + _handshakes(demand, demand.sessions_per_second)
    return _way(
        "everything ranked on the cloud",
        "a call a ranking; histories leave the device",
        demand, rate, rate * cpu / 1e3, mean, offline=False,
    )  # fmt: skip


def _call_ms(shape: Shape, costs: Costs) -> float:
    """Of a call that retrieves in this catalogue, as ours does."""
    return costs.ranking.call + search_extra_ms(shape, costs)


def _tls_ms(demand: Demand, costs: Costs, down: float) -> float:
    if not demand.tls:
        return 0.0
    return costs.tls.megabyte * down / 1e6 + costs.tls.connection / demand.requests_per_session


def _handshakes(demand: Demand, sessions: float) -> float:
    return sessions * HANDSHAKE_BYTES if demand.tls else 0.0


def _way(
    name: str, about: str, demand: Demand, rate: float, cores: float, mean: float, *, offline: bool
) -> Way:
    peak = demand.peak_to_mean
    month = mean * DAY * MONTH_DAYS / 1e12
    return Way(name, about, rate * peak, cores * peak, mean * peak * 8 / 1e9, month, offline)
