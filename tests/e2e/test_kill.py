"""The cloud dies under its devices: they go on, and recover when it is back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from services.registry.files import FileRegistry
from tests.support.serving import Process
from tests.support.versions import publish

pytestmark = pytest.mark.slow

DEVICES, TOUCHES, PAUSE = 4, 200, 0.1
KILLED_AFTER = 40  # networks
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_lives(path: Path) -> Path:
    lives = []
    for device in range(DEVICES):
        # Half of the catalogue, so that there are always unseen candidates to rerank.
        items = [f"item-{(device * 7 + step) % 30}" for step in range(10 + TOUCHES)]
        lives.append({"device": f"d{device}", "history": items[:10], "next": items[10:]})
    path.write_text("\n".join(json.dumps(life) for life in lives) + "\n")
    return path


def start_devices(address: str, folder: Path) -> subprocess.Popen[str]:
    """A request at every touch, so that the outage is felt at once."""
    command = [sys.executable, "-m", "forward_ofa_device", "population", "--json"]
    command += ["--controller", address, "--histories", str(write_lives(folder / "lives.jsonl"))]
    command += ["--state", str(folder / "state"), "--out", str(folder / "steps.jsonl")]
    command += ["--shift-threshold", "0", "--pause", str(PAUSE), "--workers", str(DEVICES)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_networks(metrics: str, child: subprocess.Popen[str], seconds: float = 60) -> None:
    pattern = re.compile(r"^forward_ofa_kept_blocks_count (\S+)$", re.MULTILINE)
    deadline = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as response:
            found = pattern.search(response.read().decode())
        if found and float(found[1]) >= KILLED_AFTER:
            return
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_devices_outlive_a_killed_cloud(tmp_path: Path):
    publish(FileRegistry(tmp_path / "registry"), "v1")
    first = Process(tmp_path / "registry", tmp_path / "first")
    ready = first.wait_ready()
    address = ready["address"]
    devices = start_devices(address, tmp_path)
    second = None
    try:
        wait_for_networks(ready["metrics"], devices)
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        time.sleep(1.0)
        second = Process(tmp_path / "registry", tmp_path / "second", "--listen", address)
        second.wait_ready()
        out, said = devices.communicate(timeout=120)
    finally:
        for process in (first, second):
            if process is not None:
                process.stop(signal.SIGKILL)
        devices.kill()
    assert devices.returncode == 0, said
    check(json.loads(out), tmp_path / "steps.jsonl")


def check(summary: dict[str, Any], steps: Path) -> None:
    rows = [json.loads(line) for line in steps.read_text().splitlines()]
    assert summary["devices_with_network"] == DEVICES
    assert len(rows) == DEVICES * TOUCHES, "no touch was lost"
    offline = [row for row in rows if row["offline"]]
    assert offline and summary["offline_steps"] == len(offline)
    # With the cloud away a device reranks with the network that it has.
    for row in offline:
        assert row["version"] == "v1" and row["kept_blocks"] >= 1 and row["candidates"] > 0
        assert row["outcome"] == "kept"
    assert set(summary["errors"]) == {"UNREACHABLE"}
    lives: dict[str, str] = {}
    for row in rows:
        lives[row["device"]] = lives.get(row["device"], "") + ("-" if row["offline"] else "+")
    # Each had networks, lost the cloud, went on, and got networks again.
    assert all(re.fullmatch(r"\++-[+-]*\+", life) for life in lives.values()), lives
    back = max(row["at_s"] for row in offline)
    after = [row for row in rows if row["at_s"] > back and row["requested"]]
    assert after and all(row["outcome"] == "updated" for row in after)
