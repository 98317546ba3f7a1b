"""What a device tells of how its networks did."""

from __future__ import annotations

from collections.abc import Callable

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_device import CorruptFile, Device, StorageError
from forward_ofa_device.report import MOST, Tally
from tests.support.device_cloud import RunningCloud, item

Open = Callable[..., Device]
BEST = [item(n) for n in range(10)]


def test_counts_what_was_touched_after_a_ranking() -> None:
    tally = Tally()
    tally.touched([item(0)])
    assert tally.report() is None, "nothing was ranked yet"
    tally.ranked("v1", BEST)
    assert tally.report() is None
    tally.touched([item(3), item(20), item(9)])
    assert tally.report() == pb.DeviceReport(version="v1", touched=3, hits=2)


def test_only_what_was_told_is_forgotten() -> None:
    tally = Tally()
    tally.ranked("v1", BEST)
    tally.touched([item(3)])
    told = tally.report()
    tally.touched([item(20)])
    tally.told(told)
    assert tally.report() == pb.DeviceReport(version="v1", touched=1)
    tally.told(None)
    assert tally.report() is not None


def test_counts_are_of_one_version() -> None:
    tally = Tally()
    tally.ranked("v1", BEST)
    tally.touched([item(3)])
    told = tally.report()
    tally.ranked("v2", BEST)
    tally.touched([item(4), item(20)])
    tally.told(told)
    assert tally.report() == pb.DeviceReport(version="v2", touched=2, hits=1)


def test_counts_are_bounded() -> None:
    tally = Tally()
    tally.ranked("v1", BEST)
    for _ in range(3 * MOST):
        tally.touched([item(1), item(50)])
        tally.failed(CorruptFile("bad"))
    report = tally.report()
    assert report is not None
    assert (report.touched, report.hits, report.damaged) == (MOST, MOST // 2, MOST)


def test_only_damage_counts_as_damage() -> None:
    tally = Tally()
    tally.failed(StorageError("full"))
    assert tally.report() is None
    tally.failed(CorruptFile("bad"))
    assert tally.report() == pb.DeviceReport(damaged=1)


def test_a_device_reports_with_its_next_request(open_device: Open, cloud: RunningCloud) -> None:
    device = open_device()
    device.observe(item(3), item(8))
    device.refresh()
    asked = cloud.controller.log.networks
    assert not asked[0].HasField("report")
    best = [ranked.item_id for ranked in device.rerank(top=3)]
    rest = [ranked.item_id for ranked in device.rerank(top=None)][-1]
    # Its own list is another game; an item that was there before is in no ranking.
    device.rerank(candidates=[item(6)])
    device.observe(best[0], rest, item(3), best[0])
    device.start_session()
    device.refresh(force=True)
    assert asked[1].report == pb.DeviceReport(version="v1", touched=2, hits=1)
    device.start_session()
    device.refresh(force=True)
    assert not asked[2].HasField("report"), "told once"


def test_a_device_may_keep_it_to_itself(open_device: Open, cloud: RunningCloud) -> None:
    device = open_device(report=False)
    device.observe(item(3))
    device.refresh()
    device.observe(device.rerank(top=1)[0].item_id)
    device.start_session()
    device.refresh(force=True)
    assert len(cloud.controller.log.networks) == 2
    assert not any(request.HasField("report") for request in cloud.controller.log.networks)
