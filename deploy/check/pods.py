"""Rules about pods: probes, resources, security, shutdown, images, files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.check.objects import Workload, World, option, quantity
from services.runtime.health import LIVENESS
from services.runtime.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
OURS = ("forward-ofa", "forward-ofa-canary", "forward-ofa-gpu")
_SPARE_SECONDS = 3


def version() -> str:
    """Of this project, as pyproject.toml says."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def image_name(image: str) -> str:
    """Without registry and tag."""
    return image.rpartition("/")[2].partition(":")[0].partition("@")[0]


def probes(world: World) -> Iterator[str]:
    """All three, of things that exist: gRPC health only without TLS, which the kubelet has not."""
    for each in world.workloads:
        if each.item["kind"] == "Job":
            continue
        arguments = world.arguments(each.main)
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = each.main.get(kind)
            if probe is None:
                yield f"{each.name}: no {kind}"
                continue
            yield from (f"{each.name}: {kind}: {p}" for p in _probe(each, kind, probe, arguments))


def _probe(each: Workload, kind: str, probe: Any, arguments: list[str]) -> Iterator[str]:
    if "grpc" in probe:
        asked = probe["grpc"].get("service", "")
        if option(arguments, "--tls-cert"):
            yield "the kubelet's gRPC probes know no TLS"
        if probe["grpc"]["port"] != each.ports().get("grpc"):
            yield f"port {probe['grpc']['port']} is not the port grpc"
        if asked != ("" if kind == "readinessProbe" else LIVENESS):
            yield f"asks for the health of {asked!r}"
    elif "httpGet" in probe:
        if probe["httpGet"]["port"] not in each.ports():
            yield f"there is no port {probe['httpGet']['port']}"
        if probe["httpGet"]["path"] != ("/readyz" if kind == "readinessProbe" else "/livez"):
            yield f"asks for {probe['httpGet']['path']}"
    elif "tcpSocket" in probe and probe["tcpSocket"]["port"] not in each.ports():
        yield f"there is no port {probe['tcpSocket']['port']}"


def resources(world: World) -> Iterator[str]:
    """Requests of CPU and memory, a limit of memory, requests within limits, disks large enough."""
    for each in world.workloads:
        for container in each.containers:
            yield from (f"{each.name}: {p}" for p in _resources(container.get("resources", {})))
        limit = option(world.arguments(each.main), "--registry-cache-bytes")
        for volume in each.pod.get("volumes", ()):
            size = (volume.get("emptyDir") or {}).get("sizeLimit")
            if volume["name"] == "registry-cache" and size and limit:  # noqa: SIM102
                if quantity(size) < 1.1 * float(limit):
                    yield f"{each.name}: {size} is too small for {limit} bytes of copies"
    for claim in world.of("PersistentVolumeClaim"):
        quantity(claim["spec"]["resources"]["requests"]["storage"])


def _resources(found: Any) -> Iterator[str]:
    requests, limits = found.get("requests", {}), found.get("limits", {})
    for name in ("cpu", "memory"):
        if name not in requests:
            yield f"requests no {name}"
    if "memory" not in limits:
        yield "no limit of memory"
    for name, text in {**requests, **limits}.items():
        try:
            quantity(text)
        except ValueError as error:
            yield f"{name}: {error}"
            return
    for name in requests.keys() & limits.keys():
        if quantity(requests[name]) > quantity(limits[name]):
            yield f"requests more {name} than its limit"


def security(world: World) -> Iterator[str]:
    """What the restricted profile asks for, and a read-only root."""
    for each in world.workloads:
        pod = each.pod.get("securityContext", {})
        wanted = {
            "runAsNonRoot": pod.get("runAsNonRoot") is True,
            "a user above 10000": pod.get("runAsUser", 0) > 10_000,
            "seccompProfile RuntimeDefault": pod.get("seccompProfile")
            == {"type": "RuntimeDefault"},
            "automountServiceAccountToken false": each.pod.get("automountServiceAccountToken")
            is False,
            "no host namespaces": not any(
                each.pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")
            ),
        }
        for container in each.containers:
            context = container.get("securityContext", {})
            wanted["no privilege escalation"] = context.get("allowPrivilegeEscalation") is False
            wanted["a read-only root"] = context.get("readOnlyRootFilesystem") is True
            wanted["no capabilities"] = context.get("capabilities") == {"drop": ["ALL"]}
            yield from (
                f"{each.name}: {container['name']}: wanted {text}"
                for text, held in wanted.items()
                if not held
            )


def shutdown(world: World) -> Iterator[str]:
    """The grace period is longer than what a process takes to end in order."""
    for each in world.workloads:
        if each.item["kind"] == "Job":
            continue
        grace = each.pod.get("terminationGracePeriodSeconds", 30)
        arguments = world.arguments(each.main)
        needed = sum(
            float(option(arguments, flag) or 0)
            for flag in ("--drain-delay", "--drain-seconds", "--stop-seconds")
        )
        needed += _hook_seconds(each.main.get("lifecycle", {}).get("preStop", {}))
        if arguments[:1] == ["serve"] and option(arguments, "--drain-seconds") is None:
            needed += ServerSettings().drain_seconds
        if grace < needed + _SPARE_SECONDS:
            yield f"{each.name}: {grace} s of grace, but ending takes up to {needed:g} s"
        period = each.main.get("readinessProbe", {}).get("periodSeconds", 10)
        delay = option(arguments, "--drain-delay")
        if delay is not None and float(delay) <= period:
            yield f"{each.name}: --drain-delay {delay} is over before readiness is asked again"


def _hook_seconds(hook: Any) -> float:
    """What a preStop hook sleeps."""
    script = " ".join(hook.get("exec", {}).get("command", ()))
    slept = sum(float(seconds) for seconds in re.findall(r"\bsleep (\d+)\b", script))
    return slept + float(hook.get("sleep", {}).get("seconds", 0))


def images(world: World) -> Iterator[str]:
    """One image for all of ours, of this version; a fixed tag for all others."""
    seen = set()
    for each in world.workloads:
        for container in each.containers:
            image = container["image"]
            name, _, tag = image.rpartition("/")[2].partition(":")
            if not tag or tag == "latest":
                yield f"{each.name}: {image} has no fixed tag"
            if name in OURS and tag != version():
                yield f"{each.name}: {image} is not version {version()}"
            if name == OURS[0]:
                seen.add(image)
    if len(seen) > 1:
        yield f"several images of one name: {', '.join(sorted(seen))}"


_READ = ("--tls-cert", "--tls-key", "--tls-client-ca", "--upstream-ca", "--upstream-cert",
         "--upstream-key", "--tokens", "--schedules", "--jwt-keys", "--jwt-secret")  # fmt: skip
_WRITTEN = ("--home", "--cache", "--registry-cache", "--run-dir", "--ready-file")


def files(world: World) -> Iterator[str]:
    """Paths in arguments lie in volumes: what is written in one that can be written."""
    for each in world.workloads:
        for container in each.containers:
            arguments = world.arguments(container)
            writable = {
                mount["mountPath"]
                for mount in container.get("volumeMounts", ())
                if not mount.get("readOnly")
            }
            mounted = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
            wanted = [(flag, mounted) for flag in _READ]
            wanted += [(flag, writable) for flag in _WRITTEN]
            writes = _writes(arguments)
            wanted.append(("--registry", writable if writes else mounted))
            for flag, places in wanted:
                value = option(arguments, flag)
                if value is None or "://" in value:
                    continue
                parents = {str(p) for p in [PurePosixPath(value), *PurePosixPath(value).parents]}
                if not parents & places:
                    yield f"{each.name}: {flag} {value} lies in no such volume"


def _writes(arguments: list[str]) -> bool:
    """Whether this process publishes or labels versions."""
    if arguments[:1] == ["serve"]:
        return option(arguments, "--target") == "trainer"
    return arguments[:2] != ["trainer", "beat"]
