"""One training by several processes, as `torchrun` starts them; without it, all of this is nothing.

Every process ("rank") holds the whole system and the whole log, draws the same batches, and works
on its own rows of each: gradients are averaged by torch's DistributedDataParallel (NCCL between
GPUs, gloo between CPUs). Each term of the loss is weighted by the rank's share of what it is a
mean over (`share`), so a step is that of one process with the whole batch, up to the order of
sums; only what is drawn at random inside a step (gates, dropout) differs from rank to rank.
Losses of one's own that take a plain mean get the mean of the ranks' means.

Only the main rank, number 0, keeps a run's folder and talks; see `own_folder`.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

_PATIENCE = datetime.timedelta(minutes=30)
"""How long a rank waits for the others: the longest epoch's validation must fit in."""


def world() -> int:
    """How many processes train together; 1 outside of `joined`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and talks."""
    return rank() == 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the other processes if torchrun started this one; gives this process's device.

    device: as torch names it; of several GPUs each local process takes its own, so a certain one
    cannot be asked for. Raises ValueError for that, and when there are too few.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    own = _own_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if own != "cpu":
        torch.cuda.set_device(own)
    dist.init_process_group("gloo" if own == "cpu" else "nccl", timeout=_PATIENCE)
    try:
        yield own
    finally:
        dist.destroy_process_group()


def _own_device(device: str, local: int) -> str:
    if device == "cpu":
        return device
    if device != "cuda:0":
        raise ValueError(f"device {device}: with torchrun each process takes its own GPU; say cuda")
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"{torch.cuda.device_count()} GPUs here, fewer than processes: "
            "give torchrun a lower --nproc-per-node, or --device cpu"
        )
    return f"cuda:{local}"


@contextmanager
def main_first() -> Iterator[None]:
    """The main rank goes through the block first, the others after it has left it: what it
    downloads or converts is there for them."""
    if not is_main():
        dist.barrier()
    yield
    if world() > 1 and is_main():
        dist.barrier()


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The run's folder for the main rank; for the others a copy that is thrown away, so that only
    one process ever writes to it."""
    if world() == 1:
        yield folder
        return
    if is_main():
        dist.barrier()
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="forward-ofa-rank-") as temporary:
        copy = Path(temporary) / "run"
        copy.mkdir()
        for file in folder.glob("*.*") if folder.exists() else ():
            if file.suffix in (".json", ".safetensors", ".checkpoint"):
                shutil.copyfile(file, copy / file.name)
        dist.barrier()
        yield copy


def own_rows(batch: Any) -> Any:
    """This rank's rows of a batch (a tensor, or a dataclass of tensors with rows first).

    A batch with fewer rows than ranks goes to all of them whole, which gives the same mean.
    """
    if world() == 1:
        return batch
    if isinstance(batch, Tensor):
        return batch if len(batch) < world() else batch[rank() :: world()]
    parts = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return dataclasses.replace(
        batch, **{n: own_rows(v) for n, v in parts.items() if isinstance(v, Tensor)}
    )


def share(counted: int | Tensor) -> float | Tensor:
    """The weight of a mean here in the ranks' average: 1 if all are means over as many values.

    counted: how many values, or a mask of them (a GPU does not wait for their number then).
    Waits for the other ranks: all have to ask, in the same order.
    """
    if world() == 1:
        return 1.0
    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    own = torch.as_tensor(counted, device=device).sum().float()
    total = own.clone()
    dist.all_reduce(total)
    return own * world() / total


def average(value: float) -> float:
    """The mean of the ranks' values: of losses weighted by `share`, the whole batch's loss."""
    if world() == 1:
        return value
    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / world()


def agreed(figures: dict[str, float]) -> dict[str, float]:
    """The main rank's figures, for all: whatever is decided by them is decided alike."""
    if world() == 1:
        return figures
    device = "cpu" if dist.get_backend() == "gloo" else "cuda"
    names = sorted(figures)
    values = torch.tensor([figures[n] for n in names], dtype=torch.float64, device=device)
    dist.broadcast(values, 0)
    return dict(zip(names, values.tolist(), strict=True))


def reseed(seed: int, epoch: int) -> None:
    """Another stream of random numbers for each rank and epoch: a run that goes on draws what it
    would have drawn. With one process, whose state is in the checkpoint, nothing happens."""
    if world() > 1:
        words = np.random.SeedSequence([seed, epoch, rank()]).generate_state(1)
        torch.manual_seed(int(words[0]))


class _Objective(nn.Module):
    """A task's loss as a module's forward pass, which is what DistributedDataParallel takes."""

    def __init__(self, system: nn.Module, loss: Callable[[Any, float], Tensor]) -> None:
        super().__init__()
        self.system = system
        self._loss = loss

    def forward(self, batch: Any, done: float) -> Tensor:
        return self._loss(batch, done)


def with_gradients_averaged(
    system: nn.Module, loss: Callable[[Any, float], Tensor]
) -> Callable[[Any, float], Tensor]:
    """The same loss; its backward pass leaves the average of all ranks' gradients."""
    if world() == 1:
        return loss
    objective = _Objective(system, loss)
    # A block that no row of this rank keeps has no gradient here.
    wrapped: Callable[[Any, float], Tensor] = nn.parallel.DistributedDataParallel(
        objective, find_unused_parameters=True
    )
    return wrapped


def lost_a_rank(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone, rather than that something is wrong."""
    if world() == 1:
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text
