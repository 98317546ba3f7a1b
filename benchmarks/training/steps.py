"""Step times of several systems, taken in turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training.naive import NaiveForwardOFA
from forward_ofa.config import RunConfig
from forward_ofa.data import SequenceDataset
from forward_ofa.model import Batch
from forward_ofa.tasks import DeviceRecTask, ForwardOFATask, Task
from forward_ofa.training import keep_memory, make_optimiser, update

PHASES = ("forward", "backward", "optimiser")


@dataclass
class Case:
    """One system, and what its steps took, one entry a step: seconds by phase, and CPU seconds of
    all threads, which say more than the clock does on a busy machine if there is one thread."""

    name: str
    task: Task[Any]
    times: dict[str, list[float]] = field(default_factory=lambda: {p: [] for p in PHASES})
    cpu: list[float] = field(default_factory=list)

    @property
    def steps(self) -> list[float]:
        """Seconds of whole steps."""
        return [sum(parts) for parts in zip(*self.times.values(), strict=True)]

    def median(self, phase: str | None = None) -> float:
        """Seconds of the whole step or of one phase."""
        return statistics.median(self.steps if phase is None else self.times[phase])


Maker = Callable[[SequenceDataset, RunConfig], Task[Any]]


def makers(bases: int) -> dict[str, Maker]:
    """The systems by name; the first is what the others are compared with."""

    def factored(data: SequenceDataset, config: RunConfig) -> Task[Any]:
        return ForwardOFATask(data, replace(config.method, bases=bases), config.training)

    return {
        "DeviceRec": lambda d, c: DeviceRecTask(d, c.method, c.training),
        "Forward-OFA": lambda d, c: ForwardOFATask(d, c.method, c.training),
        f"Forward-OFA, {bases} bases": factored,
        "Forward-OFA, naive": lambda d, c: ForwardOFATask(
            d, c.method, c.training, kind=NaiveForwardOFA
        ),
    }


def measure(cases: list[Case], rounds: int, warmup: int, device: str) -> None:
    """Fills the cases' times: one step of each in every round, so that what else the machine does
    meets them all alike. All take the same batches."""
    keep_memory()
    stream = _batches(cases[0].task)
    optimisers = []
    for case in cases:
        case.task.system.to(device).train()
        optimisers.append(make_optimiser(case.task))
    for index in range(warmup + rounds):
        batch = next(stream).to(torch.device(device))
        for case, optimiser in zip(cases, optimisers, strict=True):
            before = time.process_time()
            seconds = step(case.task, optimiser, batch, device)
            if index >= warmup:
                case.cpu.append(time.process_time() - before)
                for phase, value in zip(PHASES, seconds, strict=True):
                    case.times[phase].append(value)


def step(
    task: Task[Any], optimiser: torch.optim.Optimizer, batch: Batch, device: str
) -> tuple[float, float, float]:
    """Seconds of forward pass, backward pass, and clipping with the optimiser's step."""
    marks = [_now(device)]
    loss = task.loss(batch, 0.5)
    loss.item()
    marks.append(_now(device))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    marks.append(_now(device))
    update(task, optimiser)
    marks.append(_now(device))
    forward, backward, rest = (b - a for a, b in itertools.pairwise(marks))
    return forward, backward, rest


def peak_memory(case: Case, device: str) -> int:
    """Bytes that three steps take at most, beyond what the process has before them.

    For a process of its own. On a CPU it needs Linux, which forgets an earlier peak when asked.
    """
    case.task.system.to(device).train()
    stream = _batches(case.task)
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()
    before = _peak(device)
    optimiser = make_optimiser(case.task)
    for _ in range(3):
        step(case.task, optimiser, next(stream).to(torch.device(device)), device)
    return _peak(device) - (before if device == "cpu" else 0)


def _batches(task: Task[Any]) -> Iterator[Batch]:
    """Full batches without end."""
    rng = np.random.default_rng(0)
    while True:
        _, stream = task.epoch(rng)
        full = (b for b in stream if len(b.targets) == task.config.batch_size)
        first = next(full, None)
        if first is None:
            raise SystemExit("the log has fewer sessions than a batch: lower --batch-size")
        yield first
        yield from full


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(device: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
