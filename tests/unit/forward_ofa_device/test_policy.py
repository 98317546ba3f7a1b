from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.errors import CloudError, CorruptFile, ImpossibleBudget
from forward_ofa_device.policy import (
    LONGEST_WAIT,
    Budget,
    RefreshPolicy,
    RetrySchedule,
    cosine_distance,
)
from forward_ofa_device.store import StateStore
from forward_ofa_device.wire import Cost, Receipt
from tests.support.device_cloud import Version
from tests.unit.forward_ofa_device.conftest import Clock

AWAY = CloudError("away", reason="UNREACHABLE")


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    store = StateStore(tmp_path, sync=False)
    yield store
    store.close()


def schedule(store: StateStore, clock: Clock, seed: int = 0, **policy: float) -> RetrySchedule:
    return RetrySchedule(RefreshPolicy(**policy), store, clock, random.Random(seed))


def test_backoff_doubles_with_full_jitter(store: StateStore, clock: Clock) -> None:
    policy = {"backoff_first": 1.0, "backoff_max": 8.0}
    waits: list[list[float]] = [[] for _ in range(6)]
    for seed in range(200):
        (store.folder / "retry.json").unlink(missing_ok=True)
        retry = schedule(store, clock, seed, **policy)
        for number in range(6):
            retry.failed(AWAY)
            waits[number].append(retry.wait())
    for number, most in enumerate((1, 2, 4, 8, 8, 8)):
        assert max(waits[number]) <= most
        assert max(waits[number]) > 0.9 * most and min(waits[number]) < 0.1 * most


def test_success_ends_the_backoff(store: StateStore, clock: Clock) -> None:
    retry = schedule(store, clock, backoff_first=64.0)
    retry.failed(AWAY)
    assert retry.wait() > 0
    retry.succeeded()
    assert retry.wait() == 0
    assert schedule(store, clock).wait() == 0


def test_the_clouds_window_is_kept(store: StateStore, clock: Clock) -> None:
    refused = CloudError("full", reason="OVERLOADED", retry_ms=(2000, 6000))
    waits = []
    for seed in range(200):
        retry = schedule(store, clock, seed)
        retry.failed(refused)
        waits.append(retry.wait())
    assert 2 <= min(waits) < 2.3 and 5.7 < max(waits) <= 6
    assert schedule(store, clock).wait() == pytest.approx(waits[-1])


def test_a_refusal_that_will_not_change_waits_longest(store: StateStore, clock: Clock) -> None:
    retry = schedule(store, clock, backoff_max=100.0)
    retry.failed(CloudError("no", reason="BAD_INTEREST"))
    assert 50 <= retry.wait() <= 100
    retry = schedule(store, clock, backoff_max=100.0, backoff_first=1e-9)
    retry.succeeded()
    retry.failed(CorruptFile("x"))
    assert retry.wait() < 1e-6


def test_no_window_and_no_clock_keeps_a_device_away_for_good(
    store: StateStore, clock: Clock
) -> None:
    retry = schedule(store, clock)
    retry.failed(CloudError("x", reason="X", retry_ms=(10**9, 10**9)))
    assert retry.wait() == LONGEST_WAIT
    clock.now -= 10_000
    assert retry.wait() == 0, "the clock was set back"


def receipt(**changes: object) -> Receipt:
    fields = {
        "session_id": "session-1",
        "received_at": 1000.0,
        "welcome_at": 1000.0,
        "ttl_seconds": 600,
        "current_version": "v1",
        "interest": np.zeros(2, np.float32),
        "cost": Cost(),
    }
    return Receipt(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "session", "shift", "now", "reason"),
    [
        ({}, "session-1", 0.0, 1100, "up to date"),
        ({}, "session-2", 0.0, 1001, "new session"),
        ({}, "session-1", 0.2, 1029, "too soon"),
        ({}, "session-1", 0.2, 1030, "interest shift"),
        ({}, "session-1", 0.15, 1030, "up to date"),
        ({"welcome_at": 1050.0}, "session-1", 0.2, 1049, "too soon"),
        ({"welcome_at": 1050.0}, "session-2", 0.2, 1049, "new session"),
        ({}, "session-1", 0.0, 1600, "expired"),
        ({"ttl_seconds": 0}, "session-1", 0.0, 1999, "up to date"),
        ({"ttl_seconds": 0}, "session-1", 0.0, 2000, "expired"),
        ({"ttl_seconds": 9999}, "session-1", 0.0, 2000, "expired"),
        ({}, "session-1", 0.0, 999, "expired"),
        ({"current_version": "v2"}, "session-1", 0.0, 1010, "too soon"),
        ({"current_version": "v2"}, "session-1", 0.0, 1030, "new version"),
        ({"current_version": ""}, "session-1", 0.0, 1030, "up to date"),
    ],
)
def test_reasons(changes: dict, session: str, shift: float, now: float, reason: str) -> None:
    policy = RefreshPolicy(shift_threshold=0.15, min_interval=30, max_age=1000)
    assert policy.reason(receipt(**changes), "v1", session, shift, now) == reason


@pytest.mark.parametrize(
    "bad",
    [
        {"shift_threshold": -0.1},
        {"shift_threshold": 3},
        {"min_interval": -1},
        {"backoff_first": 0},
        {"backoff_first": 9, "backoff_max": 8},
    ],
)
def test_policies_that_make_no_sense(bad: dict) -> None:
    with pytest.raises(ValueError):
        RefreshPolicy(**bad)


def test_cosine_distance() -> None:
    x, y = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    assert cosine_distance(x, 3 * x) == 0 and cosine_distance(x, -x) == 2
    assert cosine_distance(x, y) == 1
    assert cosine_distance(0 * x, x) == 1 and cosine_distance(0 * x, 0 * x) == 0


@pytest.mark.parametrize("blocks", [4, 12])
@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_a_budget_in_bytes_is_exact(blocks: int, encoding: str) -> None:
    version = Version("v1", backbone="nextitnet", blocks=blocks)
    bundle = read_bundle(version.bundle)
    for kept in range(1, blocks + 1):
        paths = [(True,) * kept + (False,) * (blocks - kept)]
        paths.append(paths[0][::-1])
        most = max(version.size(path, encoding) for path in paths)
        assert Budget(max_artefact_bytes=most).fit(bundle, (encoding,)) == (
            (encoding,),
            None if kept == blocks else kept,
        )
        if kept == 1:
            with pytest.raises(ImpossibleBudget, match=encoding):
                Budget(max_artefact_bytes=most - 1).fit(bundle, (encoding,))
        else:
            assert Budget(max_artefact_bytes=most - 1).fit(bundle, (encoding,))[1] == kept - 1


def test_both_limits_hold() -> None:
    version = Version("v1")
    bundle = read_bundle(version.bundle)
    backbone = bundle.backbone
    two = (backbone.fixed_flops() + backbone.block_flops() * 2).true
    three = version.size((False, True, True, True), "float16")
    assert Budget(three, two).fit(bundle, ("float16",))[1] == 2
    assert Budget(three, two - 1).fit(bundle, ("float16",))[1] == 1
    assert Budget().fit(bundle, ("float16", "int8")) == (("float16", "int8"), None)
