"""Where figures come from: without this they say little."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.venvs import PEERS, ROOT

_CODE = ("*.py", "*.proto", "requirements")
"""Changes elsewhere, as in the results that are just being written, make no other figures."""
_SHOWN = ("grpcio", "protobuf", "numpy", "torch", "safetensors", "redis", "litserve", "mlserver")


def describe() -> dict[str, Any]:
    """CPU, memory, system, versions, revision, time."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _SHOWN if (found := _version(name))},
        "peers": {
            peer.parent.name: _pins(peer) for peer in sorted(PEERS.glob("*/requirements.txt"))
        },
        "revision": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--", *_CODE).splitlines()),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _pins(requirements: Path) -> dict[str, str]:
    pins = dict(
        line.split("==", 1) for line in requirements.read_text().splitlines() if "==" in line
    )
    shown = ("grpcio", "litserve", "mlserver", "numpy", "nvidia-pytriton", "torch", "uvicorn")
    return {name: pins[name].split(" ")[0] for name in shown if name in pins}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
