"""The arithmetic of `forward-ofa plan`: units, rounding, what grows with what."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa_cli.capacity.comparison import compare
from forward_ofa_cli.capacity.costs import (
    FEATURES,
    LAYOUTS,
    CostsError,
    read_costs,
)
from forward_ofa_cli.capacity.demand import RANGES, Demand, DemandError
from forward_ofa_cli.capacity.planning import (
    Plan,
    make_plan,
    mean_request,
    pods_needed,
)
from forward_ofa_cli.capacity.sizes import Shape, on_the_wire, reply_rest
from forward_ofa_device.artefact import ENCODINGS, encode_block, write_artefact
from forward_ofa_device.backbones.contract import BackboneConfig

COSTS = read_costs()
SHAPE = Shape.of(BackboneConfig(), 100_000, 10)
SMALL = Shape.of(BackboneConfig(blocks=3, hidden=8, heads=2), 500, 6)


def planned(**inputs: object) -> Plan:
    return make_plan(Demand(**{"devices": 1_000_000, **inputs}), SHAPE, COSTS)


demands = st.builds(
    Demand,
    devices=st.integers(1, 10**9),
    sessions_per_day=st.floats(0.01, 50),
    requests_per_session=st.floats(1, 10),
    peak_to_mean=st.floats(1, 6),
    encoding=st.sampled_from(ENCODINGS),
    kept_blocks=st.one_of(st.none(), st.floats(1, 6)),
    new_items=st.floats(0, 1),
    updates_per_day=st.floats(0, 3),
    layout=st.sampled_from(sorted(LAYOUTS)),
    tls=st.booleans(),
    utilisation=st.floats(0.1, 1),
    processes=st.integers(1, 8),
    zones=st.integers(2, 5),
    regions=st.integers(2, 6),
    spare=st.sampled_from(["none", "zone", "region"]),
)


def figures(plan: Plan) -> list[float]:
    redis, releases = plan.redis, plan.releases
    return [
        plan.cores_peak, plan.pod_count, *plan.egress.parts.values(), plan.ingress, plan.internal,
        redis.sessions, redis.memory, redis.commands, redis.cores, redis.nodes,
        releases.downloads, releases.pulled, releases.training_cores,
    ]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(demands, st.integers(1, 10**9))
def test_nothing_is_negative_and_nothing_shrinks_with_more_devices(
    demand: Demand, more: int
) -> None:
    few = make_plan(demand, SHAPE, COSTS)
    many = make_plan(replace(demand, devices=demand.devices + more), SHAPE, COSTS)
    for before, after in zip(figures(few), figures(many), strict=True):
        assert 0 <= before <= after * (1 + 1e-9)
        assert math.isfinite(after)


@settings(deadline=None, max_examples=60)
@given(demands)
def test_pods_carry_the_peak_when_the_spare_is_lost(demand: Demand) -> None:
    for pods in make_plan(demand, SHAPE, COSTS).pods:
        lost = {
            "none": 0.0,
            "zone": 1 / demand.zones,
            "region": 1 / demand.regions,
        }[demand.spare]
        left = pods.pods * (1 - lost) * demand.processes
        assert pods.cores_peak <= left * demand.utilisation * (1 + 1e-9)
        assert pods.pods % demand.regions == 0
        if demand.spare == "zone":
            # As many in each zone, or one lost zone could be more than its share.
            assert pods.pods % (demand.regions * demand.zones) == 0


@pytest.mark.parametrize(
    ("cores", "inputs", "pods"),
    [
        (6.0, {"spare": "none", "utilisation": 0.6}, 10),
        (6.1, {"spare": "none", "utilisation": 0.6}, 11),
        (6.0, {"spare": "zone", "zones": 3, "utilisation": 0.6}, 15),
        (6.0, {"spare": "zone", "zones": 2, "utilisation": 0.6}, 20),
        (6.0, {"spare": "region", "regions": 2, "utilisation": 0.6}, 20),
        (6.0, {"spare": "none", "utilisation": 0.6, "processes": 4}, 3),
        (0.0, {"spare": "none"}, 2),
        (0.01, {"spare": "zone", "zones": 3}, 3),
    ],
)
def test_pods_are_rounded_up_and_never_one(
    cores: float, inputs: dict[str, object], pods: int
) -> None:
    assert pods_needed(cores, Demand(1, **inputs)) == pods


def test_rates_and_bytes_are_in_the_units_that_they_say() -> None:
    plan = planned(devices=86_400, sessions_per_day=10, requests_per_session=2, tls=False,
                   updates_per_day=0, new_items=1, peak_to_mean=3)  # fmt: skip
    assert plan.demand.requests_per_second == 20
    assert plan.egress.mean == pytest.approx(20 * plan.request.down)
    assert plan.egress.gbit() == pytest.approx(20 * plan.request.down * 8 / 1e9)
    assert plan.egress.gbit(peak=True) == pytest.approx(3 * plan.egress.gbit())
    assert plan.egress.month_tb() == pytest.approx(20 * plan.request.down * 86_400 * 30.4375 / 1e12)
    parts = sum(plan.egress.month_tb(part) for part in plan.egress.parts)
    assert parts == pytest.approx(plan.egress.month_tb())
    front = plan.pods[0]
    assert front.cores_mean == pytest.approx(20 * front.cpu_ms / 1e3)
    assert front.cores_peak == pytest.approx(3 * front.cores_mean)
    # Little's law: 10 sessions a second, three times as many at the peak, 600 + 1,800 s each.
    assert plan.redis.sessions == pytest.approx(10 * 3 * 2400)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kept", [1, 3])
def test_the_artefact_has_the_bytes_of_a_real_one(encoding: str, kept: int) -> None:
    import numpy as np

    values = np.ones(SMALL.layout.size, np.float32)
    path = (True,) * kept + (False,) * (3 - kept)
    payload = encode_block(values, SMALL.layout, encoding)
    version = "20250131-120000-0a1b2c3d"
    real = write_artefact(version, "sasrec", path, encoding, SMALL.layout, [payload] * kept)
    assert SMALL.artefact(kept, encoding) == len(real)


def test_a_mean_of_kept_blocks_is_a_mixture() -> None:
    four, five = SHAPE.artefact(4, "float16"), SHAPE.artefact(5, "float16")
    assert SHAPE.artefact(4.25, "float16") == pytest.approx(0.75 * four + 0.25 * five)


def test_a_mean_of_kept_blocks_is_a_mixture_in_the_flops_too() -> None:
    four, half, five = (
        mean_request(Demand(1, kept_blocks=kept), SHAPE).flops for kept in (4, 4.5, 5)
    )
    assert four[0] < half[0] == (four[0] + five[0]) / 2
    assert four[1] < half[1] == (four[1] + five[1]) / 2


def test_a_message_on_the_wire_is_a_few_percent_longer() -> None:
    assert 1.03 < on_the_wire(278_000, tls=True) / 278_000 < 1.05
    assert on_the_wire(278_000, tls=False) < on_the_wire(278_000, tls=True)
    assert on_the_wire(10, tls=False) > 10 + 52
    assert 100 < reply_rest() < 300


def test_later_requests_of_a_session_send_fewer_candidates() -> None:
    once, often = (
        mean_request(Demand(1, requests_per_session=n, new_items=0.1), SHAPE) for n in (1, 4)
    )
    assert often.candidates < 0.5 * once.candidates
    assert often.artefact == once.artefact


def test_fewer_blocks_and_smaller_encodings_cost_less() -> None:
    plans = [planned(encoding=e) for e in ("float32", "float16")] + [planned(kept_blocks=3)]
    egress = [plan.egress.mean for plan in plans]
    assert egress == sorted(egress, reverse=True)
    assert planned(kept_blocks=3).cores_peak < planned().cores_peak


def test_redis_says_for_how_many_devices_one_is_enough() -> None:
    plan = planned()
    assert plan.redis.nodes == 1
    edge = int(plan.redis.most_devices)
    assert planned(devices=edge - 1).redis.nodes == 1
    assert planned(devices=int(edge * 1.01)).redis.nodes == 2


def test_the_comparison_says_what_speaks_against_us() -> None:
    demand = Demand(1_000_000, kept_blocks=3)
    ways = {way.name: way for way in compare(make_plan(demand, SHAPE, COSTS), COSTS)}
    ours = ways["a network for each interest"]
    assert ways["the same, every block"].gbit > ours.gbit
    dense = ways["one dense network for all"]
    assert dense.gbit < ours.gbit and dense.cores < ours.cores  # the price of being personal
    cloud = ways["everything ranked on the cloud"]
    assert cloud.calls == pytest.approx(10 * ours.calls)
    assert not cloud.offline and cloud.gbit < ours.gbit


def test_a_larger_catalogue_costs_every_way_the_same_search() -> None:
    """Nobody retrieves for nothing: what is added to our plan is added to the others."""
    added = []
    for items in (20_000, 100_000):
        # Nobody moves to a new version, so the files of the catalogue play no part.
        shape, demand = Shape.of(BackboneConfig(), items, 10), Demand(1_000_000, updates_per_day=0)
        ways = compare(make_plan(demand, shape, COSTS), COSTS)
        added.append([1e3 * way.cores / way.calls for way in ways])
    search = COSTS.retrieval.exact * 80_000 * 64 / 1e6
    assert search > 1
    for before, after in zip(*added, strict=True):
        assert after - before == pytest.approx(search, rel=0.01)


def test_without_load_one_redis_is_enough_for_any_number_of_devices() -> None:
    redis = planned(sessions_per_day=0).redis
    assert redis.nodes == 1 and redis.most_devices is None


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("edge", [0, 1])
def test_every_number_may_be_at_its_edge(name: str, edge: int) -> None:
    value = RANGES[name][edge]
    value = min(value, SHAPE.config.blocks) if name == "kept_blocks" else value
    value = int(value) if value >= 1 else value
    spare = "none" if (name, edge) in (("zones", 0), ("regions", 0)) else "zone"
    plan = planned(**{"spare": spare, name: value})
    assert all(math.isfinite(each) for each in figures(plan))
    assert all(math.isfinite(way.cores) for way in compare(plan, COSTS))


def test_all_numbers_at_their_worst_are_still_finite() -> None:
    low = ("utilisation", "redis_gb")
    worst = {name: RANGES[name][name not in low] for name in RANGES}
    worst = {name: int(value) if value >= 1 else value for name, value in worst.items()}
    plan = make_plan(Demand(**worst | {"kept_blocks": 6}), SHAPE, COSTS)
    assert all(math.isfinite(each) for each in figures(plan))


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"devices": 0}, "--devices is 0: use a number from 1 to 100,000,000,000"),
        ({"peak_to_mean": 0.5}, "--peak-to-mean is 0.5: use a number from 1 to 1,000"),
        ({"peak_to_mean": math.nan}, "--peak-to-mean is nan"),
        ({"sessions_per_day": -1}, "--sessions-per-day"),
        ({"sessions_per_day": math.inf}, "--sessions-per-day"),
        ({"sessions_per_day": 1e308, "requests_per_session": 1e308}, "--sessions-per-day is 1e"),
        ({"candidates": 10**12}, "--candidates is 1000000000000: use a number from 1 to 10,000"),
        ({"sessions_per_day": 5e-324}, "--sessions-per-day is 5e-324: use 0, or a number from"),
        ({"redis_gb": 1e-300}, "--redis-gb is 1e-300: use a number from 0.01"),
        ({"utilisation": 1.2}, "--utilisation is 1.2: use a number from 0.01 to 1"),
        ({"new_items": 2}, "--new-items"),
        ({"encoding": "zip"}, "--encoding is zip: use one of float32, float16, int8"),
        ({"layout": "two"}, "--layout is two: use one of split, joined, one"),
        ({"spare": "planet"}, "--spare"),
        ({"zones": 1}, "--spare zone needs --zones of at least 2"),
        ({"spare": "region"}, "--spare region needs --regions of at least 2"),
    ],
)
def test_an_input_without_sense_is_named(inputs: dict[str, object], text: str) -> None:
    with pytest.raises(DemandError, match=text.replace("(", r"\(")):
        Demand(**{"devices": 10, **inputs})


def test_more_blocks_or_candidates_than_there_are() -> None:
    with pytest.raises(DemandError, match="the network has 6 blocks"):
        planned(kept_blocks=7)
    with pytest.raises(DemandError, match="the catalogue has 500 items"):
        make_plan(Demand(10, candidates=501), SMALL, COSTS)


def test_the_packages_costs_are_whole() -> None:
    assert set(COSTS.cpu) == set(FEATURES)
    assert COSTS.origin["command"] == "python -m benchmarks.capacity"
    for kind in ("controller", "assembler", "mapper", "generator", "whole", "redis"):
        assert sum(COSTS.cpu[kind].values()) > 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.replace("[tls]", "[tsl]"), "tls.connection is missing"),
        (lambda t: t.replace("request = ", "request = -"), "must be a number from 0 to 1e.12"),
        (lambda t: t.replace("exact = ", "exact = 1" + "0" * 400 + " #"), "exact is too large"),
        (lambda t: t.replace("exact = ", "exact = 1" + "0" * 5000 + " #"), "is no TOML file"),
        (lambda t: t.replace("exact = ", "exact = 0x1" + "0" * 5000 + " #"), "exact is too large"),
        (lambda t: re.sub(r"= [0-9.]+", "= 0", t), "trainer.hidden is the width that"),
        (lambda t: "deep = " + "[" * 100_000 + "]" * 100_000, "is nested too deep"),
        (lambda t: t.replace("exact = ", "exact = nan #"), "retrieval.exact is nan"),
        (lambda t: t.replace("exact = ", "exact = true #"), "retrieval.exact is True"),
        (lambda t: t.replace("[redis]", "redis ="), "is no TOML file"),
    ],
)
def test_a_damaged_file_of_costs_is_refused_by_name(tmp_path, change, text) -> None:
    import forward_ofa_cli.capacity.costs as module

    own = Path(module.__file__).with_name("costs.toml").read_text()
    file = tmp_path / "costs.toml"
    file.write_text(change(own))
    with pytest.raises(CostsError, match=text):
        read_costs(file)
