"""Each rule of deploy/check finds what it is there for: a sound build, broken in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from deploy.check import schemas
from deploy.check.builds import REDIS, combination, ordered, overlay
from deploy.check.objects import World, parse, quantity
from deploy.check.rules import RULES

Break = Callable[[World], None]


@pytest.fixture(scope="module")
def built() -> dict[str, list[Any]]:
    chosen = {"registry-volume", "gateway", "network-policies", "canary-release", "first-version"}
    plain = ordered({*chosen, *REDIS[0]})
    return {"production": parse(overlay("production")), "plain": parse(combination(plain))}


def world_of(built: dict[str, list[Any]], name: str) -> World:
    return World(copy.deepcopy(built[name]))


def get(world: World, kind: str, name: str) -> Any:
    found = world.get(kind, name)
    assert found is not None, f"{kind}/{name} is not built"
    return found


def deployment(world: World, name: str) -> Any:
    return get(world, "Deployment", name)["spec"]


def main(world: World, name: str) -> Any:
    return deployment(world, name)["template"]["spec"]["containers"][0]


def argument(world: World, name: str, old: str, new: str | None) -> None:
    arguments = main(world, name)["args"]
    position = next(n for n, word in enumerate(arguments) if word.startswith(old))
    arguments[position : position + 1] = [] if new is None else [new]


def policy(world: World, name: str) -> Any:
    return get(world, "NetworkPolicy", name)["spec"]


def drop(world: World, kind: str, name: str) -> None:
    world.items.remove(get(world, kind, name))


PRODUCTION, PLAIN = "production", "plain"
BROKEN: list[tuple[str, str, Break, str]] = [
    ("selectors", PLAIN,
     lambda w: get(w, "Service", "mapper")["spec"]["selector"].update({"x": "y"}), "no pod"),
    ("selectors", PLAIN,
     lambda w: deployment(w, "mapper")["selector"]["matchLabels"].update({"x": "y"}), "own pods"),
    ("selectors", PLAIN,
     lambda w: deployment(w, "controller")["selector"]["matchLabels"].pop("forward-ofa/track"),
     "finds the pods of"),
    ("selectors", PRODUCTION, lambda w: drop(w, "Service", "gateway-metrics"), "scraped"),
    ("selectors", PLAIN,
     lambda w: get(w, "PodDisruptionBudget", "mapper")["spec"]["selector"].update(
         matchLabels={"x": "y"}), "no pod"),
    ("ports", PLAIN, lambda w: argument(w, "mapper", "--listen", "--listen=0.0.0.0:1"), "--listen"),
    ("ports", PLAIN,
     lambda w: argument(w, "mapper", "--metrics", "--metrics=0.0.0.0:1"), "--metrics"),
    ("ports", PLAIN,
     lambda w: argument(w, "assembler", "--mapper", "--mapper=dns:///mapper:1"), "port 1"),
    ("ports", PLAIN,
     lambda w: argument(w, "assembler", "--mapper", "--mapper=dns:///maper:50063"), "maper"),
    ("ports", PLAIN,
     lambda w: get(w, "Service", "mapper")["spec"].pop("clusterIP"), "not headless"),
    ("ports", PLAIN,
     lambda w: get(w, "Service", "mapper")["spec"]["ports"][0].update(targetPort="rpc"), "rpc"),
    ("ports", PRODUCTION,
     lambda w: get(w, "Service", "gateway")["spec"]["ports"][0].update(
         appProtocol="kubernetes.io/h2c"), "without TLS"),
    ("references", PLAIN, lambda w: drop(w, "PersistentVolumeClaim", "registry"), "no Persistent"),
    ("references", PLAIN, lambda w: drop(w, "ServiceAccount", "mapper"), "ServiceAccount"),
    ("references", PRODUCTION, lambda w: drop(w, "Certificate", "assembler"), "assembler-tls"),
    ("references", PRODUCTION, lambda w: drop(w, "Issuer", "internal"), "no Issuer internal"),
    ("references", PLAIN,
     lambda w: main(w, "mapper")["env"][0]["valueFrom"]["configMapKeyRef"].update(key="X"),
     "with X is not there"),
    ("references", PLAIN,
     lambda w: main(w, "mapper")["volumeMounts"][0].update(name="x"), "no volume"),
    ("references", PRODUCTION,
     lambda w: main(w, "controller")["volumeMounts"][-1].update(subPath="x"), "subPath"),
    ("labels", PLAIN,
     lambda w: get(w, "Service", "mapper")["metadata"].update(namespace="default"), "namespace"),
    ("labels", PLAIN,
     lambda w: get(w, "Service", "mapper")["metadata"].update(name="assembler"), "twice"),
    ("probes", PLAIN, lambda w: main(w, "mapper").pop("startupProbe"), "no startupProbe"),
    ("probes", PLAIN,
     lambda w: main(w, "mapper")["livenessProbe"]["grpc"].pop("service"), "health of ''"),
    ("probes", PLAIN,
     lambda w: main(w, "mapper")["livenessProbe"]["grpc"].update(port=1), "port 1"),
    ("probes", PLAIN,
     lambda w: main(w, "mapper")["args"].append("--tls-cert=x"), "know no TLS"),
    ("probes", PRODUCTION,
     lambda w: main(w, "controller")["readinessProbe"]["httpGet"].update(path="/livez"), "/livez"),
    ("resources", PLAIN,
     lambda w: main(w, "mapper")["resources"]["requests"].update(memory="9Gi"), "more memory"),
    ("resources", PLAIN,
     lambda w: main(w, "mapper")["resources"]["requests"].update(cpu="1 core"), "no quantity"),
    ("resources", PLAIN, lambda w: main(w, "mapper")["resources"].pop("limits"), "no limit"),
    ("resources", PRODUCTION,
     lambda w: argument(w, "controller", "--registry-cache-bytes",
                        "--registry-cache-bytes=20000000000"), "too small"),
    ("security", PLAIN,
     lambda w: main(w, "mapper")["securityContext"].update(readOnlyRootFilesystem=False),
     "read-only root"),
    ("security", PLAIN,
     lambda w: deployment(w, "mapper")["template"]["spec"]["securityContext"].pop("runAsNonRoot"),
     "runAsNonRoot"),
    ("shutdown", PLAIN,
     lambda w: argument(w, "mapper", "--drain-seconds", "--drain-seconds=25"), "of grace"),
    ("shutdown", PLAIN,
     lambda w: argument(w, "mapper", "--drain-delay", "--drain-delay=1"), "is over before"),
    ("shutdown", PRODUCTION,
     lambda w: main(w, "gateway")["lifecycle"].update(preStop={"sleep": {"seconds": 60}}),
     "of grace"),
    ("shutdown", PLAIN,
     lambda w: main(w, "gateway")["lifecycle"]["preStop"]["exec"]["command"].append("sleep 20"),
     "up to 40 s"),
    ("images", PLAIN, lambda w: main(w, "mapper").update(image="forward-ofa:9"), "not version"),
    ("images", PLAIN, lambda w: main(w, "gateway").update(image="x/envoy"), "no fixed tag"),
    ("images", PLAIN, lambda w: main(w, "mapper").update(image="r/forward-ofa:0.1.0"), "several"),
    ("files", PLAIN,
     lambda w: argument(w, "trainer-api", "--home", "--home=/home"), "in no such volume"),
    ("files", PRODUCTION,
     lambda w: argument(w, "controller", "--tokens", "--tokens=/tokens"), "in no such volume"),
    ("files", PLAIN,
     lambda w: main(w, "trainer-worker")["volumeMounts"][-1].update(readOnly=True), "--registry"),
    ("commands", PLAIN, lambda w: main(w, "mapper")["args"].append("--no-such"), "--no-such"),
    ("commands", PLAIN,
     lambda w: w.get("Job", "first-version")["spec"]["template"]["spec"]["containers"][0][
         "args"].append("--no-such"), "Job/first-version: publish: No such option"),
    ("commands", PLAIN, lambda w: argument(w, "mapper", "--target", "--target=x"), "target is"),
    ("commands", PLAIN,
     lambda w: main(w, "trainer-worker")["args"].append("--slot=x"), "slot"),
    ("variables", PLAIN, lambda w: main(w, "mapper")["args"].append("--label=$(NO)"), "$(NO)"),
    ("variables", PLAIN,
     lambda w: main(w, "mapper")["env"].append({"name": "X", "value": "y"}), "nothing reads X"),
    ("budgets", PLAIN,
     lambda w: get(w, "PodDisruptionBudget", "mapper")["spec"].update(minAvailable=2), "moved"),
    ("budgets", PLAIN, lambda w: drop(w, "PodDisruptionBudget", "mapper"), "no PodDisruption"),
    ("targets", PRODUCTION, lambda w: drop(w, "Deployment", "assembler"), "there is no assembler"),
    ("targets", PRODUCTION, lambda w: deployment(w, "assembler").update(replicas=2), "itself"),
    ("metrics", PRODUCTION,
     lambda w: get(w, "ScaledObject", "trainer-worker")["spec"]["triggers"][0]["metadata"].update(
         query="sum(forward_ofa_no_such)"), "forward_ofa_no_such"),
    ("metrics", PRODUCTION,
     lambda w: get(w, "HorizontalPodAutoscaler", "assembler")["spec"]["metrics"].append(
         {"type": "Pods", "pods": {"metric": {"name": "forward_ofa_x"}}}), "forward_ofa_x"),
    ("arrows", PLAIN, lambda w: drop(w, "NetworkPolicy", "default-deny"), "by default"),
    ("arrows", PLAIN, lambda w: drop(w, "NetworkPolicy", "mapper"), "stop assembler -> mapper"),
    ("arrows", PLAIN, lambda w: policy(w, "assembler").pop("egress"), "stop assembler -> mapper"),
    ("arrows", PLAIN,
     lambda w: policy(w, "mapper")["ingress"][0].pop("from"), "let outside -> mapper"),
    ("arrows", PLAIN, lambda w: policy(w, "controller").update(egress=[{}]), "which nobody needs"),
    ("arrows", PLAIN, lambda w: drop(w, "NetworkPolicy", "dns"), "may not ask DNS"),
    ("arrows", PLAIN, lambda w: drop(w, "NetworkPolicy", "metrics"), "may not be scraped"),
    ("arrows", PRODUCTION,
     lambda w: drop(w, "NetworkPolicy", "egress-https"), "stop controller -> outside:443"),
]  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("where", ["production", "plain"])
def test_nothing_against_a_sound_build(built: dict[str, list[Any]], where: str, name: str) -> None:
    assert list(RULES[name](world_of(built, where))) == []


@pytest.mark.parametrize(
    ("rule", "where", "broken", "said"), BROKEN, ids=[f"{b[0]}-{b[3]}" for b in BROKEN]
)
def test_a_rule_finds_what_is_broken(
    built: dict[str, list[Any]], rule: str, where: str, broken: Break, said: str
) -> None:
    world = world_of(built, where)
    broken(world)
    # As a build would be read: what was removed is gone from all lists.
    problems = list(RULES[rule](World(world.items)))
    assert any(said in problem for problem in problems), problems


def test_each_rule_is_broken_by_a_case() -> None:
    assert {rule for rule, *_ in BROKEN} == set(RULES)


def test_schemas_take_what_is_built_and_refuse_what_is_not_known(
    built: dict[str, list[Any]],
) -> None:
    world = world_of(built, "production")
    assert [problem for item in world.items for problem in schemas.problems(item)] == []
    for kind, name in (("Deployment", "controller"), ("Certificate", "controller"),
                       ("ScaledObject", "trainer-worker"), ("ServiceMonitor", "forward-ofa"),
                       ("PrometheusRule", "forward-ofa"), ("Issuer", "internal")):  # fmt: skip
        item = get(world, kind, name)
        item["spec"]["replicaz"] = 1
        assert any("replicaz" in problem for problem in schemas.problems(item)), kind
    unknown = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"}}
    assert "no schema for example.com/v1/Thing" in schemas.problems(unknown)[0]


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2", 2), ("1Gi", 2**30), (1, 1), ("1.5G", 1.5e9)]
)
def test_quantities(text: object, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "1 Gi", "1GB", "-1", "Gi"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)
