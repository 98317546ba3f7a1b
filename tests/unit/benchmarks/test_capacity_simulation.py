"""The simulation against queueing theory, where that has an answer."""

from __future__ import annotations

import math

import pytest

from benchmarks.capacity.simulation import (
    Stage,
    System,
    simulate_closed,
    simulate_open,
)
from forward_ofa_cli.capacity.costs import Batching

SERVICE_MS = 4.0
REQUESTS = 20_000


def one_server(variation: float) -> System:
    # Nobody else wants the core, so a quantum without end changes nothing but the speed.
    return System(
        (Stage("server", SERVICE_MS, (0,)),), limit=10**9, variation=variation, quantum=math.inf
    )


@pytest.mark.parametrize("load", [0.3, 0.75])
@pytest.mark.parametrize(("variation", "queue"), [(1.0, "M/M/1"), (0.0, "M/D/1"), (0.5, "M/G/1")])
def test_mean_time_is_that_of_pollaczek_and_khinchine(
    load: float, variation: float, queue: str
) -> None:
    outcome = simulate_open(one_server(variation), load / SERVICE_MS * 1e3, REQUESTS, seed=3)
    waiting = load / (1 - load) * (1 + variation**2) / 2 * SERVICE_MS
    assert outcome.mean == pytest.approx(SERVICE_MS + waiting, rel=0.1), queue
    assert outcome.busy["server"] == pytest.approx(load, rel=0.05)


def test_p99_of_m_m_1() -> None:
    outcome = simulate_open(one_server(1.0), 0.6 / SERVICE_MS * 1e3, REQUESTS, seed=1)
    assert outcome.p99 == pytest.approx(math.log(100) * SERVICE_MS / 0.4, rel=0.15)


def test_a_tandem_of_exponential_servers_is_two_m_m_1() -> None:
    """Burke's theorem, as far as the hop's two halves allow: the second server alone is M/M/1."""
    stages = (Stage("front", 1e-6, (0,)), Stage("back", SERVICE_MS, (1,)))
    system = System(stages, limit=10**9, variation=1.0, quantum=math.inf)
    outcome = simulate_open(system, 0.7 / SERVICE_MS * 1e3, REQUESTS, seed=2)
    assert outcome.mean == pytest.approx(SERVICE_MS / 0.3, rel=0.12)


def test_a_closed_loop_is_bound_by_its_slowest_server() -> None:
    stages = (Stage("front", 2.0, (0,)), Stage("back", 5.0, (1,)))
    outcome = simulate_closed(System(stages, quantum=math.inf), clients=8, seconds=20)
    assert outcome.rps == pytest.approx(1000 / 5.0, rel=0.02)
    assert outcome.busy["back"] == pytest.approx(1.0, abs=0.02)
    # Little's law: clients = rate x time.
    assert outcome.rps * outcome.mean / 1e3 == pytest.approx(8, rel=0.03)


def test_processes_that_share_a_core_share_its_time() -> None:
    stages = (Stage("front", 2.0, (0,)), Stage("back", 5.0, (0,)))
    outcome = simulate_closed(System(stages), clients=8, seconds=20)
    assert outcome.rps == pytest.approx(1000 / 7.0, rel=0.02)


def test_batches_grow_with_the_load_and_carry_more_of_it() -> None:
    stages = (Stage("front", 0.01, (0,)), Stage("mapper", 0.0, (1,)))
    system = System(stages, Batching(start=4.0, each=1.0), quantum=math.inf)
    light, heavy = (simulate_open(system, rate, 6_000) for rate in (20.0, 600.0))
    assert light.batch < 1.1
    assert heavy.batch > 4
    assert heavy.rps == pytest.approx(600, rel=0.05)


def test_what_is_beyond_the_limit_is_refused() -> None:
    system = System((Stage("server", 10.0, (0,)),), limit=4, quantum=math.inf)
    outcome = simulate_open(system, 200.0, 6_000)
    assert outcome.rps == pytest.approx(100, rel=0.03)
    assert outcome.refused == pytest.approx(0.5, abs=0.03)
    assert outcome.p99 <= 41


def test_the_same_seed_gives_the_same_day() -> None:
    system = one_server(1.0)
    first, second, other = (simulate_open(system, 100.0, 500, seed=n) for n in (5, 5, 6))
    assert first == second
    assert first != other
