from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forward_ofa_device import Device
from tests.support.device_cloud import Controller, RunningCloud, Version


class Clock:
    """Seconds since the epoch, moved by the test."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cloud() -> Iterator[RunningCloud]:
    running = RunningCloud(Controller(Version("v1")))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def open_device(
    cloud: RunningCloud, clock: Clock, tmp_path: Path
) -> Iterator[Callable[..., Device]]:
    """Opens a device on the test's cloud, clock and state directory."""
    devices = []

    def open_(**options: Any) -> Device:
        options = {"clock": clock, "rng": random.Random(7), "sync": False, **options}
        device = Device(tmp_path / "state", cloud.address, **options)
        devices.append(device)
        return device

    yield open_
    for device in devices:
        device.close()
