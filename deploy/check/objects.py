"""Kubernetes objects as plain dictionaries, and the questions that the rules ask of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Object = Mapping[str, Any]
WORKLOADS = ("Deployment", "StatefulSet", "Job")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_LOADER)


def parse(text: str) -> list[Object]:
    """The documents of what a build printed. They are shared: do not change them."""
    return [found for part in re.split(r"(?m)^---$", text) if (found := _parse(part))]


def name_of(item: Object) -> str:
    """Kind and name, as people say it."""
    return f"{item['kind']}/{item['metadata']['name']}"


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether all of the selector is among the labels."""
    return all(labels.get(key) == value for key, value in selector.items())


@dataclass(frozen=True)
class Workload:
    """Something that makes pods."""

    item: Object

    @property
    def name(self) -> str:
        return name_of(self.item)

    @property
    def template(self) -> Any:
        return self.item["spec"]["template"]

    @property
    def pod(self) -> Any:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods."""
        found: dict[str, str] = self.template["metadata"]["labels"]
        return found

    @property
    def component(self) -> str:
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def replicas(self) -> int | None:
        """None: something else decides."""
        found: int | None = self.item["spec"].get("replicas")
        return found

    @property
    def containers(self) -> list[Any]:
        """Those that run, and those that run before."""
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    @property
    def main(self) -> Any:
        return self.pod["containers"][0]

    def ports(self) -> dict[str, int]:
        """Name -> number, of all containers."""
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", ())
        }


class World:
    """What one overlay builds."""

    def __init__(self, items: list[Object]) -> None:
        self.items = items
        self.workloads = [Workload(item) for item in items if item["kind"] in WORKLOADS]

    def of(self, kind: str) -> Iterator[Object]:
        """All of a kind."""
        return (item for item in self.items if item["kind"] == kind)

    def get(self, kind: str, name: str) -> Object | None:
        """One of them, if it is there."""
        return next((i for i in self.of(kind) if i["metadata"]["name"] == name), None)

    def selected(self, selector: Mapping[str, str]) -> list[Workload]:
        """Whose pods a selector finds; an empty one finds all."""
        return [each for each in self.workloads if matches(selector, each.labels)]

    def variables(self, container: Any) -> dict[str, str]:
        """The environment of a container as far as it is known: what comes from a Secret is
        `<secret NAME/KEY>`."""
        found: dict[str, str] = {}
        for variable in container.get("env", ()):
            name = variable["name"]
            if "value" in variable:
                found[name] = variable["value"]
                continue
            source = variable["valueFrom"]
            if "secretKeyRef" in source:
                ref = source["secretKeyRef"]
                found[name] = f"<secret {ref['name']}/{ref['key']}>"
            elif "configMapKeyRef" in source:
                ref = source["configMapKeyRef"]
                item = self.get("ConfigMap", ref["name"])
                found[name] = (item or {}).get("data", {}).get(ref["key"], "")
        return found

    def arguments(self, container: Any) -> list[str]:
        """What the process gets: $(NAME) replaced, as the kubelet does it."""
        known = self.variables(container)

        def replace(match: re.Match[str]) -> str:
            return known.get(match[1], match[0])

        return [re.sub(r"\$\(([A-Z_]+)\)", replace, str(a)) for a in container.get("args", ())]


def option(arguments: list[str], name: str) -> str | None:
    """The value of `--name=value` or `--name value`."""
    for position, word in enumerate(arguments):
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
        if word == name and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


_SUFFIXES = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip


def quantity(text: object) -> float:
    """Kubernetes' spelling of a number. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(text))
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity: use 500m, 2, 512Mi, 1Gi")
    return float(match[1]) * _SUFFIXES[match[2]]
