"""The floor of the work: the matrix product alone, one thread, the best of numpy and torch.

`python -m benchmarks.serving.product WEIGHTS SECONDS [CORES]` prints JSON: batch size ->
milliseconds a request.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

BATCHES = (1, 8, 16, 32)


def ways(weights: np.ndarray, batch: int) -> dict[str, Callable[[], object]]:
    """Name -> one product of `batch` interests. weights: [L, D + 1, P], last row the bias."""
    blocks, inputs, size = weights.shape
    rng = np.random.default_rng(0)
    h = rng.uniform(-1, 1, (batch, inputs)).astype(np.float32)
    h[:, -1] = 1
    whole = np.ascontiguousarray(np.concatenate(list(weights), axis=1))
    made = np.empty((batch, blocks * size), np.float32)
    whole_t, h_t, made_t = map(torch.from_numpy, (whole, h, made))
    blocks_t = [torch.from_numpy(block) for block in weights]
    found: dict[str, Callable[[], object]] = {
        "numpy": lambda: np.matmul(h, whole, out=made),
        "torch mm": lambda: torch.mm(h_t, whole_t, out=made_t),
        "torch addmm": lambda: torch.addmm(whole_t[-1], h_t[:, :-1], whole_t[:-1]),
        "torch a block": lambda: [torch.mm(h_t, block) for block in blocks_t],
        "torch transposed": lambda: torch.mm(whole_t.t(), h_t.t()),
    }
    if batch == 1:
        found["torch mv"] = lambda: torch.mv(whole_t.t(), h_t[0])
        found["torch addmv"] = lambda: torch.addmv(whole_t[-1], whole_t[:-1].t(), h_t[0, :-1])
    return found


def milliseconds(run: Callable[[], object], seconds: float) -> float:
    """The median time of a call."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end or len(times) < 3:
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def main() -> None:
    """See the module's text."""
    if len(sys.argv) > 3:
        os.sched_setaffinity(0, {int(core) for core in sys.argv[3].split(",")})
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    weights, seconds = np.load(Path(sys.argv[1])), float(sys.argv[2])
    result = {}
    for batch in BATCHES:
        timed = {name: milliseconds(run, seconds) for name, run in ways(weights, batch).items()}
        best = min(timed, key=lambda name: timed[name])
        result[str(batch)] = {"way": best, "ms": round(timed[best] / batch, 4)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
