"""On which machine a cell was run: a time without this says little."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.serving import machine


def describe(device: str) -> dict[str, Any]:
    """Processor, cores, threads, memory, versions, revision; device: "cpu" or what CUDA has."""
    found = machine.describe()
    kept = {k: found[k] for k in ("cpu", "cores", "memory_gb", "python", "revision")}
    return {
        **kept,
        "changed_files": found["changed_files"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if device.startswith("cuda") else "CPU",
    }


def unknown() -> dict[str, Any]:
    """The same of a run that does not say where it was trained."""
    nothing = dict.fromkeys(("cpu", "python", "revision", "torch", "device"), "unknown")
    return {**nothing, "cores": 0, "memory_gb": 0, "changed_files": 0, "threads": 0}
