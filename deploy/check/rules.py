"""Our own rules: what schemas cannot know. Each is a function from what an overlay builds to
problems; `RULES` has all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from deploy.check import commands, network, pods, scaling
from deploy.check.objects import Workload, World, matches, name_of, option

Rule = Callable[[World], Iterator[str]]
# Made by people, never committed; deploy/README.md says how. Secret -> keys (None: any).
FROM_PEOPLE: dict[str, set[str] | None] = {
    "device-tokens": {"tokens"},
    "redis-urls": {"sessions", "jobs"},
    "registry-credentials": None,
}
_TLS_KEYS = {"tls.crt", "tls.key", "ca.crt"}


def selectors(world: World) -> Iterator[str]:
    """Selectors find what they are meant to find, and nothing else."""
    owned = [each for each in world.workloads if "selector" in each.item["spec"]]
    for each in owned:
        chosen = each.item["spec"]["selector"]["matchLabels"]
        for other in world.selected(chosen):
            if other.name != each.name:
                yield f"{each.name}: its selector finds the pods of {other.name} too"
        if not matches(chosen, each.labels):
            yield f"{each.name}: its selector does not find its own pods"
        for spread in each.pod.get("topologySpreadConstraints", ()):
            if not matches(spread["labelSelector"]["matchLabels"], each.labels):
                yield f"{each.name}: a spread constraint does not find its own pods"
    for service in world.of("Service"):
        if not world.selected(service["spec"].get("selector", {"none": ""})):
            yield f"{name_of(service)}: its selector finds no pod"
    for budget in world.of("PodDisruptionBudget"):
        if not world.selected(budget["spec"]["selector"]["matchLabels"]):
            yield f"{name_of(budget)}: its selector finds no pod"
    for monitor in world.of("ServiceMonitor"):
        yield from _monitored(world, monitor["spec"])


def _monitored(world: World, spec: dict[str, object]) -> Iterator[str]:
    chosen = spec["selector"]["matchLabels"]  # type: ignore[index]
    wanted = {endpoint["port"] for endpoint in spec["endpoints"]}  # type: ignore[attr-defined]
    found = [s for s in world.of("Service") if matches(chosen, s["metadata"]["labels"])]
    for each in world.workloads:
        if "metrics" not in each.ports():
            continue
        mine = [s for s in found if matches(s["spec"]["selector"], each.labels)]
        if not any(port["name"] in wanted for s in mine for port in s["spec"]["ports"]):
            yield f"{each.name}: has metrics, but no Service by which they are scraped"


def ports(world: World) -> Iterator[str]:
    """Services, probes and callers name ports that exist, with the numbers that are listened on."""
    for service in world.of("Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for each in world.selected(service["spec"]["selector"]):
                if target not in each.ports() and target not in each.ports().values():
                    yield f"{name_of(service)}: {each.name} has no port {target}"
                secure = any(v["name"] == "tls" for v in each.pod.get("volumes", ()))
                if secure and port.get("appProtocol") == "kubernetes.io/h2c":
                    yield f"{name_of(service)}: h2c is without TLS, and {each.name} has it"
    for each in world.workloads:
        numbers = list(each.ports().values())
        if len(numbers) != len(set(numbers)):
            yield f"{each.name}: two ports have one number"
        arguments = world.arguments(each.main)
        for name, flag in (("grpc", "--listen"), ("metrics", "--metrics")):
            address = option(arguments, flag)
            if address and each.ports().get(name) != int(address.rpartition(":")[2]):
                yield f"{each.name}: {flag} {address} is not its port {name}"
        for flag in ("--assembler", "--mapper"):
            target = option(arguments, flag)
            if target:
                yield from _reached(world, each, flag, target.removeprefix("dns:///"))
        for flag in ("--sessions", "--broker"):
            url = urlsplit(option(arguments, flag) or "")
            if url.hostname and "." not in url.hostname:
                yield from _reached(world, each, flag, f"{url.hostname}:{url.port or 6379}")


def _reached(world: World, each: Workload, flag: str, target: str) -> Iterator[str]:
    host, _, port = target.rpartition(":")
    service = world.get("Service", host)
    if service is None:
        yield f"{each.name}: {flag} names the Service {host}, which is not there"
    elif int(port) not in [known["port"] for known in service["spec"]["ports"]]:
        yield f"{each.name}: {flag} names port {port}, which Service/{host} has not"
    elif flag != "--sessions" and service["spec"].get("clusterIP") != "None":
        yield f"{each.name}: Service/{host} is not headless, so calls would all go to one pod"


def references(world: World) -> Iterator[str]:
    """ConfigMaps, Secrets, accounts and volumes that are named are there, with these keys."""
    made = {item["spec"]["secretName"] for item in world.of("Certificate")}
    used_keys: dict[str, set[str]] = {}
    for each in world.workloads:
        if world.get("ServiceAccount", each.pod.get("serviceAccountName", "")) is None:
            yield f"{each.name}: no such ServiceAccount"
        for container in each.containers:
            for variable in container.get("env", ()):
                for kind, ref in variable.get("valueFrom", {}).items():
                    used_keys.setdefault(ref["name"], set()).add(ref["key"])
                    yield from _key(world, each, kind, ref["name"], ref["key"])
            for source in container.get("envFrom", ()):
                if "secretRef" not in source or source["secretRef"]["name"] not in FROM_PEOPLE:
                    yield f"{each.name}: envFrom names something that nobody makes: {source}"
            yield from _mounts(each, container)
        for volume in each.pod.get("volumes", ()):
            yield from _volume(world, each, volume, made)
    for item in world.of("ConfigMap"):
        name = item["metadata"]["name"]
        if name.startswith("forward-ofa-"):
            for key in set(item["data"]) - used_keys.get(name, set()):
                yield f"ConfigMap/{name}: nothing reads {key}"
    for item in world.of("Certificate"):
        yield from _issuer(world, item["metadata"]["name"], item["spec"])


def _issuer(world: World, name: str, spec: dict[str, dict[str, str]]) -> Iterator[str]:
    ref = spec["issuerRef"]
    if ref["kind"] == "Issuer" and world.get("Issuer", ref["name"]) is None:
        yield f"Certificate/{name}: there is no Issuer {ref['name']}"


def _key(world: World, each: Workload, kind: str, name: str, key: str) -> Iterator[str]:
    if kind == "configMapKeyRef":
        item = world.get("ConfigMap", name)
        if item is None or key not in item["data"]:
            yield f"{each.name}: ConfigMap {name} with {key} is not there"
    elif kind == "secretKeyRef" and key not in (FROM_PEOPLE.get(name) or ()):
        yield f"{each.name}: nobody makes a Secret {name} with {key}"


def _mounts(each: Workload, container: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    volumes = {volume["name"] for volume in each.pod.get("volumes", ())}
    volumes |= {c["metadata"]["name"] for c in each.item["spec"].get("volumeClaimTemplates", ())}
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"{each.name}: mounts {mount['name']}, which is no volume of it"
        if "subPath" in mount:
            yield f"{each.name}: {mount['mountPath']} by subPath would never change; use the folder"


def _volume(
    world: World, each: Workload, volume: dict[str, dict[str, str]], made: set[str]
) -> Iterator[str]:
    if "configMap" in volume and world.get("ConfigMap", volume["configMap"]["name"]) is None:
        yield f"{each.name}: ConfigMap {volume['configMap']['name']} is not there"
    if "secret" in volume:
        name = volume["secret"]["secretName"]
        if name not in made and name not in FROM_PEOPLE:
            yield f"{each.name}: nobody makes the Secret {name}"
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]["claimName"]
        if world.get("PersistentVolumeClaim", claim) is None:
            yield f"{each.name}: there is no PersistentVolumeClaim {claim}"


def labels(world: World) -> Iterator[str]:
    """All is in one namespace and says what it belongs to; no two objects have one name."""
    seen = set()
    for item in world.items:
        meta = item["metadata"]
        if name_of(item) in seen:
            yield f"{name_of(item)}: twice"
        seen.add(name_of(item))
        if item["kind"] != "Namespace" and meta.get("namespace") != "forward-ofa":
            yield f"{name_of(item)}: not in the namespace forward-ofa"
        if meta.get("labels", {}).get("app.kubernetes.io/part-of") != "forward-ofa":
            yield f"{name_of(item)}: without the label app.kubernetes.io/part-of"
        if item["kind"] == "Secret":
            yield f"{name_of(item)}: a Secret with a value does not belong into manifests"


RULES: dict[str, Rule] = {
    "selectors": selectors,
    "ports": ports,
    "references": references,
    "labels": labels,
    "probes": pods.probes,
    "resources": pods.resources,
    "security": pods.security,
    "shutdown": pods.shutdown,
    "images": pods.images,
    "files": pods.files,
    "commands": commands.commands,
    "variables": commands.variables,
    "budgets": scaling.budgets,
    "targets": scaling.targets,
    "metrics": scaling.metrics,
    "arrows": network.arrows,
}
