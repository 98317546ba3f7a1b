"""The last rungs: the image is built, and the pods of the manifests run and serve a device."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import envoy
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from deploy.check.builds import REDIS, combination, ordered
from deploy.check.engine import Engine, Failed, engine, image_there, scratch_image
from deploy.check.ladder import Absent, Outcome
from deploy.check.manifests import document, volumes
from deploy.check.objects import Workload, World, option, parse, quantity
from deploy.check.pods import ROOT, version

NETWORK = "forward-ofa-check"
# Who has to be there before whom; the order also shows that nobody minds when others are late.
ORDER = (
    "first-version", "gateway", "controller", "assembler", "redis-sessions", "redis-jobs",
    "mapper", "trainer-api", "trainer-beat", "trainer-worker",
)  # fmt: skip
_READY_SECONDS = 120
# Seconds on a machine that has nothing else to do.
_TRAINING_SECONDS = 900
_TRIES = 15


def image() -> Outcome:
    """With buildah, on a base of Debian's packages, as `make image` would."""
    script = ROOT / "deploy" / "image" / "build"
    if not script.exists():
        raise Absent("no deploy/image/build")
    with engine("buildah", "mmdebstrap") as run:
        _tried(run, "buildah", "rm", run.tried("buildah", "from", "scratch").stdout.strip())
        command = ("env", "ENGINE=buildah", str(script), "--base", "local")
        try:
            said = run.run(*command, seconds=1_500)
        except Failed as failed:
            return Outcome("forward-ofa", [str(failed)])
    return Outcome(said.splitlines()[-1])


def pods() -> Outcome:
    """The real manifests, on one network, with the real image."""
    with engine("podman", "buildah", "mmdebstrap") as run:
        ours = f"forward-ofa:{version()}"
        if not image_there(run, ours):
            raise Absent(f"no image {ours}: the rung before has to make it")
        chosen = {"gateway", "first-version", "registry-volume", *REDIS[0]}
        world = World(parse(combination(ordered(chosen))))
        _stand_ins(run, world)
        with _clean(run, world):
            # Of our image nothing but that a container of it can be made.
            command = ("podman", "run", "--rm", "--network", NETWORK, "--entrypoint", "/bin/true")
            _tried(run, *command, "--memory", "64m", ours)
            try:
                told = Cluster(run, world).climb()
            except Failed as failed:
                return Outcome("pods", [str(failed)])
    return Outcome(told)


def _stand_ins(run: Engine, world: World) -> None:
    """Redis and Envoy under the names that the manifests use, where no registry gives them."""
    for each in world.workloads:
        name = each.main["image"]
        full = f"docker.io/{name}" if "/" in name else f"docker.io/library/{name}"
        if name.startswith("forward-ofa") or image_there(run, full):
            continue
        if name.startswith("redis:"):
            scratch_image(run, full, packages=["redis-server"])
        else:
            binary = Path(envoy.__file__).parent / "_bin" / "envoy"
            scratch_image(run, full, files=[(binary, "/usr/local/bin/envoy")])


def _tried(run: Engine, *command: str) -> None:
    """Raises Absent where this machine does not let the engine work at all."""
    done = run.tried(*command)
    if done.returncode:
        said = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise Absent(f"{command[0]} does not work on this machine: {said}")


@contextmanager
def _clean(run: Engine, world: World) -> Iterator[None]:
    """Before and after: none of our pods, volumes and networks."""

    def remove() -> None:
        for each in world.workloads:
            run.tried("podman", "pod", "rm", "--force", "--time", "5", each.component)
        for name in volumes(world):
            run.tried("podman", "volume", "rm", "--force", name)
        run.tried("podman", "network", "rm", "--force", NETWORK)

    remove()
    _tried(run, "podman", "network", "create", NETWORK)
    try:
        yield
    finally:
        remove()


class Cluster:
    """One pod of each workload."""

    def __init__(self, run: Engine, world: World) -> None:
        self._run, self._world = run, world
        self._workloads = {each.component: each for each in world.workloads}

    def climb(self) -> str:
        """All that has to hold, one after the other. Raises Failed."""
        missing = set(self._workloads) ^ set(ORDER)
        if missing:
            raise Failed(f"no order for {', '.join(sorted(missing))}")
        for name in ORDER:
            self._play(name)
        for name in ORDER[1:]:
            self._wait_ready(name)
        for name in ORDER[1:]:
            self._confined(name)
        said = [self._device(), self._grpc_web(), self._job(), self._sized()]
        said.append(self._stopped("assembler"))
        return f"{len(ORDER)} pods; " + "; ".join(said)

    def _play(self, name: str) -> None:
        each = self._workloads[name]
        text = document(self._world, each)
        network = f"{NETWORK}:alias={name}"
        command = ("podman", "play", "kube", "--network", network, "-")
        self._run.run(*command, given=text, seconds=_TRAINING_SECONDS)
        if each.item["kind"] != "Job":
            return
        waits = ("podman", "wait", self._container(name))
        status = self._run.run(*waits, seconds=_TRAINING_SECONDS)
        if status != "0":
            raise Failed(f"{name} ended with {status}:\n{self._logs(name)}")

    def _container(self, name: str) -> str:
        return f"{name}-{self._workloads[name].main['name']}"

    def _logs(self, name: str) -> str:
        done = self._run.tried("podman", "logs", "--tail", "20", self._container(name))
        return done.stdout + done.stderr

    def address(self, name: str) -> str:
        """Of a pod, on our network."""
        form = "{{.InfraContainerID}}"
        infra = self._run.run("podman", "pod", "inspect", "--format", form, name)
        inspected = json.loads(self._run.run("podman", "inspect", infra))
        return str(inspected[0]["NetworkSettings"]["Networks"][NETWORK]["IPAddress"])

    def _wait_ready(self, name: str) -> None:
        """Asks the readiness probe of the manifest, as the kubelet would."""
        each = self._workloads[name]
        until = time.monotonic() + _READY_SECONDS
        while True:
            said = self._probed(each, each.main["readinessProbe"])
            if not said:
                return
            if time.monotonic() > until:
                raise Failed(f"{name} is not ready: {said}\n{self._logs(name)}")
            time.sleep(0.5)

    def _probed(self, each: Workload, probe: dict[str, dict[str, object]]) -> str:
        """Empty: it passes."""
        name = each.component
        if "exec" in probe:
            command = [str(word) for word in probe["exec"]["command"]]  # type: ignore[attr-defined]
            done = self._run.tried("podman", "exec", self._container(name), *command)
            return "" if done.returncode == 0 else done.stdout + done.stderr
        host = self.address(name)
        try:
            if "grpc" in probe:
                asked = str(probe["grpc"].get("service", ""))
                return _health(f"{host}:{probe['grpc']['port']}", asked)
            port = each.ports()[str(probe["httpGet"]["port"])]
            connection = http.client.HTTPConnection(host, port, timeout=5)
            connection.request("GET", str(probe["httpGet"]["path"]))
            status = connection.getresponse().status
            return "" if status == 200 else f"HTTP {status}"
        except OSError as error:
            return str(error)

    def _confined(self, name: str) -> None:
        """The security context holds: the user, the root, the capabilities."""
        container, each = self._container(name), self._workloads[name]
        user = str(each.pod["securityContext"]["runAsUser"])
        found = json.loads(self._run.run("podman", "inspect", container))[0]
        status = self._run.run("podman", "exec", container, "cat", "/proc/1/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        held = {
            f"user {user}": user in (found["Config"]["User"] or "").split(":"),
            "no effective capability": int(fields["CapEff"], 16) == 0,
            "no new privileges": fields["NoNewPrivs"] == "1",
            "a read-only root": bool(found["HostConfig"]["ReadonlyRootfs"]),
            "a limit of memory": found["HostConfig"]["Memory"] > 0,
        }
        wrong = [text for text, holds in held.items() if not holds]
        if wrong:
            raise Failed(f"{name} runs without {', '.join(wrong)}")
        touch = self._run.tried("podman", "exec", container, "touch", "/written")
        if touch.returncode == 0:
            raise Failed(f"{name} can write to its root")

    def _device(self) -> str:
        """A device in a container of its own gets a network through the gateway."""
        arguments = ("--controller", "gateway:8080", "--allow-insecure", "--history", self._items())
        said = self._patiently("device", "one", *arguments, "--json")
        told = json.loads(said.splitlines()[-1])
        if not told["updated"] or told["error"] or not told["ranking"]:
            raise Failed(f"a device got no network: {said}")
        for name in ("controller", "assembler", "mapper"):
            if self._answered(name) < 1:
                raise Failed(f"a device was served, but {name} says that it answered no call")
        return f"a device got {sum(told['path'])} blocks, {told['artefact_bytes']:,} bytes"

    def _patiently(self, *arguments: str) -> str:
        """As a device does: a refusal that says when to come again is no failure."""
        for _ in range(_TRIES):
            try:
                return self._ours(*arguments)
            except Failed as error:
                if "may be asked again" not in str(error):
                    raise
                time.sleep(2)
        return self._ours(*arguments)

    def _items(self) -> str:
        form = "{{.Mountpoint}}"
        folder = Path(self._run.run("podman", "volume", "inspect", "--format", form, "registry"))
        catalogue = next(folder.glob("versions/*/catalogue.json"))
        read = json.loads(catalogue.read_text(encoding="utf-8"))
        return ",".join(str(item) for item in read["item_ids"][:8])

    def _answered(self, name: str) -> int:
        return int(self._exported(name, r'forward_ofa_requests_total\{.*code="OK".*\}'))

    def _exported(self, name: str, series: str) -> float:
        """The sum of the series that match."""
        connection = http.client.HTTPConnection(self.address(name), 9100, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return sum(float(value) for value in re.findall(rf"(?m)^{series} (\S+)$", text))

    def _sized(self) -> str:
        """After some calls and a job each of ours fits what it requests."""
        told = []
        for name, each in self._workloads.items():
            resident = 0.0
            if "metrics" in each.ports() and name != "gateway":
                resident = self._exported(name, "process_resident_memory_bytes")
                told.append(f"{name} {resident / 2**20:.0f}")
            requested = quantity(each.main["resources"]["requests"]["memory"])
            if resident > requested:
                raise Failed(f"{name} takes {resident:,.0f} bytes, but requests {requested:,.0f}")
        return "resident MiB: " + ", ".join(told)

    def _ours(self, *arguments: str, seconds: float = 120) -> str:
        # A name per call: podman keeps a killed one's name for a moment.
        name = f"check-{arguments[0]}-{time.monotonic_ns()}"
        command = ("podman", "run", "--rm", "--name", name, "--network", NETWORK)
        image = f"forward-ofa:{version()}"
        return self._run.run(*command, "--read-only", image, *arguments, seconds=seconds)

    def _grpc_web(self) -> str:
        """What a browser would send: health over gRPC-Web, HTTP/1.1."""
        connection = http.client.HTTPConnection(self.address("gateway"), 8080, timeout=10)
        headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
        path = "/grpc.health.v1.Health/Check"
        connection.request("POST", path, body=b"\0\0\0\0\0", headers=headers)
        reply = connection.getresponse()
        body = reply.read()
        serving = health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()
        framed = b"\0" + len(serving).to_bytes(4, "big") + serving
        if reply.status != 200 or not body.startswith(framed) or b"grpc-status:0" not in body:
            raise Failed(f"gRPC-Web: HTTP {reply.status}, {body[:200]!r}")
        connection.request("POST", "/forward_ofa_api.mapper.v1.MapperService/Map", headers=headers)
        if connection.getresponse().status != 404:
            raise Failed("the gateway passes on the mapper's calls")
        return "gRPC-Web answered"

    def _job(self) -> str:
        """The trainer trains and publishes what the services then serve."""
        job: tuple[str, ...] = (
            "--data",
            "synthetic",
            "--recipe",
            "quick",
            "--gate",
            "off",
            "--watch",
        )
        # As small as the first version, which it would replace.
        job += ("--set", "method.backbone.blocks=2", "--set", "method.backbone.hidden=16")
        trainer = ("--server", "trainer-api:50071", "--allow-insecure")
        self._ours("jobs", *trainer, "submit", *job, seconds=_TRAINING_SECONDS)
        return "a job published a version"

    def _stopped(self, name: str) -> str:
        """SIGTERM ends a service in order, within the grace period of the manifest."""
        each = self._workloads[name]
        grace = each.pod["terminationGracePeriodSeconds"]
        container, begun = self._container(name), time.monotonic()
        self._run.run("podman", "stop", "--time", str(grace), container)
        took = time.monotonic() - begun
        form = "{{.State.ExitCode}}"
        status = self._run.run("podman", "inspect", "--format", form, container)
        delay = float(option(self._world.arguments(each.main), "--drain-delay") or 0)
        if status != "0" or not delay <= took < grace:
            raise Failed(f"{name} ended with {status} after {took:.1f} s\n{self._logs(name)}")
        return f"{name} drained in {took:.0f} s"


def _health(target: str, service: str) -> str:
    with grpc.insecure_channel(target) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        try:
            answer = ask(health_pb2.HealthCheckRequest(service=service), timeout=5)
        except grpc.RpcError as error:
            return str(error.code())
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else "NOT_SERVING"
