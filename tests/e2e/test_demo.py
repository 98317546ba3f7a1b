"""The demo, as `make demo` runs it: every step for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.registry.files import FileRegistry
from tests.support.logs import write_csv

pytestmark = pytest.mark.slow

DEVICES = 12
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def command(*arguments: str) -> list[str]:
    start = [sys.executable, "-m", "forward_ofa_cli", "demo", "--data", "log.csv", "--quick"]
    return [*start, "--devices", str(DEVICES), *arguments]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("demo")
    write_csv(folder / "log.csv", 60, 150)
    done = subprocess.run(
        command(), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_it_says_first_which_data_it_uses(demo):
    assert demo[1].splitlines()[0] == "Data: table in text file log.csv"


def test_it_shows_every_step_in_order(demo):
    places = [demo[1].index(f"\n{step}/5 ") for step in range(1, 6)]
    assert places == sorted(places)
    assert "health says SERVING" in demo[1]


def test_the_report_has_figures_of_both_systems_and_of_the_devices(demo):
    for text in (
        "NDCG@10, all items ranked",
        "Hit@10, all items ranked",
        "How many blocks a network keeps",
        "RequestNetwork p50 / p95 / p99",
        "bundle, once for each version",
        "path and interest (E, H, E'), at each refresh",
        "make serve",
    ):
        assert text in demo[1]
        assert text in (demo[0] / "runs" / "demo-log" / "report.md").read_text()


def test_the_report_for_programs_is_consistent(demo):
    told = json.loads((demo[0] / "runs" / "demo-log" / "demo.json").read_text())
    devices = told["devices"]
    assert devices["devices"] == devices["devices_with_network"] == DEVICES
    lives = (demo[0] / "runs" / "demo-log" / "devices" / "lives.jsonl").read_text().splitlines()
    assert devices["steps"] == sum(len(json.loads(life)["next"]) for life in lives)
    assert devices["offline_steps"] == 0
    assert told["metrics"]["networks"] == devices["requests"] >= DEVICES
    mean = told["metrics"]["device_flops_true_sum"] / told["metrics"]["networks"]
    assert mean == pytest.approx(devices["mean_device_flops"])
    sent = told["metrics"]["artefact_bytes_sum"] / told["metrics"]["networks"]
    assert sent == pytest.approx(devices["mean_artefact_bytes"])
    histogram = told["run"]["systems"]["forward-ofa"]["kept_blocks_histogram"]
    assert sum(histogram) == told["run"]["systems"]["forward-ofa"]["users"] == 60


def test_devices_live_the_users_real_histories(demo):
    rows = (demo[0] / "log.csv").read_text().splitlines()[1:]
    users: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        user, item, moment = row.split(",")
        users.setdefault(user, []).append((int(moment), item))
    lives = (demo[0] / "runs" / "demo-log" / "devices" / "lives.jsonl").read_text().splitlines()
    assert len(lives) == DEVICES
    for life in map(json.loads, lives):
        touched = [item for _, item in sorted(users[life["device"]])]
        kept = life["history"] + life["next"]
        assert kept == [item for item in touched if item in set(kept)]
        assert len(life["next"]) == min(20, len(kept) // 2)


def test_the_version_stays_and_the_services_do_not(demo):
    folder = demo[0] / "runs" / "demo-log"
    told = json.loads((folder / "demo.json").read_text())
    registry = FileRegistry(folder / "registry")
    assert registry.current() == told["version"]
    registry.open(told["version"]).verify()
    assert not (folder / "services.ready.json").exists()
    assert '"stopped"' in (folder / "services.log").read_text()


def test_interrupted_it_stops_the_services(demo):
    folder = demo[0]
    ready = folder / "runs" / "demo-log" / "services.ready.json"
    child = subprocess.Popen(
        command("--reuse"), cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not ready.exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    services = json.loads(ready.read_text())["pid"]
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
    assert not Path(f"/proc/{services}").exists()
