"""What `make paper` says while it runs: plain lines, since many cells may be trained at a time."""

from __future__ import annotations

import time
from typing import Any

from experiments.kdd25.summary import duration


def say(text: str) -> None:
    """A line with the time of day, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Lines:
    """Keeps `training.Progress` for one cell: a line a stage and an epoch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage, self._steps, self._done = "", 0, 0
        self._started = time.monotonic()
        self._first = 0

    def begin(self, stage: str, steps: int, done: int) -> None:
        self._stage, self._steps, self._done, self._first = stage, steps, done, done
        self._started = time.monotonic()
        say(f"{self._name}: {stage}, {steps:,} steps" + (f", {done:,} done" if done else ""))

    def step(self, loss: float) -> None:
        self._done += 1

    def epoch(self, record: dict[str, Any]) -> None:
        parts = [f"{self._name}: {self._stage}", f"epoch {record['epoch']}"]
        if "loss" in record:
            parts.append(f"loss {record['loss']:.4f}")
        if "ndcg@10" in record:
            parts.append(f"validation NDCG@10 {record['ndcg@10']:.4f}")
        if self._done > self._first:
            each = (time.monotonic() - self._started) / (self._done - self._first)
            parts.append(f"{duration(max(0.0, each * (self._steps - self._done)))} left")
        say(", ".join(parts))
