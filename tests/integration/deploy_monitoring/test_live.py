"""Every series, panel, rule and command of the runbook against the real thing: split services and a
trainer under load, scraped by a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.monitoring.live import live
from deploy.monitoring.picture import draw_all
from deploy.monitoring.queries import ask, boards, over_time, read_board

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="no prometheus: deploy/check/install-tools installs it",
    ),
]
MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
# Of an app's own making, or only there where something fails: named in rules, absent in a
# system that is well.
ABSENT_WHEN_WELL = {"forward_ofa_session_store_failures_total", "forward_ofa_canary_percent",
                    "forward_ofa_trainer_schedule_failures_total"}  # fmt: skip
# What a machine with little CPU for it brings about.
SLOW_MACHINE = {"ForwardOfaLatencyBurn", "ForwardOfaMapperQueueAge"}
SECONDS = 80
"""More than a minute: windows of days are looked at once a minute (rules/slo.yaml)."""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    with live(folder) as started:
        begun = time.time()
        time.sleep(SECONDS)
        yield started, begun


def named():
    """Every series of ours that a rule or a panel names, with the labels that it is asked for."""
    texts = [
        rule["expr"]
        for path in (MONITORING / "rules").glob("*.yaml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    for path in boards():
        texts += [query[0] for panel in read_board(path)[1] for query in panel.queries]
    found: dict[str, set[str]] = {}
    for text in texts:
        for name, filters in re.findall(r"\b(forward_ofa_\w+|process_\w+)(\{[^}]*\})?", text):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", filters))
            found.setdefault(name, set()).update(labels - {"namespace", "job", "instance"})
    return found


def test_what_rules_and_panels_name_is_there(running):
    scraped: dict[str, set[str]] = {}
    for address in running[0].targets.values():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    scraped.setdefault(sample.name, set()).update(sample.labels)
    for name, labels in named().items():
        if name not in ABSENT_WHEN_WELL:
            assert name in scraped, name
            assert labels <= scraped[name], (name, labels - scraped[name])


def test_every_panel_has_data(running):
    started, begun = running
    empty = [
        (path.stem, panel.title, query[1])
        for path in boards()
        for panel in read_board(path)[1]
        for query in panel.queries
        if not over_time(started.prometheus, query, begun, time.time())
    ]
    assert not empty


def test_every_rule_can_be_evaluated_and_only_expected_alerts_fire(running):
    started, _ = running
    groups = ask(started.prometheus, "rules")["groups"]
    assert len(groups) == 6
    for group in groups:
        for rule in group["rules"]:
            assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))
    alerts = ask(started.prometheus, "alerts")["alerts"]
    firing = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
    assert firing <= SLOW_MACHINE


def test_the_runbooks_commands_work(running):
    """Against the controller, or the process whose series they look for."""
    started, _ = running
    text = (MONITORING / "runbook.md").read_text()
    commands = [
        line for block in re.findall(r"```\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    assert len(commands) > 30
    folder = str(Path(sys.executable).parent)
    for command in dict.fromkeys(commands):
        part = "controller"
        if "forward_ofa_mapper" in command:
            part = "mapper"
        elif "forward_ofa_trainer" in command:
            part = "trainer-beat"
        environment = {
            **os.environ, "PATH": f"{folder}:{os.environ['PATH']}",
            "METRICS": started.targets[part], "PROMETHEUS": started.prometheus,
            "REGISTRY": str(started.registry), "TRAINER": started.trainer,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False,
            timeout=240,
        )  # fmt: skip
        nothing_failed_yet = "schedule_failures" in command or "_store_failures" in command
        assert done.returncode == 0 or nothing_failed_yet, (command, done.stderr)
        assert done.stdout or nothing_failed_yet, command


def test_reports_of_devices_arrive(running):
    """What devices count is what the product's board shows: hits are some of the touches."""
    started, _ = running
    found = ask(started.prometheus, "query", query="sum by (__name__) ({__name__=~'forward_ofa_"
                "online_(touches|hits)_total'})")["result"]  # fmt: skip
    values = {json.dumps(one["metric"]): float(one["value"][1]) for one in found}
    touches, hits = (
        next(value for name, value in values.items() if kind in name)
        for kind in ("touches", "hits")
    )
    assert 0 < hits < touches


def test_pictures_are_drawn(running, tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("no chromium: deploy/check/install-tools installs it")
    started, begun = running
    pictures = list(draw_all(started.prometheus, begun, time.time(), tmp_path))
    assert [path.stem for path in pictures] == ["operator", "product", "trainer"]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG") and 20_000 < path.stat().st_size < 300_000
