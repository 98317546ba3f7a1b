"""Training by two real processes over gloo: the same result, one writer, a clear end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from forward_ofa.distributed import joined, own_rows, share
from forward_ofa.model import Batch

ROOT = Path(__file__).parents[3]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_one_process_alone_is_as_if_there_were_no_ranks() -> None:
    batch = Batch(*(torch.arange(6).reshape(3, 2) for _ in range(4)))
    with joined("cpu") as device:
        assert device == "cpu"
        assert own_rows(batch) is batch
        assert share(3) == 1


@pytest.mark.slow
def test_two_ranks_train_to_the_weights_of_one_process(tmp_path: Path) -> None:
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        script = str(ROOT / "tests" / "support" / "ranks.py")
        subprocess.run(
            [*TORCHRUN, str(ranks), script, str(folder)], check=True, env=environment(), timeout=500
        )
    for name in ("DeviceRec", "Forward-OFA"):
        one, two = (load_file(tmp_path / f"{n}" / f"{name}.safetensors") for n in (1, 2))
        losses = [np.loadtxt(tmp_path / f"{n}" / f"{name}.losses") for n in (1, 2)]
        np.testing.assert_allclose(*losses, rtol=1e-6)
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-3, atol=5e-4, msg=f"{name} {key}")


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "2", "-m", "forward_ofa_cli", "train", "--run-dir", str(folder)]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(), cwd=folder.parent, start_new_session=True,
    )  # fmt: skip


def small_log() -> Iterator[str]:
    rng = np.random.default_rng(0)
    for user in range(60):
        for position, item in enumerate(rng.permutation(110)[:30]):
            yield f"u{user},i{item},{1000 * user + position}\n"


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_it_can_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    log = tmp_path / "log.csv"
    log.write_text("user,item,timestamp\n" + "".join(small_log()))
    options = ("--data", str(log), "--recipe", "quick", "--device", "cpu", "--hidden", "8",
               "--blocks", "2", "--device-rec-epochs", "60", "--min-item", "1")  # fmt: skip
    process = start(folder, *options)
    try:
        until = time.monotonic() + 400
        while not (folder / "device-rec.checkpoint").exists():
            assert process.poll() is None, process.stdout.read()  # type: ignore[union-attr]
            assert time.monotonic() < until
            time.sleep(0.05)
        ranks = [c for c in psutil.Process(process.pid).children() if "train" in c.cmdline()]
        assert len(ranks) == 2
        victim = next(r for r in ranks if r.environ().get("RANK") == "1")
        victim.kill()
        told, _ = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert "SIGKILL" in told or "Signal 9" in told, told
    assert not (folder / "report.json").exists()

    process = start(folder, "--resume", "--device", "cpu")
    told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, told
    assert told.count("The run is in") == 1  # one rank talks
    report = json.loads((folder / "report.json").read_text())
    assert report["systems"]["forward-ofa"]["users"] > 0
    assert not [p for p in folder.iterdir() if p.suffix in (".checkpoint", ".writing")]
