"""`forward-ofa serve` and `forward-ofa device one`, as real processes over loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forward_ofa_cli.errors import CommandError
from forward_ofa_cli.serve import newest_registry
from services.registry.files import FileRegistry
from tests.support.versions import publish

FORWARD_OFA = [sys.executable, "-m", "forward_ofa_cli"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("served")
    publish(FileRegistry(folder / "runs" / "demo-x" / "registry"), "v1")
    command = [*FORWARD_OFA, "serve", "--listen", "127.0.0.1:0", "--ready-file", "ready.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (folder / "ready.json").exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield json.loads((folder / "ready.json").read_text())
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "Serving runs/demo-x/registry" in said


def one(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*FORWARD_OFA, "device", "one", "--controller", address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_serve_takes_the_newest_registry_and_a_device_gets_its_network(served):
    done = one(served["address"], "--history", "item-3,item-4, nothing", "--top", "5", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["version"] == served["version"] == "v1"
    assert told["updated"] and told["reason"] == "no network"
    assert told["unknown_items"] == ["nothing"]
    assert len(told["path"]) == 4 and 1 <= sum(told["path"]) <= 4
    assert len(told["ranking"]) == 5
    assert not {"item-3", "item-4"} & {ranked["item_id"] for ranked in told["ranking"]}


def test_a_budget_is_kept_and_shown(served):
    history = ("--history", "item-29,item-9")
    full = json.loads(one(served["address"], *history, "--json").stdout)
    assert sum(full["path"]) > 1
    done = one(served["address"], *history, "--max-flops", str(full["flops"] - 1))
    assert done.returncode == 0, done.stderr
    assert f"{sum(full['path']) - 1} of 4" in done.stdout


def test_an_impossible_budget_is_wrong_input(served):
    done = one(served["address"], "--history", "item-3", "--max-flops", "10")
    assert done.returncode == 2
    assert "no network fits" in done.stderr


def test_the_newest_registry_is_the_one_labelled_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match="make demo"):
        newest_registry()
    for age, root in ((200, Path("registry")), (100, Path("runs/a/registry"))):
        publish(FileRegistry(root), "v1")
        moved = time.time() - age
        os.utime(root / "labels" / "stable", (moved, moved))
    assert newest_registry() == Path("runs/a/registry")
