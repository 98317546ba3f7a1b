"""The public class against a real gRPC server on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device import (
    Budget,
    CloudError,
    CorruptFile,
    Device,
    DeviceError,
    ImpossibleBudget,
    NotReady,
    RefreshPolicy,
    StorageError,
    UnknownItem,
    WrongVersion,
)
from forward_ofa_device.artefact import read_artefact, unpack_path
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.engine import NetworkEngine
from tests.support.device_cloud import RunningCloud, Version, item
from tests.unit.forward_ofa_device.conftest import Clock

Open = Callable[..., Device]
HISTORY = tuple(item(n) for n in (3, 8, 21, 4, 17))
ELSEWHERE = tuple(item(n) for n in (29, 1, 12, 25, 6, 19, 2, 28))


def blob(state: Path, version: str, name: str) -> Path:
    (path,) = (state / "versions" / f"v-{version}").glob(f"{name}-*.blob")
    return path


# The happy path


def test_reranks_with_its_own_network(open_device: Open, cloud: RunningCloud) -> None:
    device = open_device()
    device.observe(*HISTORY)
    outcome = device.refresh()
    assert (outcome.requested, outcome.updated, outcome.reason) == (True, True, "no network")
    assert outcome.error is None and outcome.latency_ms is not None and outcome.latency_ms > 0

    ranking = device.rerank(top=None)
    (request,) = cloud.controller.log.networks
    version = cloud.controller.versions["v1"]
    path = unpack_path(request.path.bits, 4)
    h = np.frombuffer(request.interest.values, "<f4")
    network = read_artefact(version.artefact(path, h, "float16"), version.layout)
    window = version.embeddings[[int(i[1:]) for i in HISTORY]]
    engine = NetworkEngine(read_bundle(version.bundle))
    expected = engine.scores(network, window, version.embeddings, engine.offset(h))
    by_item = dict(zip(version.item_ids, expected, strict=True))
    assert [r.score for r in ranking] == sorted((r.score for r in ranking), reverse=True)
    assert all(abs(by_item[r.item_id] - r.score) < 1e-5 for r in ranking)
    retrieved = np.argsort(-(version.embeddings @ h), kind="stable")[:40]
    assert {r.item_id for r in ranking} == {item(n) for n in retrieved} - set(HISTORY)

    assert device.version == "v1" and device.path == path and device.kept_blocks == sum(path)
    assert device.last_cost is not None and device.last_cost.true_device_flops == device.flops
    assert device.staleness == 0.0
    assert device.rerank(top=3) == ranking[:3]


def test_item_ids_never_leave_the_device(open_device: Open, cloud: RunningCloud) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    sent = [m.SerializeToString() for m in (*cloud.controller.log.networks,)]
    sent += [m.SerializeToString() for m in cloud.controller.log.parts]
    assert sent and not any(i.encode() in message for i in HISTORY for message in sent)


def test_a_fresh_device_without_history_gets_a_network(open_device: Open) -> None:
    device = open_device()
    assert device.refresh().updated
    assert len(device.rerank(top=5)) == 5


def test_items_in_other_shards_are_fetched_and_unknown_ones_skipped(
    open_device: Open, cloud: RunningCloud
) -> None:
    device = open_device()
    device.observe(item(3), "never-published", item(40))
    device.refresh()
    assert device.knows(item(40)) and device.knows(item(44))
    assert not device.knows("never-published")
    assert device.history == (item(3), "never-published", item(40))
    shards = [r.shard for r in cloud.controller.log.parts if r.part == pb.BUNDLE_PART_ITEMS]
    # "never-published" sorts after all ids, so the last shard would hold it.
    assert sorted(shards) == [0, 1, 2]
    device.refresh()
    assert len(cloud.controller.log.parts) == 4, "nothing is fetched twice"


def test_popular_items_need_no_further_shard(open_device: Open, cloud: RunningCloud) -> None:
    device = open_device()
    device.observe(item(45), item(3), item(87))
    device.refresh()
    assert [r.shard for r in cloud.controller.log.parts] == [0, 0]
    assert [r.part for r in cloud.controller.log.parts] == [
        pb.BUNDLE_PART_TENSORS,
        pb.BUNDLE_PART_ITEMS,
    ]


def test_reranks_items_that_the_app_names(open_device: Open) -> None:
    device = open_device()
    device.observe(item(3))
    device.refresh()
    ranked = device.rerank(candidates=[item(6), item(3), item(9)])
    assert {r.item_id for r in ranked} == {item(6), item(9)}
    with_seen = device.rerank(candidates=[item(6), item(3)], include_seen=True)
    assert {r.item_id for r in with_seen} == {item(6), item(3)}
    with pytest.raises(UnknownItem, match="refresh"):
        device.rerank(candidates=["nowhere"])
    assert device.rerank(candidates=[]) == []


def test_named_candidates_are_fetched_with_the_next_refresh(
    open_device: Open, cloud: RunningCloud
) -> None:
    cloud.controller.candidates = 1
    device = open_device()
    device.refresh()
    with pytest.raises(UnknownItem):
        device.rerank(candidates=[item(70)])
    device.refresh()
    assert [r.item_id for r in device.rerank(candidates=[item(70)])] == [item(70)]


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
@pytest.mark.parametrize("backbone", ["sasrec", "nextitnet"])
def test_every_encoding_and_backbone(
    open_device: Open, cloud: RunningCloud, encoding: str, backbone: str
) -> None:
    cloud.controller.serve_only(Version("other", backbone=backbone))
    device = open_device(encodings=[encoding])
    device.observe(*HISTORY)
    device.refresh()
    assert len(device.rerank(top=10)) == 10
    (request,) = cloud.controller.log.networks
    path = unpack_path(request.path.bits, 4)
    size = cloud.controller.versions["other"].size(path, encoding)
    assert device.last_cost is not None and device.last_cost.artefact_bytes == size


# When it asks


def test_asks_at_session_start_at_a_shift_and_at_expiry_only(
    open_device: Open, cloud: RunningCloud, clock: Clock
) -> None:
    device = open_device(policy=RefreshPolicy(shift_threshold=0.05, min_interval=30))
    device.observe(*HISTORY)
    assert device.refresh().reason == "no network"
    assert device.refresh().reason == "up to date"
    device.observe(*ELSEWHERE)
    early = device.refresh()
    assert (early.reason, early.requested) == ("too soon", False)
    assert early.shift is not None and early.shift > 0.05
    clock.now += 31
    shifted = device.refresh()
    assert (shifted.reason, shifted.updated) == ("interest shift", True)
    before = device.session_id
    device.start_session()
    assert device.session_id != before
    assert device.refresh().reason == "new session"
    assert device.refresh(force=True).reason == "forced"
    clock.now += 3600
    assert device.refresh().reason == "expired"
    sessions = {request.session_id for request in cloud.controller.log.networks}
    assert len(sessions) == 2 and all(16 <= len(s) <= 24 for s in sessions)


def test_waits_as_long_as_the_cloud_wishes_unless_it_is_urgent(
    open_device: Open, cloud: RunningCloud, clock: Clock
) -> None:
    cloud.controller.retry_min_ms = 600_000
    device = open_device(policy=RefreshPolicy(shift_threshold=0, min_interval=0))
    device.observe(*HISTORY)
    device.refresh()
    device.observe(*ELSEWHERE)
    clock.now += 599
    assert device.refresh().reason == "too soon"
    clock.now += 2
    assert device.refresh().reason == "interest shift"
    device.start_session()
    assert device.refresh().updated


def test_held_candidates_are_not_sent_again(open_device: Open, cloud: RunningCloud) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    first = device.rerank(top=None)
    responses = []
    cloud.controller.faults.tamper = responses.append
    device.refresh(force=True)
    assert responses[0].candidates.not_modified
    assert device.rerank(top=None) == first


# Offline, refused, restarted


def test_works_offline_from_disk_in_a_new_process(
    open_device: Open, cloud: RunningCloud, clock: Clock
) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    ranking, session = device.rerank(top=None), device.session_id
    device.close()
    cloud.stop()

    again = open_device()
    assert again.rerank(top=None) == ranking
    assert again.session_id == session, "a restart of the app is no new session"
    again.observe(item(9))
    assert item(9) not in {r.item_id for r in again.rerank(top=None)}
    outcome = again.refresh(force=True)
    assert isinstance(outcome.error, CloudError) and outcome.error.reason == "UNREACHABLE"
    assert not outcome.updated and outcome.requested
    again.close()
    clock.now += 1801
    assert open_device().session_id != session


def test_survives_a_kill_of_the_server_and_recovers(
    open_device: Open, cloud: RunningCloud, clock: Clock
) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    cloud.stop()
    device.start_session()
    outcome = device.refresh()
    assert isinstance(outcome.error, CloudError) and outcome.error.reason == "UNREACHABLE"
    assert len(device.rerank()) == 10
    cloud.start()
    deadline = time.monotonic() + 10
    while not outcome.updated:
        assert time.monotonic() < deadline, outcome
        clock.now += 200
        outcome = device.refresh()
        time.sleep(0.05)
    assert outcome.reason == "new session"


def test_without_cloud_or_network_it_says_so(open_device: Open, cloud: RunningCloud) -> None:
    cloud.stop()
    device = open_device()
    with pytest.raises(NotReady, match="refresh"):
        device.rerank()
    with pytest.raises(NotReady) as caught:
        device.refresh()
    assert isinstance(caught.value.__cause__, CloudError)
    assert device.version is None and device.staleness is None and device.last_cost is None


def test_keeps_the_retry_window_even_over_a_restart(
    open_device: Open, cloud: RunningCloud, clock: Clock
) -> None:
    device = open_device()
    device.refresh()
    detail = types.ErrorDetail(reason="OVERLOADED", action="wait")
    detail.retry.min_ms, detail.retry.max_ms = 10_000, 20_000
    cloud.controller.faults.refuse = (grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
    outcome = device.refresh(force=True)
    assert isinstance(outcome.error, CloudError)
    assert outcome.error.reason == "OVERLOADED" and outcome.error.retry_ms == (10_000, 20_000)
    assert 10 <= outcome.retry_in <= 20
    asked = len(cloud.controller.log.networks)
    device.close()

    device = open_device()
    clock.now += 9.9
    waiting = device.refresh(force=True)
    assert (waiting.reason, waiting.requested) == ("retry window", False)
    assert len(cloud.controller.log.networks) == asked
    cloud.controller.faults.refuse = None
    clock.now += 10.2
    assert device.refresh(force=True).updated


def test_a_slow_cloud_runs_into_the_deadline(
    cloud: RunningCloud, clock: Clock, tmp_path: Path
) -> None:
    from forward_ofa_device import Connection

    connection = Connection(cloud.address, timeout=0.3)
    with Device(tmp_path / "slow", connection, clock=clock) as device:
        device.refresh()
        cloud.controller.faults.delay = 1.0
        outcome = device.refresh(force=True)
        assert isinstance(outcome.error, CloudError)
        assert (outcome.error.code, outcome.error.reason) == ("DEADLINE_EXCEEDED", "UNREACHABLE")


# Versions


@pytest.mark.parametrize("old_is_served", [True, False])
def test_moves_to_a_new_version(
    open_device: Open, cloud: RunningCloud, tmp_path: Path, old_is_served: bool
) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    new = Version("v2", blocks=6)
    cloud.controller.versions = {**(cloud.controller.versions if old_is_served else {}), "v2": new}
    cloud.controller.current = "v2"
    outcome = device.refresh(force=True)
    assert outcome.error is None and outcome.updated
    assert device.version == "v2" and device.path is not None and len(device.path) == 6
    assert len(device.rerank()) == 10
    assert on_disk(tmp_path) == ["v-v1", "v-v2"]
    asked = [request.version for request in cloud.controller.log.networks]
    assert asked == ["v1", "v1", "v2"]


def on_disk(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "state" / "versions").iterdir())


def test_sessions_that_alternate_between_versions_download_each_once(
    open_device: Open, cloud: RunningCloud, clock: Clock, tmp_path: Path
) -> None:
    """A share of the sessions is on a canary: the device goes there and back."""
    controller = cloud.controller
    controller.versions = {**controller.versions, "v2": Version("v2", blocks=6)}
    controller.canary = "v2"
    device = open_device()
    device.observe(*HISTORY)
    used, downloads = [], []
    for _ in range(12):
        device.start_session()
        assert device.refresh().error is None
        used.append(device.version)
        assert device.version == controller.version_of(device.session_id)
        assert len(device.rerank()) == 10
        downloads.append(len(controller.log.parts))
        clock.now += 3600
    assert len(set(used)) == 2
    both = max(used.index("v1"), used.index("v2"))
    assert downloads[both] == downloads[-1], "once both are there nothing is fetched again"
    assert on_disk(tmp_path) == ["v-v1", "v-v2"]
    device.close()
    device = open_device()
    assert device.version == used[-1]
    # The next version takes the place of the one that was used longest ago.
    controller.versions = {**controller.versions, "v3": Version("v3")}
    controller.current, controller.canary = "v3", ""
    clock.now += 3600
    device.start_session()
    device.refresh()
    assert on_disk(tmp_path) == sorted(["v-v3", f"v-{used[-1]}"])


def test_a_fresh_device_gets_the_bundle_of_its_session(
    open_device: Open, cloud: RunningCloud
) -> None:
    controller = cloud.controller
    controller.versions = {**controller.versions, "v2": Version("v2")}
    controller.canary, controller.in_canary = "v2", lambda _: True
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    assert device.version == "v2" and len(controller.log.networks) == 1
    first, *rest = controller.log.parts
    assert (first.version, first.session_id) == ("", device.session_id)
    assert rest and all(part.version == "v2" and not part.session_id for part in rest)


def test_the_old_network_is_used_until_the_new_version_is_in(
    open_device: Open, cloud: RunningCloud, clock: Clock
) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    before = device.rerank(top=None)
    cloud.controller.serve_only(Version("v2"))
    cloud.controller.faults.broken_digest = True
    outcome = device.refresh(force=True)
    assert isinstance(outcome.error, CorruptFile) and not outcome.updated
    assert device.version == "v1" and device.rerank(top=None) == before
    device.close()
    device = open_device()
    assert device.rerank(top=None) == before
    cloud.controller.faults.broken_digest = False
    clock.now += 3600
    assert device.refresh().updated and device.version == "v2"


def test_a_failed_move_is_tried_again_by_itself(
    open_device: Open, cloud: RunningCloud, clock: Clock
) -> None:
    device = open_device()
    device.refresh()

    def announce(response: pb.RequestNetworkResponse) -> None:
        response.current_version = "v3-not-there-yet"

    cloud.controller.faults.tamper = announce
    outcome = device.refresh(force=True)
    assert outcome.updated and isinstance(outcome.error, CloudError)
    assert device.version == "v1"
    cloud.controller.faults.tamper = None
    cloud.controller.versions["v3-not-there-yet"] = Version("v3-not-there-yet")
    cloud.controller.current = "v3-not-there-yet"
    clock.now += 200
    assert device.refresh().reason == "new version"
    assert device.version == "v3-not-there-yet"


# Bad answers


def _other_version(response: pb.RequestNetworkResponse) -> None:
    response.version = "v9"


def _other_path(response: pb.RequestNetworkResponse) -> None:
    version = Version("v1")
    data = version.artefact((False, False, False, True), np.zeros(16, np.float32), "float16")
    response.artefact.data = data
    response.artefact.sha256 = hashlib.sha256(data).digest()


def _other_encoding(response: pb.RequestNetworkResponse) -> None:
    version = Version("v1")
    network = read_artefact(response.artefact.data, version.layout)
    data = version.artefact(network.path, np.zeros(16, np.float32), "float32")
    response.artefact.data = data
    response.artefact.sha256 = hashlib.sha256(data).digest()


def _truncated(response: pb.RequestNetworkResponse) -> None:
    data = response.artefact.data[:-3]
    response.artefact.data = data
    response.artefact.sha256 = hashlib.sha256(data).digest()


def _flipped_bit(response: pb.RequestNetworkResponse) -> None:
    data = bytearray(response.artefact.data)
    data[-1] ^= 1
    response.artefact.data = bytes(data)


def _short_candidates(response: pb.RequestNetworkResponse) -> None:
    response.candidates.item_ids.append("i999")


def _twice(response: pb.RequestNetworkResponse) -> None:
    response.candidates.item_ids[0] = response.candidates.item_ids[1]


def _not_held(response: pb.RequestNetworkResponse) -> None:
    response.candidates.Clear()
    response.candidates.etag, response.candidates.not_modified = "never-sent", True


def _nan(response: pb.RequestNetworkResponse) -> None:
    response.candidates.embeddings = b"\xff" * len(response.candidates.embeddings)


@pytest.mark.parametrize(
    ("tamper", "error"),
    [
        (_other_version, WrongVersion),
        (_other_path, CorruptFile),
        (_other_encoding, CorruptFile),
        (_truncated, CorruptFile),
        (_flipped_bit, CorruptFile),
        (_short_candidates, CorruptFile),
        (_twice, CorruptFile),
        (_not_held, CorruptFile),
        (_nan, CorruptFile),
    ],
)
def test_a_bad_answer_changes_nothing(
    open_device: Open, cloud: RunningCloud, tamper: object, error: type[Exception]
) -> None:
    cloud.controller.serve_only(Version("v1", head_bias=9.0))
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    device.observe(item(9))
    before = device.rerank(top=None)
    cloud.controller.faults.tamper = tamper
    outcome = device.refresh(force=True)
    assert isinstance(outcome.error, error) and not outcome.updated
    assert device.rerank(top=None) == before


# Damage on disk


@pytest.mark.parametrize("name", ["bundle", "items-0", "network", "candidates", "known"])
def test_damaged_files_are_set_aside_and_fetched_again(
    open_device: Open, tmp_path: Path, name: str
) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    ranking = device.rerank(top=None)
    device.close()
    damaged = blob(tmp_path / "state", "v1", name)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 0x40
    damaged.write_bytes(data)

    device = open_device()
    assert (damaged.parent / f"{name}.corrupt").exists() and not damaged.exists()
    device.refresh(force=True)
    assert device.rerank(top=None) == ranking


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": 3}', '{"sha256": "../../x"}'])
@pytest.mark.parametrize(
    "name",
    ["current.json", "retry.json", "versions/v-v1/network.json", "versions/v-v1/bundle.json"],
)
def test_damaged_notes_are_no_reason_to_crash(
    open_device: Open, tmp_path: Path, name: str, text: str
) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    device.close()
    (tmp_path / "state" / name).write_text(text)
    device = open_device()
    assert device.refresh(force=True).updated
    assert len(device.rerank()) == 10


def test_a_note_of_another_kind_beside_the_network(open_device: Open, tmp_path: Path) -> None:
    device = open_device()
    device.refresh()
    device.close()
    pointer = tmp_path / "state" / "versions" / "v-v1" / "network.json"
    record = json.loads(pointer.read_text())
    record["info"]["interest"] = "00"
    pointer.write_text(json.dumps(record))
    device = open_device()
    assert device.version is None
    assert device.refresh().reason == "no network"


def test_one_device_a_directory(open_device: Open) -> None:
    first = open_device()
    with pytest.raises(StorageError, match="in use"):
        open_device()
    first.close()
    open_device()


# Budget


def test_the_path_is_cut_to_the_budget(open_device: Open, cloud: RunningCloud) -> None:
    version = Version("big", blocks=6, head_bias=50.0)
    cloud.controller.serve_only(version)
    two = version.size((False,) * 4 + (True,) * 2, "float16")
    device = open_device(budget=Budget(max_artefact_bytes=two + 10))
    device.observe(*HISTORY)
    device.refresh()
    assert device.kept_blocks == 2
    assert device.last_cost is not None and device.last_cost.artefact_bytes <= two + 10
    (request,) = cloud.controller.log.networks
    assert request.budget.max_artefact_bytes == two + 10
    device.close()

    engine = NetworkEngine(read_bundle(version.bundle))
    flops = engine.flops((True, True, True, False, False, False)).true
    device = open_device(budget=Budget(max_flops=flops))
    device.refresh(force=True)
    assert device.kept_blocks == 3 and device.flops == flops


def test_a_small_budget_takes_a_smaller_encoding(open_device: Open, cloud: RunningCloud) -> None:
    version = cloud.controller.versions["v1"]
    small = version.size((False, False, False, True), "int8")
    device = open_device(budget=Budget(max_artefact_bytes=small), encodings=["float16", "int8"])
    device.refresh()
    (request,) = cloud.controller.log.networks
    assert list(request.accepted_encodings) == [types.ENCODING_INT8]
    assert device.kept_blocks == 1


def test_an_impossible_budget_is_an_error_that_says_what_is_possible(open_device: Open) -> None:
    device = open_device(budget=Budget(max_flops=10))
    with pytest.raises(ImpossibleBudget, match="the smallest needs"):
        device.refresh()
    device.close()
    with pytest.raises(ImpossibleBudget, match="Raise the budget"):
        open_device(budget=Budget(max_artefact_bytes=10))
    with pytest.raises(ValueError, match="at least 1"):
        Budget(max_flops=0)


# Bad input


@pytest.mark.parametrize("bad", ["", 7, None, "x" * 600])
def test_observe_rejects_what_is_no_item_id(open_device: Open, bad: str) -> None:
    device = open_device()
    with pytest.raises(ValueError, match="as text"):
        device.observe(item(1), bad)
    assert device.history == ()


def test_bad_arguments(open_device: Open, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encodings"):
        open_device(encodings=["float8"])
    with pytest.raises(ValueError, match="host:port"):
        Device(tmp_path / "x", "localhost")
    with pytest.raises(ValueError, match="top"):
        open_device().rerank(top=0)


# Threads


def test_the_user_is_never_kept_waiting_by_a_refresh(
    open_device: Open, cloud: RunningCloud
) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    cloud.controller.faults.delay = 1.0
    refreshing = threading.Thread(target=device.refresh, kwargs={"force": True})
    refreshing.start()
    while len(cloud.controller.log.networks) < 2:
        time.sleep(0.005)
    start = time.monotonic()
    for n in range(20):
        device.observe(item(n))
        device.rerank(top=3)
    assert time.monotonic() - start < 0.8 and refreshing.is_alive()
    refreshing.join()


def test_closing_breaks_a_refresh_off(open_device: Open, cloud: RunningCloud) -> None:
    device = open_device()
    device.observe(*HISTORY)
    device.refresh()
    cloud.controller.faults.delay = 2.0
    outcomes = []
    refreshing = threading.Thread(target=lambda: outcomes.append(device.refresh(force=True)))
    refreshing.start()
    while len(cloud.controller.log.networks) < 2:
        time.sleep(0.005)
    start = time.monotonic()
    device.close()
    refreshing.join()
    assert time.monotonic() - start < 1
    assert isinstance(outcomes[0].error, CloudError) and not outcomes[0].updated
    for use in (device.refresh, lambda: device.observe(item(1))):
        with pytest.raises(DeviceError, match="closed"):
            use()
    open_device()
