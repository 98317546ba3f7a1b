"""From demand, sizes and measured costs to cores, pods, bytes and memory. Pure arithmetic.

Means are a day's; peaks are those of all regions together, each at its own busiest minutes, since
every region is built for its own peak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from forward_ofa_cli.capacity.costs import LAYOUTS, Costs, Work
from forward_ofa_cli.capacity.demand import DAY, Demand, DemandError
from forward_ofa_cli.capacity.sizes import HANDSHAKE_BYTES, Shape, on_the_wire, reply_rest

MONTH_DAYS = 365.25 / 12
REDIS_FILL = 0.75
"""Of a node's memory: the rest is for fragmentation, buffers and replication."""
_LEAST_PODS = 2
_REGISTRY_MINUTE = 60.0
_LABELS = 2


@dataclass(frozen=True)
class Request:
    """Means over the requests of a session: the first gets a whole list of candidates, later
    ones a part of it. Bytes are those of IP packets. up: to the cloud.
    flops: of an inference on the device, as the paper counts them and with attention."""

    work: Work
    artefact: float
    candidates: float
    rest: float
    up: float
    flops: tuple[float, float]

    @property
    def down(self) -> float:
        """Bytes to the device, headers of all layers included."""
        return self.artefact + self.candidates + self.rest


@dataclass(frozen=True)
class Pods:
    """One kind of process. cpu_ms: of a request; what TLS and downloads add is in cores alone.
    cores: used at the peak. pods: in all regions, with room for utilisation and what may be
    lost. memory: bytes of a pod. spare: share of the cores in use when all is well."""

    kind: str
    cpu_ms: float
    cores_mean: float
    cores_peak: float
    pods: int
    memory: float
    in_use: float


@dataclass(frozen=True)
class Egress:
    """Bytes a second, means of a day; `peak` times as much at the peak."""

    parts: Mapping[str, float]
    peak_to_mean: float

    @property
    def mean(self) -> float:
        return sum(self.parts.values())

    def gbit(self, *, peak: bool = False) -> float:
        """Gbit/s."""
        return self.mean * (self.peak_to_mean if peak else 1.0) * 8 / 1e9

    def month_tb(self, part: str | None = None) -> float:
        """10^12 bytes a month."""
        rate = self.mean if part is None else self.parts[part]
        return rate * DAY * MONTH_DAYS / 1e12


@dataclass(frozen=True)
class Redis:
    """sessions: alive at the peak. memory: bytes of them, once. commands: a second at the peak.
    cores: at the peak; one node has one. nodes: masters, each with a replica. most_devices: for
    which one node is enough; None: any number of them."""

    sessions: float
    session_bytes: float
    memory: float
    commands: float
    cores: float
    nodes: int
    most_devices: float | None


@dataclass(frozen=True)
class Releases:
    """A version's way to devices and pods. downloads: devices a second, mean. bundle: bytes of one
    device. pulled: bytes that all pods read of a version. pull_gbit: if they do in one minute.
    polls: reads of labels a second, each process reads each once a second. training_cores: busy
    on average."""

    downloads: float
    bundle: float
    pulled: float
    pull_gbit: float
    polls: float
    training_core_hours: float
    training_cores: float


@dataclass(frozen=True)
class Plan:
    """All of it. ingress, internal: bytes a second, mean; crossing: share of `internal` that goes
    from zone to zone."""

    demand: Demand
    shape: Shape
    request: Request
    pods: tuple[Pods, ...]
    egress: Egress
    ingress: float
    internal: float
    crossing: float
    redis: Redis
    releases: Releases

    @property
    def bytes_per_network(self) -> float:
        """Networks, candidates and bundles, without headers, for each network: what the series
        forward_ofa:bytes_per_network:rate1h counts."""
        bundles = self.releases.downloads * self.releases.bundle
        rate = self.demand.requests_per_second
        return self.request.artefact + self.request.candidates + (bundles / rate if rate else 0.0)

    @property
    def cores_peak(self) -> float:
        return sum(each.cores_peak for each in self.pods)

    @property
    def pod_count(self) -> int:
        return sum(each.pods for each in self.pods)

    @property
    def cores_rented(self) -> int:
        return self.pod_count * self.demand.processes


def make_plan(demand: Demand, shape: Shape, costs: Costs) -> Plan:
    """Raises DemandError if the demand does not fit the version."""
    if demand.kept_blocks is not None and demand.kept_blocks > shape.config.blocks:
        raise DemandError(
            f"--kept-blocks is {demand.kept_blocks:g}: the network has {shape.config.blocks} blocks"
        )
    if demand.candidates > shape.items:
        raise DemandError(
            f"--candidates is {demand.candidates}: the catalogue has {shape.items} items"
        )
    request = mean_request(demand, shape)
    bundle = _bundle(demand, shape)
    pods = tuple(
        _pods(place, kind, demand, shape, costs, request, bundle)
        for place, kind in enumerate(LAYOUTS[demand.layout])
    )
    releases = _releases(demand, shape, costs, bundle, pods)
    hops = len(pods) - 1
    return Plan(
        demand=demand,
        shape=shape,
        request=request,
        pods=pods,
        egress=_egress(demand, request, releases),
        ingress=demand.requests_per_second * request.up,
        internal=hops
        * demand.requests_per_second
        * on_the_wire(_artefact(demand, shape), tls=True),
        crossing=(demand.zones - 1) / demand.zones,
        redis=_redis(demand, shape, costs),
        releases=releases,
    )


def kept_blocks(demand: Demand, shape: Shape) -> float:
    """All, if nothing was said."""
    return float(shape.config.blocks if demand.kept_blocks is None else demand.kept_blocks)


def _artefact(demand: Demand, shape: Shape) -> float:
    return shape.artefact(kept_blocks(demand, shape), demand.encoding)


def mean_request(demand: Demand, shape: Shape) -> Request:
    """What one call of RequestNetwork asks for and sends, on average over a session."""
    from forward_ofa_device.backbones import build

    kept = kept_blocks(demand, shape)
    values = kept * shape.layout.size / 1e6
    later = 1 - 1 / demand.requests_per_session
    new = round(demand.new_items * demand.candidates)
    lists = [shape.candidates(demand.candidates, n, demand.encoding)
             for n in (demand.candidates, new)]  # fmt: skip
    sent = demand.candidates * (1 - later) + new * later
    candidates = lists[0] * (1 - later) + lists[1] * later
    artefact = _artefact(demand, shape)
    whole = on_the_wire(artefact + candidates + reply_rest(), tls=demand.tls)
    backbone = build(shape.config)
    fixed, block = backbone.fixed_flops(), backbone.block_flops()
    return Request(
        work=Work(
            megabyte=artefact / 1e6,
            kiloitem=sent / 1000,
            megaproduct=values * (shape.config.hidden + 1),
            megaquantised=values if demand.encoding == "int8" else 0.0,
        ),
        artefact=artefact,
        candidates=candidates,
        rest=whole - artefact - candidates,
        up=on_the_wire(shape.request(demand.encoding), tls=demand.tls),
        flops=(fixed.paper + kept * block.paper, fixed.true + kept * block.true),
    )


def _bundle(demand: Demand, shape: Shape) -> float:
    """Bytes that a device fetches of a new version."""
    more = min(demand.more_shards, shape.shards - 1)
    return shape.tensors + shape.popular + more * shape.shard


def search_extra_ms(shape: Shape, costs: Costs) -> float:
    """CPU milliseconds that a search of this catalogue takes beyond that of the measured one. In
    front of each way to serve, as each retrieves candidates."""
    if shape.items > 100_000:
        search = costs.retrieval.approximate
    else:
        search = costs.retrieval.exact * shape.items * shape.config.hidden / 1e6
    measured = costs.retrieval.exact * costs.retrieval.items * 64 / 1e6
    return max(0.0, search - measured)


def front_extra_ms(demand: Demand, shape: Shape, costs: Costs) -> float:
    """CPU milliseconds of a request that the process in front has beyond the measured case: a
    larger catalogue's search, encryption and the handshake's share."""
    extra = search_extra_ms(shape, costs)
    if demand.tls:
        request = mean_request(demand, shape)
        extra += costs.tls.megabyte * request.down / 1e6
        extra += costs.tls.connection / demand.requests_per_session
    return extra


def _pods(
    place: int, kind: str, demand: Demand, shape: Shape, costs: Costs, request: Request,
    bundle: float,
) -> Pods:  # fmt: skip
    cpu = costs.request_ms(kind, request.work)
    if place == 0:
        cpu += front_extra_ms(demand, shape, costs)
    mean = demand.requests_per_second * cpu / 1e3
    if place == 0:
        files = 2 + min(demand.more_shards, shape.shards - 1)
        download = costs.downloads.request * files + costs.downloads.megabyte * bundle / 1e6
        mean += demand.devices * demand.updates_per_day / DAY * download / 1e3
    peak = mean * demand.peak_to_mean
    count = pods_needed(peak, demand)
    memory = costs.memory[kind]
    return Pods(
        kind=kind,
        cpu_ms=cpu,
        cores_mean=mean,
        cores_peak=peak,
        pods=count,
        memory=demand.processes * (memory.process + demand.versions * shape.items * memory.item)
        + demand.versions * shape.weights * memory.weight,
        in_use=peak / (count * demand.processes),
    )


def pods_needed(cores: float, demand: Demand) -> int:
    """Pods of all regions for so many busy cores of all regions."""
    each = cores / demand.regions / (demand.utilisation * demand.processes)
    if demand.spare == "region":
        each *= demand.regions / (demand.regions - 1)
    if demand.spare == "zone":
        # The zones that are left have to carry all of it.
        here = demand.zones * math.ceil(each / (demand.zones - 1))
    else:
        here = math.ceil(each)
    return demand.regions * max(_LEAST_PODS, here)


def _egress(demand: Demand, request: Request, releases: Releases) -> Egress:
    rate, sessions = demand.requests_per_second, demand.sessions_per_second
    return Egress(
        {
            "networks": rate * request.artefact,
            "candidates": rate * request.candidates,
            "headers": rate * request.rest + (sessions * HANDSHAKE_BYTES if demand.tls else 0.0),
            "bundles": releases.downloads * on_the_wire(releases.bundle, tls=demand.tls),
        },
        demand.peak_to_mean,
    )


def _redis(demand: Demand, shape: Shape, costs: Costs) -> Redis:
    session = shape.session(demand.candidates) + costs.redis.session_overhead
    peak = demand.peak_to_mean
    alive = demand.sessions_per_second * peak * (demand.session_minutes * 60 + demand.session_ttl)
    memory = alive * session
    requests = demand.requests_per_second * peak
    # The first request of a session only writes, later ones read and write.
    commands = requests * (2 - 1 / demand.requests_per_session)
    cores = requests * costs.cpu["redis"]["request"] / 1e3
    loads = (memory / (demand.redis_gb * 1e9 * REDIS_FILL), cores / demand.utilisation)
    # A session's store is its region's.
    nodes = demand.regions * max(1, math.ceil(max(loads) / demand.regions))
    return Redis(
        sessions=alive,
        session_bytes=session,
        memory=memory,
        commands=commands,
        cores=cores,
        nodes=nodes,
        most_devices=_most(demand.devices, max(loads)),
    )


def _most(devices: int, nodes: float) -> float | None:
    # So little load that the quotient is no number: as good as none.
    most = devices / nodes if nodes else math.inf
    return most if math.isfinite(most) else None


def _releases(
    demand: Demand, shape: Shape, costs: Costs, bundle: float, pods: tuple[Pods, ...]
) -> Releases:
    needed = {
        "controller": shape.whole,  # it verifies every file, since devices move to it
        "whole": shape.whole,
        "mapper": shape.mapper,
        "generator": shape.mapper,
        "assembler": 0,
    }
    pulled = sum(each.pods * needed[each.kind] for each in pods)
    example = costs.trainer.nextitnet if shape.config.name == "nextitnet" else costs.trainer.sasrec
    # Generated parameters and their products grow with the width squared.
    example *= (shape.config.hidden / costs.trainer.hidden) ** 2
    hours = demand.examples * demand.epochs * example / 3.6e6
    return Releases(
        downloads=demand.devices * demand.updates_per_day / DAY,
        bundle=bundle,
        pulled=float(pulled),
        pull_gbit=pulled * 8 / 1e9 / _REGISTRY_MINUTE,
        polls=float(sum(each.pods for each in pods) * demand.processes * _LABELS),
        training_core_hours=hours,
        training_cores=hours * demand.updates_per_day / 24,
    )
