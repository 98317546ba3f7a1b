"""Rungs that are other people's tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from deploy.check import prometheus_rules
from deploy.check.builds import DEPLOY, OVERLAYS, overlay
from deploy.check.ladder import Absent, Outcome
from deploy.check.pods import ROOT

CHECKOV = "3.3.30"
_CHECKOV_PYTHON = ROOT / ".venv-checkov" / "bin" / "python"
_SECONDS = 300


def run(command: Sequence[str | Path], seconds: float = _SECONDS) -> tuple[int, str]:
    """Exit status, and all that it printed."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=seconds, check=False, cwd=ROOT,
    )  # fmt: skip
    return done.returncode, done.stdout.strip()


def pinned(name: str) -> str:
    """A tool of the pinned packages. Raises Absent."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise Absent(f"no {name}")
    return str(path)


def installed(name: str) -> str:
    """A tool of the system. Raises Absent."""
    path = shutil.which(name)
    if path is None:
        raise Absent(f"no {name} (deploy/check/install-tools installs it)")
    return path


def _said(status: int, output: str) -> list[str]:
    return output.splitlines() or [f"exit status {status}"] if status else []


def yamllint() -> Outcome:
    """All YAML under deploy/."""
    files = sorted({*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")})
    config = DEPLOY / "check" / "yamllint.yaml"
    status, output = run([pinned("yamllint"), "--strict", "-f", "parsable", "-c", config, *files])
    return Outcome(f"{len(files)} files", _said(status, output))


def hadolint() -> Outcome:
    """The Dockerfile."""
    dockerfile = ROOT / "Dockerfile"
    if not dockerfile.exists():
        raise Absent("no Dockerfile")
    status, output = run([pinned("hadolint"), dockerfile])
    return Outcome("Dockerfile", _said(status, output))


def promtool() -> Outcome:
    """Rules, as files and as they stand in the PrometheusRule."""
    tool, files = installed("promtool"), sorted(prometheus_rules.RULES.glob("*.yaml"))
    if not files:
        return Outcome("deploy/monitoring/rules", ["there are no rules"])
    status, output = run([tool, "check", "rules", *files])
    problems = _said(status, output)
    groups = yaml.safe_load(prometheus_rules.TARGET.read_text(encoding="utf-8"))["spec"]["groups"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as written:
        yaml.safe_dump({"groups": groups}, written)
        written.flush()
        status, output = run([tool, "check", "rules", written.name])
        problems += _said(status, output)
    count = sum(len(group["rules"]) for group in groups)
    return Outcome(f"{len(files)} files, {count} rules", problems)


def envoy() -> Outcome:
    """The gateway's configurations; with TLS they differ by the sockets alone."""
    tool = pinned("envoy")
    plain = DEPLOY / "components" / "gateway" / "envoy.yaml"
    secure = DEPLOY / "components" / "gateway-tls" / "envoy.yaml"
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for path in (plain, secure):
            text = re.sub(r"/etc/envoy/(\w+)\.yaml", rf"{secure.parent}/\1.yaml", path.read_text())
            copy = Path(folder) / f"{path.parent.name}.yaml"
            copy.write_text(text, encoding="utf-8")
            status, output = run([tool, "--mode", "validate", "-c", copy, "-l", "warning"])
            problems += _said(status, output)
            if not status and "eprecated" in output:
                problems.append(output)
    if _without_sockets(secure) != yaml.safe_load(plain.read_text(encoding="utf-8")):
        problems.append("gateway-tls/envoy.yaml differs from gateway/envoy.yaml in more than TLS")
    return Outcome("2 configurations", problems)


def _without_sockets(path: Path) -> object:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for listener in config["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            chain.pop("transport_socket", None)
    for cluster in config["static_resources"]["clusters"]:
        cluster.pop("transport_socket", None)
    return config


def checkov() -> Outcome:
    """Both overlays. It lives in an environment of its own, since it pins half of the world."""
    if not _CHECKOV_PYTHON.exists():
        _install_checkov()
    status, output = run([_CHECKOV_PYTHON, "-c", "import checkov.version as v; print(v.version)"])
    if output != CHECKOV:
        _install_checkov()
    problems, passed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name in OVERLAYS:
            (Path(folder) / f"{name}.yaml").write_text(overlay(name), encoding="utf-8")
        config = DEPLOY / "check" / "checkov.yaml"
        command: list[str | Path] = [_CHECKOV_PYTHON, "-m", "checkov.main", "--directory", folder]
        status, output = run([*command, "--config-file", config])
    found = re.search(r"Passed checks: (\d+), Failed checks: (\d+)", output)
    if found is None:
        problems.append(f"checkov did not end: {output[-2000:]}")
    else:
        passed = int(found[1])
        if status or int(found[2]) or not passed:
            problems += [line for line in output.splitlines() if line.strip()]
    return Outcome(f"{passed} checks passed", problems)


def _install_checkov() -> None:
    """Raises Absent where packages cannot be had."""
    uv, folder = pinned("uv"), _CHECKOV_PYTHON.parents[1]
    commands: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
        [uv, "pip", "install", "--quiet", "--python", _CHECKOV_PYTHON, f"checkov=={CHECKOV}"],
    ]
    for command in commands:
        status, output = run(command, seconds=600)
        if status:
            lines = output.splitlines()
            raise Absent(f"checkov cannot be installed: {lines[-1] if lines else status}")
