"""Where training and evaluation run: the CPU, or a GPU."""

from __future__ import annotations

import os

import torch


def find_device(name: str) -> str:
    """The device that a name stands for, as torch names it: "cpu", "cuda" or "cuda:N".

    "auto": the first GPU if there is one, else the CPU. Raises ValueError for a GPU that is not
    there, and for any other name.
    """
    kind, _, number = name.partition(":")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if name == "auto":
        return "cuda:0"
    if kind != "cuda" or not (number.isdigit() or name == "cuda"):
        raise ValueError(f"device {name!r}: use cpu, cuda, cuda:N or auto")
    if not torch.cuda.is_available():
        raise ValueError(
            f"device {name}: there is no GPU here that this PyTorch ({torch.__version__}) can use. "
            "Use --device cpu, or install a build of PyTorch for your GPU"
        )
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise ValueError(f"device {name}: there are {count} GPUs here, cuda:0 to cuda:{count - 1}")
    return f"cuda:{int(number or 0)}"


def make_repeatable(device: str) -> None:
    """Equal seeds give equal figures, as far as torch allows; on the CPU they do without this.

    On a GPU torch takes deterministic kernels where it has them and warns where it has none; two
    kinds of GPU, or two versions of its libraries, may still differ in the last digits.
    """
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS first runs
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads memory that it has not written; filling it would cost each step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
