"""The training process alone: what it says, what it leaves, and that it never stays behind."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from services.ports import JobParameters
from services.registry.files import FileRegistry
from services.trainer.child import Child
from tests.support.logs import write_csv
from tests.support.trainer import TINY


def spec(folder: Path, **parameters: Any) -> dict[str, Any]:
    log = folder / "log.csv"
    if not log.exists():
        write_csv(log, 40, 100)
    fields = {"recipe": "quick", "settings": TINY, **parameters}
    return {
        "job": "job-1",
        "parameters": asdict(JobParameters(str(log), **fields)),
        "registry": str(folder / "registry"),
        "registry_cache": str(folder / "cache"),
        "registry_cache_bytes": 2**30,
        "cache": str(folder / "data"),
    }


def run(folder: Path, said: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Its events, and how it ended; it may publish when it asks."""
    child, events = Child(folder / "job", said), []
    while not child.ended():
        for event in child.events(0.1):
            events.append(event)
            if event["event"] == "may I publish":
                child.allow_publishing()
    events += child.events(0)
    return events, child.close()


@pytest.mark.slow
def test_what_was_published_is_only_told_again(tmp_path: Path):
    said = spec(tmp_path, label="canary", percent=5.0)
    events, how = run(tmp_path, said)
    assert how.endswith("exit code 0")
    first = events[-1]
    assert (first["event"], first["version"]) == ("done", "job-1")
    assert first["verdict"]["passed"]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert len(epochs) == 1 + 1 + 2
    registry = FileRegistry(tmp_path / "registry")
    # The log is another one by now, and an operator has moved the label on.
    write_csv(tmp_path / "log.csv", 50, 120)
    registry.unlabel("canary")
    again, _ = run(tmp_path, said)
    assert again[-1] == first
    assert not [event for event in again if event["event"] == "epoch"]
    assert registry.labels() == {} and len(registry.versions()) == 1


@pytest.mark.slow
def test_an_attempt_that_has_not_published_is_judged_by_what_is_stable_now(tmp_path: Path):
    said = spec(tmp_path)
    child, events = Child(tmp_path / "job", said), []
    while not child.ended():  # as when a disk is full: it passes its gate and cannot publish
        events += child.events(0.1)
        if any(event["event"] == "may I publish" for event in events):
            child.ask_to_stop()
    child.close()
    registry = FileRegistry(tmp_path / "registry")
    assert registry.versions() == []
    better = {**spec(tmp_path, settings={**TINY, "training.epochs": "6"}), "job": "job-2"}
    done, _ = run(tmp_path / "better", better)
    registry.label("stable", done[-1]["version"])
    said["parameters"]["gate"] = "+99%"
    again, _ = run(tmp_path, said)
    assert again[-1]["event"] == "refused"
    assert again[-1]["verdict"]["stable_version"] == "job-2"
    assert not [event for event in again if event["event"] == "epoch"]
    assert [version.version for version in registry.versions()] == ["job-2"]


@pytest.mark.slow
def test_a_log_that_has_grown_is_trained_on_from_the_start(tmp_path: Path):
    said = spec(tmp_path, publish=False)
    events, _ = run(tmp_path, said)
    assert events[-1]["event"] == "done" and events[-1]["version"] == ""
    repeated, _ = run(tmp_path, said)
    assert repeated[-1] == events[-1]
    assert not [event for event in repeated if event["event"] == "epoch"]
    write_csv(tmp_path / "log.csv", 50, 120)
    grown, _ = run(tmp_path, said)
    assert [event["event"] for event in grown if event["event"] in ("afresh", "epoch")] == [
        "afresh", *["epoch"] * 4
    ]  # fmt: skip
    assert grown[-1]["metrics"] != events[-1]["metrics"]


@pytest.mark.slow
def test_it_ends_when_its_worker_has_gone_and_when_it_is_told_to(tmp_path: Path):
    settings = {**TINY, "training.epochs": "5000"}
    said = spec(tmp_path, settings=settings, publish=False)

    def training() -> Child:
        child = Child(tmp_path / "job", said)
        while not any(event["event"] == "epoch" for event in child.events(1.0)):
            assert not child.ended()
        return child

    orphan = training()
    assert orphan._process.stdin is not None
    orphan._process.stdin.close()  # as when the worker is killed
    deadline = time.monotonic() + 20
    while not orphan.ended():
        assert time.monotonic() < deadline
        orphan.events(0.1)
    told = training()
    told.ask_to_stop()
    events = []
    while not told.ended():
        events += told.events(0.1)
    assert [event["event"] for event in events + told.events(0)][-1] == "stopped"
    assert told.close().endswith("exit code 0")
    for path in (tmp_path / "job" / "run").iterdir():
        assert not path.name.endswith(".writing")
