"""deploy/compose.yaml: what no schema sees. tests/e2e/test_compose.py runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.__main__ import read_settings
from services.trainer.__main__ import make_parser

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "deploy" / "compose.yaml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
HTTP = 9100


def substituted(text: str) -> str:
    """As with no variable set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(substituted(FILE.read_text()))


@pytest.fixture(scope="module")
def ours(compose) -> dict[str, Any]:
    image = f"forward-ofa:{VERSION}"
    return {name: one for name, one in compose["services"].items() if one["image"] == image}


def test_the_specification_allows_it(tmp_path: Path):
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [str(checker), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yaml"
    broken.write_text(FILE.read_text().replace("read_only:", "read_onyl:"))
    assert subprocess.run([*command, str(broken)], capture_output=True, check=False).returncode == 1


def test_everything_is_hardened_and_bounded(compose):
    for name, one in compose["services"].items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"] and "cap_add" not in one, name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit"} <= one.keys(), name
        assert not {"privileged", "network_mode", "pid", "ipc"} & one.keys(), name
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), name


def test_images_have_a_fixed_tag(compose):
    assert {one["image"] for one in compose["services"].values()} == {
        f"forward-ofa:{VERSION}",
        "docker.io/library/redis:7.2.11-bookworm",
        "docker.io/prom/prometheus:v2.53.0",
        "docker.io/grafana/grafana:11.6.0",
    }


def test_volumes_and_files_are_there(compose):
    for name, one in compose["services"].items():
        for volume in one.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (FILE.parent / source).exists(), f"{name}: {source}"
            else:
                assert source in compose["volumes"], f"{name}: {source}"


def test_who_waits_for_whom_can_happen(compose, ours):
    services = compose["services"]
    for name, one in services.items():
        for other, how in one.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                health = services[other].get("healthcheck", {})
                assert other in ours or health.get("test"), f"{name} waits for {other}"
                assert not health.get("disable"), f"{name} waits for {other}"
                continue
            assert how["condition"] == "service_completed_successfully"
            assert services[other]["restart"] == "no", f"{name} waits for {other}"


def test_the_services_understand_what_they_are_told(ours, tmp_path: Path):
    """Every option exists, ports and names are those of the others, health is asked where it is."""
    listening = {}
    for name, one in ours.items():
        command = one["command"]
        healthy = not one.get("healthcheck", {}).get("disable")
        if command[0] == "serve":
            arguments = [a.replace("/var/lib/forward-ofa", str(tmp_path)) for a in command[1:]]
            (tmp_path / "registry").mkdir(exist_ok=True)
            settings, _ = read_settings(arguments)
            listening[name] = int(settings.server.listen.rpartition(":")[2])
            assert healthy and settings.metrics == f"0.0.0.0:{HTTP}", name
            upstream = {address for address in (settings.mapper, settings.assembler) if address}
            listening.setdefault("asked", set()).update(upstream)
        elif command[0] == "trainer":
            assert make_parser().parse_args(command[1:]).metrics == f"0.0.0.0:{HTTP}"
            assert healthy
        else:
            assert not healthy, f"{name} has no HTTP port"
    asked = listening.pop("asked")
    assert asked == {f"dns:///{name}:{listening[name]}" for name in ("mapper", "assembler")}
    told = json.dumps([one["command"] for one in ours.values()])
    for name, port in (("controller", 50051), ("trainer-api", 50071)):
        assert listening[name] == port and f"={name}:{port}" in told
        assert ours[name]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_names_agree_with_the_rest(compose, ours):
    """With the cluster, and so with what Prometheus scrapes."""
    assert {
        "controller",
        "assembler",
        "mapper",
        "trainer-api",
        "trainer-worker",
        "trainer-beat",
    } < (ours.keys())
    assert {"redis-sessions", "redis-jobs", "prometheus", "grafana"} < compose["services"].keys()
    scraped = yaml.safe_load((FILE.parent / "monitoring" / "prometheus.yml").read_text())
    text = json.dumps(scraped["scrape_configs"])
    for name, one in ours.items():
        if not one.get("healthcheck", {}).get("disable"):
            assert f"{name}:{HTTP}" in text, f"nobody scrapes {name}"


def test_rules_and_dashboards_are_where_they_are_looked_for(compose):
    volumes = compose["services"]["grafana"]["volumes"]
    inside = {volume.split(":")[0]: volume.split(":")[1] for volume in volumes}
    provider = FILE.parent / "monitoring" / "grafana" / "provisioning" / "dashboards"
    paths = [
        one["options"]["path"]
        for path in provider.glob("*.yaml")
        for one in yaml.safe_load(path.read_text())["providers"]
    ]
    assert paths == [inside["./monitoring/grafana/dashboards"]]
