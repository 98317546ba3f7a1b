"""Rules about numbers of replicas."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from deploy.check.objects import Workload, World, name_of
from services.runtime.metrics import Metrics
from services.trainer.metrics import TrainerMetrics


def fewest(world: World, each: Workload) -> int:
    """Replicas that are always wanted."""
    for scaler in world.of("HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] == each.item["metadata"]["name"]:
            return int(scaler["spec"]["minReplicas"])
    return 1 if each.replicas is None else each.replicas


def budgets(world: World) -> Iterator[str]:
    """A disruption budget lets a machine be emptied; each service has one."""
    covered = set()
    for budget in world.of("PodDisruptionBudget"):
        spec = budget["spec"]
        for each in world.selected(spec["selector"]["matchLabels"]):
            covered.add(each.name)
            if "minAvailable" in spec and spec["minAvailable"] >= fewest(world, each):
                yield f"{name_of(budget)}: no pod of {each.name} could ever be moved"
            if spec.get("maxUnavailable", 1) < 1:
                yield f"{name_of(budget)}: no pod of {each.name} could ever be moved"
    for each in world.workloads:
        if each.item["kind"] == "Deployment" and fewest(world, each) > 1:  # noqa: SIM102
            if each.name not in covered:
                yield f"{each.name}: has replicas, but no PodDisruptionBudget"


def targets(world: World) -> Iterator[str]:
    """Autoscalers scale something that is there and that sets no number itself."""
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for scaler in world.of(kind):
            ref, spec = scaler["spec"]["scaleTargetRef"], scaler["spec"]
            target = world.get(ref.get("kind", "Deployment"), ref["name"])
            if target is None:
                yield f"{name_of(scaler)}: there is no {ref['name']}"
            elif "replicas" in target["spec"]:
                yield f"{name_of(scaler)}: {name_of(target)} says a number of replicas itself"
            least = spec.get("minReplicas", spec.get("minReplicaCount", 1))
            most = spec.get("maxReplicas", spec.get("maxReplicaCount", 1))
            if least > most:
                yield f"{name_of(scaler)}: at least {least}, but at most {most}"


@functools.cache
def known_metrics() -> frozenset[str]:
    """Names of all series that our processes export."""
    registries = [Metrics().registry, *(TrainerMetrics(worker=w).registry for w in (True, False))]
    found = set()
    for registry in registries:
        for family in registry.collect():
            found |= {family.name, f"{family.name}_total"} | {s.name for s in family.samples}
            if family.type == "histogram":
                found |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return frozenset(found)


def metrics(world: World) -> Iterator[str]:
    """What autoscalers look at is exported."""
    for scaler in world.of("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            name = metric.get("pods", {}).get("metric", {}).get("name")
            if name is not None and name not in known_metrics():
                yield f"{name_of(scaler)}: nobody exports {name}"
    for scaler in world.of("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            for name in re.findall(r"\bforward_ofa_\w+", trigger["metadata"]["query"]):
                if name not in known_metrics():
                    yield f"{name_of(scaler)}: nobody exports {name}"
