"""Table 8: seconds from a new interest to a network for it, by generating and by fine-tuning.

Both for one device at a time, where this process runs; no network and no serialisation in either.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from experiments.kdd25.case import all_users, users_of
from experiments.kdd25.runner import CellError
from forward_ofa.baselines.finetune import Finetune
from forward_ofa.data import SequenceDataset
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa.runs import Run

_WARM_UP = 3


def adaptation_times(
    run: Run, tuned: Run, data: SequenceDataset, seed: int, users: int = 200, tuned_users: int = 20
) -> dict[str, float]:
    """Median seconds a device, over `users` and `tuned_users` that are drawn by the seed.

    run: of Forward-OFA. tuned: of Finetune, with the steps that validation chose.
    "forward-ofa": E, H, E' and generating the kept blocks. "finetune": all steps on the device's
    own history. "finetune-one-thread": the same with one thread of the processor.
    "finetune-steps": how many steps those are.
    Raises CellError if `tuned` is no Finetune.
    """
    if not isinstance(tuned.system, Finetune):
        raise CellError(f"{tuned.folder} is no run of Finetune")
    system, baseline = run.forward_ofa, tuned.system
    drawn = np.random.default_rng(seed).choice(data.num_users, users)
    asked, tuning = all_users(system, data), all_users(baseline, data)
    batches = [users_of(asked, drawn[i : i + 1], system) for i in range(users)]
    own = [users_of(tuning, drawn[i : i + 1], baseline) for i in range(tuned_users)]
    threads = torch.get_num_threads()
    found = {
        "forward-ofa": _median(lambda batch: generate(system, batch), batches),
        "finetune": _median(lambda batch: _tune(baseline, batch), own),
        "finetune-steps": float(baseline.steps),
    }
    try:
        torch.set_num_threads(1)
        single = baseline.cpu()
        on_cpu = [batch.to(torch.device("cpu")) for batch in own]
        found["finetune-one-thread"] = _median(lambda batch: _tune(single, batch), on_cpu)
    finally:
        torch.set_num_threads(threads)
    return found


@torch.no_grad()
def generate(system: ForwardOFA, batch: Batch) -> list[Tensor]:
    """All parameters of one device's kept blocks, made. What the hypernetworks return is not yet:
    a matrix is made when it is used or asked for."""
    adaptation = system.adapt(batch)
    kept = adaptation.gates[0].nonzero().flatten().tolist()
    blocks = [system.hypernetwork(index)(adaptation.interest) for index in kept]
    return [each.tensor() for block in blocks for each in block.values()]


def _tune(system: Finetune, batch: Batch) -> None:
    for _ in system.tuned(batch, float(system.rate), int(system.steps)):
        pass


def _median(adapt: Callable[[Batch], object], batches: Sequence[Batch]) -> float:
    """Of the wall times of single calls; the first few are not counted."""
    times = []
    for number, batch in enumerate([*batches[:_WARM_UP], *batches]):
        _synchronise(batch)
        started = time.perf_counter()
        adapt(batch)
        _synchronise(batch)
        if number >= _WARM_UP:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def _synchronise(batch: Batch) -> None:
    """A GPU works on after the call has returned."""
    if batch.history.is_cuda:
        torch.cuda.synchronize(batch.history.device)
