"""The manifests of an overlay as `podman play kube` takes them: one pod after the other.

podman knows neither Services nor Deployments with all that they say, so a workload becomes a Pod
with its template as it is. Left out is what the kubelet and the scheduler do: probes (the rung
asks them itself), accounts, spreading; $(NAME) in arguments is put in here.
"""

from __future__ import annotations

import copy
from typing import Any

import yaml

from deploy.check.objects import Workload, World

# Ports: podman would take each of them on this machine too.
_LEFT_OUT = ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "ports")
_NOT_PODMANS = ("serviceAccountName", "topologySpreadConstraints", "terminationGracePeriodSeconds")


def pod(world: World, each: Workload) -> dict[str, Any]:
    """Name: that of the component, which is also the name that others call."""
    template = copy.deepcopy(each.template)
    spec = {key: value for key, value in template["spec"].items() if key not in _NOT_PODMANS}
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        for key in _LEFT_OUT:
            container.pop(key, None)
        # podman leaves $(NAME) as it is.
        container["args"] = world.arguments(container)
    for claim in each.item["spec"].get("volumeClaimTemplates", ()):
        name = claim["metadata"]["name"]
        source = {"claimName": f"{name}-{each.component}-0"}
        spec.setdefault("volumes", []).append({"name": name, "persistentVolumeClaim": source})
    _own_volumes(spec, each.component)
    spec.setdefault("restartPolicy", "Always")
    labels = template["metadata"]["labels"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": each.component, "labels": labels},
        "spec": spec,
    }


def _own_volumes(spec: dict[str, Any], component: str) -> None:
    """podman names the volume of an emptyDir as the pod does: two pods would share theirs."""
    names = {v["name"]: f"{component}-{v['name']}" for v in spec["volumes"] if "emptyDir" in v}
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    for named in [*spec["volumes"], *(m for c in containers for m in c.get("volumeMounts", ()))]:
        named["name"] = names.get(named["name"], named["name"])


def document(world: World, each: Workload) -> str:
    """The pod and the ConfigMaps, as one file."""
    parts = [pod(world, each), *(dict(item) for item in world.of("ConfigMap"))]
    return "---\n".join(yaml.safe_dump(part, sort_keys=False) for part in parts)


def volumes(world: World) -> list[str]:
    """Names of all that podman makes a volume of: claims, emptyDirs, ConfigMaps."""
    kinds = ("PersistentVolumeClaim", "ConfigMap")
    found = [item["metadata"]["name"] for kind in kinds for item in world.of(kind)]
    for each in world.workloads:
        found += [v["name"] for v in pod(world, each)["spec"]["volumes"] if "emptyDir" in v]
        for claim in each.item["spec"].get("volumeClaimTemplates", ()):
            found.append(f"{claim['metadata']['name']}-{each.component}-0")
    return found
