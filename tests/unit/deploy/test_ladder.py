"""The ladder counts what happened, and no rung can hide that it failed."""

from __future__ import annotations

import pytest

from deploy.check import __main__ as command
from deploy.check import prometheus_rules, tools
from deploy.check.builds import OPTIONAL, combinations
from deploy.check.ladder import Absent, Outcome, Rung, climb
from deploy.check.manifests import pod, volumes
from deploy.check.objects import World, parse


def absent() -> Outcome:
    raise Absent("no podman")


def broken() -> Outcome:
    raise KeyError("metadata")


def test_each_end_is_counted_and_told() -> None:
    rungs = [
        Rung("a", lambda: Outcome("3 files")),
        Rung("b", lambda: Outcome("2 files", ["x.yaml: wrong", *map(str, range(20))])),
        Rung("c", absent),
        Rung("d", broken),
    ]
    said: list[str] = []
    tally = climb(rungs, said.append)
    assert (tally.ok, tally.failed, tally.skipped) == (1, 2, 1)
    assert "skipped: no podman" in "\n".join(said)
    assert "    x.yaml: wrong" in said
    assert any("KeyError" in line for line in said)
    assert said[-1] == "1 ok, 2 failed, 1 skipped"


def test_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    for problems, status in (((), 0), (("wrong",), 1)):
        rung = Rung("only", lambda problems=problems: Outcome("x", problems))  # type: ignore[misc]
        monkeypatch.setattr(command, "ladder", lambda rung=rung, **_: [rung])
        monkeypatch.setattr("sys.argv", ["deploy.check"])
        assert command.main() == status


def test_nothing_built_is_no_success() -> None:
    built = command.Built()
    assert built.schemas().problems and built.rules().problems


def test_combinations_have_each_component_with_and_without() -> None:
    found = combinations()
    assert len(found) == len(set(found))
    for name in OPTIONAL:
        assert any(name in each for each in found)
        assert any(name not in each for each in found)
    for each in found:
        assert ("registry-volume" in each) != ("registry-s3" in each)
        assert ("redis-jobs" in each) != ("managed-redis" in each)
        assert {"gateway", "tls"} - set(each) or "gateway-tls" in each


def test_the_generated_rules_are_fresh_and_staleness_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    assert prometheus_rules.is_fresh(), "python -m deploy.check --write"
    monkeypatch.setattr(prometheus_rules, "generate", lambda: "other")
    assert not prometheus_rules.is_fresh()


def test_tools_that_are_not_there_are_absent() -> None:
    with pytest.raises(Absent, match="no such-tool"):
        tools.installed("such-tool")


POD = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  template:
    metadata: {labels: {app.kubernetes.io/component: store}}
    spec:
      serviceAccountName: store
      securityContext: {runAsUser: 10999}
      containers:
        - name: redis
          image: redis:7
          livenessProbe: {tcpSocket: {port: 1}}
          volumeMounts: [{name: data, mountPath: /data}, {name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {}}]
"""


def test_a_workload_as_a_pod() -> None:
    world = World(parse(POD))
    made = pod(world, world.workloads[0])
    assert made["metadata"]["name"] == "store"
    assert "serviceAccountName" not in made["spec"]
    assert made["spec"]["securityContext"] == {"runAsUser": 10999}
    container = made["spec"]["containers"][0]
    assert "livenessProbe" not in container
    assert [mount["name"] for mount in container["volumeMounts"]] == ["data", "store-tmp"]
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data-store-0"}}
    assert claim in made["spec"]["volumes"]
    assert set(volumes(world)) == {"store-tmp", "data-store-0"}
