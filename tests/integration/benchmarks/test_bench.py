"""The benchmark itself, small and for real: real servers, real load, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.serving{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


def left_behind(out: Path) -> list[str]:
    lines = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    return [line for line in lines if "forward-ofa-bench-" in line]


@pytest.mark.slow
def test_ours_and_the_floors(tmp_path: Path) -> None:
    before = left_behind(tmp_path)
    done = run("", "--quick", "--peers", "", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*/result.json")
    result = json.loads(file.read_text())
    cells = {(cell["name"], cell["clients"]): cell for cell in result["cells"]}
    for name in ("echo", "ours, one process", "ours, split in 3", "ours, int8"):
        for clients in (1, 32):
            (one,) = cells[name, clients]["rounds"]
            assert one["ok"] > 0 and one["errors"] == 0, one["error_texts"]
            assert one["checked_in_full"] > 0
    verdicts = {bar["name"]: bar["verdict"] for bar in result["bars"]}
    assert "SKIPPED" in verdicts.values()  # no trained version, no peer
    assert verdicts["1 client, float32: p50 / (echo + product)"] in ("PASS", "FAIL")
    assert result["machine"]["cores"] >= 1
    assert file.with_name("result.png").stat().st_size > 10_000
    assert left_behind(tmp_path) == before


@pytest.mark.slow
def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    done = run(".soak", "--minutes", "0.3", "--session-ttl", "5", "--out", str(tmp_path))
    (file,) = tmp_path.glob("soak-*.json")
    result = json.loads(file.read_text())
    assert result["errors"] == 0, result["error_texts"]
    assert result["ok"] > 0 and result["samples"]
    met = {check["name"]: check["met"] for check in result["checks"]}
    assert met["growth of fds"] and met["Redis is used"], done.stdout


@pytest.mark.slow
def test_a_short_overload_is_measured(tmp_path: Path) -> None:
    done = run(".overload", "--before", "2", "--burst", "2", "--after", "4", "--out", str(tmp_path))
    (file,) = tmp_path.glob("overload-*.json")
    result = json.loads(file.read_text())
    assert len(result["phases"]) == 3, done.stderr
    assert result["errors"] == 0, result["error_texts"]
    assert result["phases"][1]["ok"] > 0


@pytest.mark.slow
def test_what_a_call_costs(tmp_path: Path) -> None:
    before = left_behind(tmp_path)
    done = run(".calls", "--seconds", "0.3", "--rounds", "1", "--requests", "20")
    assert done.returncode == 0, done.stderr
    for row in ("grpc.aio", "ours", "refused", "map", "assemble"):
        assert row in done.stdout, done.stdout
    assert left_behind(tmp_path) == before


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    done = run("", "--peers", "nobody", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "grpc_torch" in done.stderr
