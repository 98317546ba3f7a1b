"""Measuring costs, predicting with them, and comparing: real processes and a real Redis, small."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.capacity import extras
from benchmarks.capacity.chain import cpu_seconds, start_chain
from benchmarks.capacity.compare import small_case
from benchmarks.capacity.measure import Effort, as_toml, origin
from benchmarks.capacity.points import Question, fit_kinds, measure_points
from benchmarks.serving.loader import Loader
from benchmarks.serving.servers import Servers
from benchmarks.serving.version import make_version
from forward_ofa_cli.capacity.costs import FEATURES, Batching, read_costs
from tests.support.redis_server import RedisServer


@pytest.mark.slow
def test_costs_are_measured_and_predict_the_same_system(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    version = make_version(tmp_path)
    asked = [Question(kept=2), Question(kept=6), Question("int8", kept=4), Question(whole=True)]
    try:
        with Servers(tmp_path / "logs") as servers, Loader() as loader:
            chain = start_chain([servers], version, "split", redis)
            points = list(
                measure_points(chain, asked, loader, rounds=2, seconds=1.0, say=lambda _: None)
            )
            two, six, _, whole = points
            assert set(two.cpu) == {"controller", "assembler", "mapper", "redis"}
            assert all(value > 0 for point in points for value in point.cpu.values())
            # Three times the products and the bytes: the mapper must feel it.
            assert six.cpu["mapper"] > 1.2 * two.cpu["mapper"]
            assert whole.work.kiloitem == 0.2 and six.work.kiloitem == 0

            cpu, _ = fit_kinds([replace(p, cpu=_every_kind(p.cpu)) for p in points])
            whole_costs = replace(read_costs(), cpu=cpu, batching=Batching(0.0, six.cpu["mapper"]))
            rows = small_case(chain, loader, whole_costs, seconds=2.0, say=lambda _: None)
            # Prediction and measurement see the same machine a moment apart.
            for name in ("rps", "cpu_ms"):
                assert abs(rows[0].errors()[name]) < 0.5, (name, rows[0])

            memory = extras.measure_memory(chain, lambda: extras.publish_larger(version))
        # What a version adds: a row of 64 floats an item, and its id, in the controller alone.
        assert 250 < memory["controller"].item < 2_000
        assert memory["assembler"].item == 0 and memory["mapper"].weight == 4
        assert 30e6 < memory["assembler"].process < memory["mapper"].process < 1e9
    finally:
        redis.kill()
    file = tmp_path / "costs.toml"
    file.write_text(as_toml(replace(whole_costs, origin=origin(Effort()))))
    assert read_costs(file).cpu["mapper"] == pytest.approx(cpu["mapper"], abs=1e-3)


def _every_kind(cpu: dict[str, float]) -> dict[str, float]:
    """The other layouts' kinds are not started here."""
    return {kind: cpu.get(kind, 1.0) for kind in FEATURES}


def test_a_session_in_redis_has_the_bytes_that_are_planned(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        found, seen = extras.measure_redis(redis, 3_000)
    finally:
        redis.kill()
    # Dictionary entries, time to live, allocator classes; growing tables make it uneven.
    assert 60 < found.session_overhead < 260
    assert seen["50"] < seen["200"] < seen["800"]
    assert read_costs().redis.session_overhead == pytest.approx(found.session_overhead, abs=100)


def test_the_clock_of_another_process_is_its_cpu_time() -> None:
    import os

    before = cpu_seconds([os.getpid()])
    own = time.process_time()
    while time.process_time() < own + 0.05:
        pass
    assert cpu_seconds([os.getpid()]) - before == pytest.approx(0.05, abs=0.03)
