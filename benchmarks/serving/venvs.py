"""A virtual environment for each peer, made by uv from its pinned requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "bench"
PEERS = Path(__file__).parent / "peers"
_INSTALL_SECONDS = 900.0


class Unavailable(RuntimeError):
    """A system that cannot be measured here. The text says why."""


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment, made or made anew if its requirements changed.

    Raises Unavailable if it cannot be installed.
    """
    folder, requirements = CACHE / peer, PEERS / peer / "requirements.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    stamp, python = folder / "installed", folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == digest and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = Path(sys.executable).parent / "uv"
    _run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)])
    backend, environment = _torch_source()
    command = [str(uv), "pip", "install", "--quiet", "--python", str(python), *backend]
    _run([*command, "-r", str(requirements)], environment)
    stamp.write_text(digest)
    return python


def _torch_source() -> tuple[list[str], dict[str, str]]:
    """PyTorch's CPU build: a local wheel where pip is told of a folder that has one, else its
    own index, as scripts/install.sh does. Plain torch would pull gigabytes of CUDA packages."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        if any(Path(folder).glob(f"torch-*-{tag}-*.whl")):
            return [], {"UV_FIND_LINKS": folder}
    return ["--torch-backend=cpu"], {}


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"not installed: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"not installed: {error}") from error
