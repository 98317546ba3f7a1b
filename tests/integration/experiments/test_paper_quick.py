"""`make paper-quick`, for real: processes that train, are killed, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PARTS = "table2:synthetic:sasrec,figure6:synthetic:sasrec,table3:synthetic:sasrec:random"


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.kdd25", "--quick", "--only", PARTS]
    folders = ["--runs", str(folder), "--results", str(folder / "report"), "--threads", "1"]
    return subprocess.Popen(
        [*command, *folders, "--device", "cpu", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def index(folder: Path) -> dict[str, dict]:
    path = folder / "report" / "index.json"
    found = json.loads(path.read_text())["cells"] if path.exists() else []
    return {entry["cell"]["system"] + entry["cell"]["look"]: entry for entry in found}


def test_what_is_killed_and_what_runs_in_parallel_end_with_the_same_figures(tmp_path):
    killed, parallel = tmp_path / "killed", tmp_path / "parallel"
    first = start(killed)
    deadline = time.time() + 300
    while "device-rec" not in index(killed):
        assert first.poll() is None and time.time() < deadline, first.stdout.read()
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    cut_off = index(killed)
    assert not (killed / "report" / "REPORT.md").exists()

    out, _ = (again := start(killed)).communicate(timeout=600)
    assert again.returncode == 0, out
    assert "device-rec_paper_s0: DeviceRec" not in out  # it was finished
    out, _ = (together := start(parallel, "--workers", "2")).communicate(timeout=600)
    assert together.returncode == 0, out

    one, other = index(killed), index(parallel)
    assert set(one) == set(other) == {
        "device-rec", "plus-controller", "duet", "forward-ofa",
        "forward-ofacase", "forward-ofarandom",
    }  # fmt: skip
    assert one["device-rec"] == cut_off["device-rec"]
    for name in one:
        assert one[name]["figures"] == other[name]["figures"], name

    report = (killed / "report" / "REPORT.md").read_text()
    assert "A smoke run" in report and "| +controller |" in report
    assert "Synthetic Item" in report.split("## Figure 6")[1]
    out, _ = (done := start(killed)).communicate(timeout=300)
    assert done.returncode == 0 and "Everything that was asked is finished." in out
    assert (killed / "report" / "REPORT.md").read_text() == report
