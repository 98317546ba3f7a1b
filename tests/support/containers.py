"""The image and its containers, for tests: buildah builds it, podman runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.check.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"localhost/forward-ofa:{VERSION}"
BASE = "localhost/python:3.11-slim-bookworm"

HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--pids-limit=256",
            "--tmpfs=/tmp:size=256m,mode=1777")  # fmt: skip


def skip_without(*tools: str) -> None:
    """Skips the test if one is not there, or may not do what it must."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    if os.geteuid() != 0:
        pytest.skip("not root: mmdebstrap and podman are run as root here")


def environment(folder: Path) -> dict[str, str]:
    """For buildah and podman; their configuration is written into `folder`."""
    return {**Engine(folder).environment, "ENGINE": "buildah"}


def build(environment: dict[str, str]) -> None:
    """The image as `make image ARGS='--base local'` makes it; quick if it is up to date."""
    command = [str(ROOT / "deploy" / "image" / "build"), "--base", "local"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def stand_in(
    podman: Podman, image: str, *programs: Path, folder: str, user: str = "", entrypoint: str = ""
) -> None:
    """Where there is no such image: the local base with programs of this machine, under its name.

    folder: where it keeps its data, so that it may write there. user: made, with the id 999.
    """
    if podman.attempt("image", "exists", image).returncode == 0:
        return
    name = f"stand-in-{os.getpid()}"
    setup = f"install -d -m 1777 {folder}" + (f" && useradd --uid 999 {user}" if user else "")
    podman.buildah("from", "--name", name, "--pull-never", BASE)
    try:
        podman.buildah("copy", name, *map(str, programs), "/usr/local/bin/")
        podman.buildah("run", "--isolation=chroot", name, "--", "sh", "-c", setup)
        start = ("--entrypoint", json.dumps([entrypoint] if entrypoint else []), "--cmd", "")
        owner = ("--workingdir", folder, "--user", user or "65534")
        podman.buildah("config", *start, *owner, name)
        podman.buildah("commit", "--quiet", "--format=docker", name, image)
    finally:
        podman.buildah("rm", name)


class Podman:
    """Runs commands of podman; `close` removes every container that was started with it."""

    def __init__(self, folder: Path) -> None:
        self._engine = Engine(folder)
        self.environment = self._engine.environment
        self._started: list[str] = []

    def __call__(self, *arguments: str, seconds: float = 600) -> str:
        """What it printed. Raises Failed with what it said."""
        return self._engine.run("podman", *arguments, seconds=seconds)

    def attempt(self, *arguments: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """As it ended."""
        return self._engine.tried("podman", *arguments, seconds=seconds)

    def buildah(self, *arguments: str) -> None:
        """Raises Failed."""
        self._engine.run("buildah", *arguments, seconds=600)

    def run(self, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """What a command in a container of the image prints, hardened, alone on its network."""
        return self(
            "run",
            "--rm",
            "--no-healthcheck",
            "--network=none",
            *HARDENED,
            *options,
            IMAGE,
            *arguments,
        )

    def start(self, name: str, *arguments: str, options: tuple[str, ...] = ()) -> None:
        """A container in the background, hardened, alone on its network."""
        self._started.append(name)
        self("run", "--detach", f"--name={name}", "--network=none", *HARDENED, *options, IMAGE,
             *arguments)  # fmt: skip

    def inspect(self, what: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", what))[0]
        return found

    def healthy(self, name: str) -> bool:
        """What the container's own health check finds now."""
        return self.attempt("healthcheck", "run", name).returncode == 0

    def close(self) -> None:
        for name in self._started:
            self.attempt("rm", "--force", "--time=0", "--volumes", name)


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 300) -> None:
    """Raises RuntimeError if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds:g} s")
        time.sleep(0.5)
