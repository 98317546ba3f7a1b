"""Rules, their tests and the runbook belong together."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yaml"))
TESTS = sorted((MONITORING / "rule_tests").glob("*.yaml"))
CONFIGS = {"prometheus.yml": "promtool check config", "alertmanager.yml": "amtool check-config"}


def alerts():
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def run(*command, cwd=MONITORING):
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}: deploy/check/install-tools installs it")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_each_alert_is_described_and_has_a_heading_of_the_runbook():
    headings = re.findall(r"^## (\S+)$", (MONITORING / "runbook.md").read_text(), re.M)
    assert len(headings) == len(set(headings))
    assert set(headings) == {alert["alert"] for alert in alerts()}
    for alert in alerts():
        notes = alert["annotations"]
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
        assert notes["summary"] and notes["description"], alert["alert"]
        link = f"deploy/monitoring/runbook.md#{alert['alert'].lower()}"
        assert notes["runbook"] == link


def test_links_inside_the_runbook_lead_somewhere():
    text = (MONITORING / "runbook.md").read_text()
    headings = {name.lower() for name in re.findall(r"^## (\S+)$", text, re.M)}
    assert set(re.findall(r"\]\(#(\S+?)\)", text)) <= headings
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        for part in ("**For users**", "**Quick checks**", "**Causes", "**Over when**", "```"):
            assert part in section, (section.splitlines()[0], part)


def test_each_alert_has_cases_that_fire_and_that_do_not():
    """Each window of a burn rate by itself."""
    fires, quiet = set(), set()
    for path in TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            selectors = case["promql_expr_test"][0]["expr"]
            name = tuple(re.findall(r'(?:alertname|window)="([^"]+)"', selectors))
            used = {s for one in case["input_series"]
                    for s in re.findall(r'namespace="([^"]+)"', one["series"])}  # fmt: skip
            samples = case["promql_expr_test"][0]["exp_samples"]
            expected = {s for one in samples
                        for s in re.findall(r'namespace="([^"]+)"', one["labels"])}  # fmt: skip
            assert expected == {s for s in used if s.startswith("fires")}
            fires.update([name] * bool(samples))
            quiet.update([name] * bool(used - expected))
    labels = [(alert["alert"], alert["labels"].get("window")) for alert in alerts()]
    wanted = {(name, window) if window else (name,) for name, window in labels}
    assert fires == quiet == wanted


def test_configurations_are_valid():
    for name, command in CONFIGS.items():
        code, text = run(*command.split(), name)
        assert code == 0, text
    code, text = run("promtool", "check", "rules", *map(str, RULES))
    assert code == 0, text


@pytest.mark.slow
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules_fire_when_they_should(path):
    code, text = run("promtool", "test", "rules", str(path))
    assert code == 0, text


@pytest.mark.slow
@pytest.mark.parametrize("expression", ["vector(0) > 1", "count by (namespace) ({__name__!=''})"])
def test_the_cases_notice_an_alert_that_never_or_always_fires(tmp_path, expression):
    """Or they would prove nothing."""
    shutil.copytree(MONITORING / "rules", tmp_path / "rules")
    shutil.copytree(MONITORING / "rule_tests", tmp_path / "rule_tests")
    broken = yaml.safe_load((tmp_path / "rules/trainer.yaml").read_text())
    for rule in broken["groups"][0]["rules"]:
        rule["expr"] = expression
    (tmp_path / "rules/trainer.yaml").write_text(yaml.safe_dump(broken))
    code, text = run("promtool", "test", "rules", "rule_tests/trainer_minutes.yaml", cwd=tmp_path)
    assert code == 1
    count = len(yaml.safe_load((tmp_path / "rule_tests/trainer_minutes.yaml").read_text())["tests"])
    assert text.count("time: ") == count, text


def test_grafana_finds_what_is_mounted():
    """The files that provision it name the same source and folder."""
    folder = MONITORING / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())
    assert [source["type"] for source in sources["datasources"]] == ["prometheus"]
    providers = yaml.safe_load((folder / "dashboards/forward-ofa.yaml").read_text())["providers"]
    assert providers[0]["options"]["path"] == "/var/lib/grafana/dashboards"
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    for job in jobs:
        assert job["static_configs"] == [{"targets": [f"{job['job_name']}:9100"]}]
