"""buildah and podman as the last rungs and the tests of the image use them: root, no systemd,
images of this machine alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.check.ladder import Absent

# What containers in a container and CI machines without systemd need. Soft and hard limits are
# equal: `podman play kube` raises the soft one above the other else, and no pod starts.
_CONFIG = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


class Failed(Exception):
    """A command of the engine; the text has what it said."""


class Engine:
    """Runs commands; see `engine`. folder: for its configuration."""

    def __init__(self, folder: Path) -> None:
        config = folder / "containers.conf"
        config.write_text(_CONFIG, encoding="utf-8")
        self.environment = {**os.environ, "CONTAINERS_CONF": str(config)}

    def run(self, *command: str, seconds: float = 300, given: str | None = None) -> str:
        """Its standard output. Raises Failed."""
        done = self.tried(*command, seconds=seconds, given=given)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-2_000:]
            raise Failed(f"{' '.join(command)}\nended with {done.returncode}: {said}")
        return done.stdout.strip()

    def tried(
        self, *command: str, seconds: float = 300, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Whatever its exit status. Raises Failed when it takes too long."""
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=seconds,
                env=self.environment, input=given,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{' '.join(command)}\ntook longer than {seconds:g} s") from late


@contextlib.contextmanager
def engine(*needed: str) -> Iterator[Engine]:
    """With a configuration of its own. Raises Absent for what this machine has not."""
    for name in needed:
        if shutil.which(name) is None:
            raise Absent(f"no {name} (deploy/check/install-tools installs it)")
    if os.geteuid() != 0:
        raise Absent(f"{needed[0]} needs root here")
    with tempfile.TemporaryDirectory() as folder:
        yield Engine(Path(folder))


def image_there(run: Engine, image: str) -> bool:
    """Whether this machine has an image of this name."""
    return run.tried("buildah", "inspect", "--type", "image", image).returncode == 0


def scratch_image(
    run: Engine, image: str, *, packages: Sequence[str] = (), files: Sequence[tuple[Path, str]] = ()
) -> None:
    """Makes an image of Debian's packages and some files, under the name that manifests use: where
    no registry can be reached, it stands in for the one of that name."""
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "root.tar"
        include = ",".join(("ca-certificates", *packages))
        command = ("mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}")
        run.run(*command, "bookworm", str(tar), seconds=900)
        data = Path(folder) / "data"
        data.mkdir()
        container = run.run("buildah", "from", "scratch")
        try:
            run.run("buildah", "add", "--quiet", container, str(tar), "/")
            # Volumes take over the rights of the folder that they cover: podman has no fsGroup.
            run.run("buildah", "copy", "--quiet", "--chmod", "1777", container, str(data), "/data")
            for source, target in files:
                run.run("buildah", "copy", "--quiet", container, str(source), target)
            paths = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            run.run("buildah", "config", "--env", f"PATH={paths}", container)
            run.run("buildah", "commit", "--quiet", "--format", "docker", container, image)
        finally:
            run.tried("buildah", "rm", container)
