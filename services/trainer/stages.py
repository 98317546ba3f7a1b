"""What a training process does, stage by stage; each knows what an earlier attempt has done."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forward_ofa.checkpoint import CheckpointError
from forward_ofa.data import SequenceDataset
from forward_ofa.devices import find_device
from forward_ofa.locks import locked
from forward_ofa.runs import Run, RunError, load_run, train_run, write_json
from services.ports import JobFailure, JobParameters, Verdict
from services.publishing import publish_run
from services.registry.contract import Registry
from services.registry.location import open_registry
from services.registry.settings import CacheSettings
from services.trainer import plan
from services.trainer.failures import explain
from services.trainer.gate import judge, parse_gate
from services.trainer.plan import NoDevice
from services.trainer.work import Spec, Worker

_LOCK_SECONDS = 30.0
_TELL_SECONDS = 0.5
_RUN, _VERDICT, _LABELLED = "run", "verdict.json", "labelled"


class RunFolderBusy(Exception):
    """An earlier attempt still writes into the run folder."""


def perform(spec: Spec, worker: Worker) -> dict[str, Any]:
    """The whole job; the event that ends it. Raises `work.Stopped`, and what the stages raise."""
    with _locked(spec.folder, worker):
        worker.tell("progress", stage="prepare")
        cache = CacheSettings(Path(spec.registry_cache), spec.registry_cache_bytes)
        registry = open_registry(spec.registry, cache)
        if spec.parameters.publish and registry.exists(spec.job):
            return _published(spec, registry)
        device = _device(spec.parameters)
        data = plan.read(spec.parameters, Path(spec.cache))
        worker.check()
        run = _trained(spec, data, worker, device)
        metrics = _figures(run.report)
        if not spec.parameters.publish:
            return {"event": "done", "metrics": metrics, "version": "", "verdict": None}
        worker.tell("progress", stage="gate")
        verdict = _judged(spec, run, data, registry)
        told = {"metrics": metrics, "verdict": asdict(verdict)}
        if not verdict.passed:
            return {"event": "refused", "version": "", **told}
        worker.ask_to_publish()
        worker.tell("progress", stage="publish")
        version = publish_run(run, data, registry, version=spec.job)
        return _finished(spec, registry, {"version": version, **told})


def _published(spec: Spec, registry: Registry) -> dict[str, Any]:
    """An earlier attempt published it and could not say so: what is left is to tell. The log is
    not looked at, it may be another one by now."""
    report = json.loads(registry.open(spec.job).path("report.json").read_text())
    verdict = _known_verdict(spec)
    told = {"metrics": _figures(report), "verdict": asdict(verdict) if verdict else None}
    return _finished(spec, registry, {"version": spec.job, **told})


@contextlib.contextmanager
def _locked(folder: Path, worker: Worker) -> Iterator[None]:
    """One process at a time in a run folder, whatever the record says: the one before may be
    alive beyond its lease. The system lets go of the lock when a process ends."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        with locked(folder / "lock", wait=False) as mine:
            if mine:
                yield
                return
        worker.check()
        if time.monotonic() > deadline:
            raise RunFolderBusy(
                f"another process still works in {folder}: end it, then resume the job"
            )
        time.sleep(0.1)


def _device(parameters: JobParameters) -> str:
    """As torch names it. Raises NoDevice, before anything is read."""
    try:
        return find_device(parameters.device)
    except ValueError as error:
        raise NoDevice(
            f"{error}. This is about the worker: start one where there is a GPU"
        ) from error


def _trained(spec: Spec, data: SequenceDataset, worker: Worker, device: str) -> Run:
    """The run, from where it is. A run folder of other data (the log has grown since) or that
    is damaged is emptied: the job means the log as it is."""
    folder = spec.folder / _RUN
    config = plan.configure(spec.parameters, data.num_interactions, data.num_users)
    if (folder / "report.json").exists():
        with contextlib.suppress(RunError):
            run = load_run(folder, device)
            if run.data_card["fingerprint"] == data.fingerprint():
                return run
        _start_afresh(spec, worker)
    progress = _Told(worker)
    try:
        return train_run(data, config, folder, progress, resume=True, device=device)
    except CheckpointError:
        _start_afresh(spec, worker)
        return train_run(data, config, folder, progress, resume=True, device=device)


def _start_afresh(spec: Spec, worker: Worker) -> None:
    shutil.rmtree(spec.folder / _RUN, ignore_errors=True)
    worker.tell("afresh", why="the log is another one now, or the run damaged: trained anew")


def _figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Of a run's report: what people compare. Test split."""
    systems = report["systems"]
    return {
        f"{system}/{name}": float(values[name])
        for system, values in systems.items()
        for name in ("ndcg@10", "hit@10")
    }


def _judged(spec: Spec, run: Run, data: SequenceDataset, registry: Registry) -> Verdict:
    """Anew in each attempt that has not published: by now `stable` may be another version, and
    the gate another one. What is written is for an attempt that finds its version published."""
    verdict = judge(parse_gate(spec.parameters.gate), run.forward_ofa, data, registry)
    write_json(spec.folder / _VERDICT, asdict(verdict))
    return verdict


def _known_verdict(spec: Spec) -> Verdict | None:
    try:
        return Verdict(**json.loads((spec.folder / _VERDICT).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _finished(spec: Spec, registry: Registry, told: dict[str, Any]) -> dict[str, Any]:
    """The end of a job whose version is published, which it stays: a label that cannot be moved
    fails the job, and takes back nothing of what is told."""
    try:
        _label(spec, registry, told["version"])
    except Exception as error:
        traceback.print_exc()
        return {"event": "failed", **asdict(_unlabelled(spec, explain(error))), **told}
    return {"event": "done", **told}


def _label(spec: Spec, registry: Registry, version: str) -> None:
    """Once: an operator may have moved the label since."""
    done, label = spec.folder / _LABELLED, spec.parameters.label
    if not label or done.exists():
        return
    registry.label(label, version, spec.parameters.percent)
    # A full disk must not say that the label was not moved.
    with contextlib.suppress(OSError):
        done.touch()


def _unlabelled(spec: Spec, why: JobFailure) -> JobFailure:
    """With what is there all the same, and the command that does the rest."""
    label, percent = spec.parameters.label, spec.parameters.percent
    command = f"forward-ofa jobs promote {spec.job} --label {label}"
    if percent:
        command += f" --percent {percent:g}"
    return JobFailure(
        why.reason,
        f"version {spec.job} is published, but the label {label} was not moved: "
        f"{why.text.rstrip('.')}. Or label it yourself, once the cause is gone: `{command}`",
    )


class _Told:
    """Keeps `forward_ofa.training.Progress` for the worker, a few events a second at most; it
    also looks at each step whether to go on."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._stage, self._steps, self._done = "", 0, 0
        self._first = self._begun = self._told = 0.0

    def begin(self, stage: str, steps: int, done: int) -> None:
        self._worker.check()
        self._stage, self._steps, self._done, self._first = stage, steps, done, float(done)
        self._begun, self._told = time.monotonic(), 0.0
        self._tell(None)

    def step(self, loss: float) -> None:
        self._worker.check()
        self._done += 1
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._tell(loss)

    def epoch(self, record: dict[str, Any]) -> None:
        self._tell(record.get("loss"))
        self._worker.tell("epoch", stage=self._stage, **record)
        self._worker.check()

    def _tell(self, loss: float | None) -> None:
        self._told = time.monotonic()
        passed = self._told - self._begun
        rate = (self._done - self._first) / passed if passed > 0 else 0.0
        self._worker.tell(
            "progress",
            stage=self._stage,
            step=self._done,
            steps=self._steps,
            loss=loss,
            steps_per_second=rate,
            eta_seconds=(self._steps - self._done) / rate if rate else 0.0,
        )
