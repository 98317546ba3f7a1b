"""Checkpoints: everything that training needs to go on as if it had not stopped.

One safetensors file, replaced atomically, so that there is always a whole one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "forward-ofa-checkpoint/1"


class CheckpointError(Exception):
    """A checkpoint is damaged, or belongs to another run; the message says what to do."""


def save_checkpoint(
    path: Path,
    run: str,
    system: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    rng: np.random.Generator,
    progress: Mapping[str, Any],
) -> None:
    """Weights, best weights so far, optimiser moments, random states and progress.

    run: what identifies the run, so that another one does not go on from here.
    """
    tensors: dict[str, Tensor] = {f"system.{n}": v for n, v in system.state_dict().items()}
    tensors |= {f"best.{n}": v for n, v in best.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{n}": v for n, v in state.items()}
    tensors["random.torch"] = torch.get_rng_state()
    device = next(system.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    metadata = {
        "format": FORMAT,
        "run": run,
        "progress": json.dumps(progress),
        "random.numpy": json.dumps(rng.bit_generator.state),
    }
    save_tensors(path, tensors, metadata)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file, atomically: a reader sees the old file or the new one.

    Raises OSError if it cannot be written (safetensors' own writer has another error for that).
    """
    # Copies, on the CPU: safetensors takes no views, and a file is the same from every device.
    copies = {n: v.detach().to("cpu", copy=True).contiguous() for n, v in tensors.items()}
    data = save(copies, metadata)
    write_atomically(path, data)


def write_atomically(path: Path, data: bytes) -> None:
    """Raises OSError with the name of `path`; nothing is left behind then."""
    temporary = path.with_name(path.name + ".writing")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def load_checkpoint(
    path: Path,
    run: str,
    system: nn.Module,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restores in place; returns (best weights so far, progress).

    Raises CheckpointError if the file is damaged or was written by another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no {FORMAT} file. Delete it to start afresh.")
        if metadata["run"] != run:
            raise CheckpointError(
                f"{path} belongs to a run with other data or settings. "
                "Use another --run-dir, or delete it to start afresh."
            )
        progress = json.loads(metadata["progress"])
        system.load_state_dict(_under(tensors, "system."))
        _restore_optimiser(optimiser, _under(tensors, "optimiser."))
        rng.bit_generator.state = json.loads(metadata["random.numpy"])
        torch.set_rng_state(tensors["random.torch"])
        # A run that moves to a GPU draws there from its seed on.
        device = next(system.parameters()).device
        if "random.cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], device)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged. Delete it to start afresh.") from error
    return _under(tensors, "best."), progress


def epochs_done(path: Path) -> int:
    """Epochs that a checkpoint has behind it; 0 for none, or for one that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return len(json.loads((file.metadata() or {})["progress"])["records"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return 0


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, field = name.split(".", 1)
        state.setdefault(int(index), {})[field] = value
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
