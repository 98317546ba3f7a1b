"""The rule about network policies: they allow the arrows of the call graph, and no other.

The arrows come from what the processes are told (--assembler, --mapper, the URLs of Redis and
registry, the gateway's clusters); what may pass comes from the policies, both ends of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import yaml

from deploy.check.objects import Object, Workload, World, matches, option

Arrow = tuple[str, str, int]
_OUTSIDE = "outside"
_EGRESS_PORTS = {"https": 443, "redis": 6379}


def arrows(world: World) -> Iterator[str]:
    """Where there are policies."""
    policies = list(world.of("NetworkPolicy"))
    if not policies:
        return
    yield from _denied_by_default(policies)
    wanted, allowed = wanted_arrows(world), allowed_arrows(world, policies)
    for source, target, port in sorted(wanted - allowed):
        yield f"the policies stop {source} -> {target}:{port}"
    for source, target, port in sorted(allowed - wanted):
        yield f"the policies let {source} -> {target}:{port} pass, which nobody needs"
    yield from _dns_and_metrics(world, policies)


def _denied_by_default(policies: Sequence[Object]) -> Iterator[str]:
    for policy in policies:
        spec = policy["spec"]
        closed = not spec.get("ingress") and not spec.get("egress")
        if spec["podSelector"] == {} and closed and len(spec["policyTypes"]) == 2:
            return
    yield "no policy denies by default"


def wanted_arrows(world: World) -> set[Arrow]:
    """Component -> component:port, and to and from the outside."""
    found: set[Arrow] = set()
    for each in world.workloads:
        arguments = world.arguments(each.main)
        for flag in ("--assembler", "--mapper"):
            target = option(arguments, flag)
            if target:
                host, _, port = target.removeprefix("dns:///").rpartition(":")
                found.add((each.component, host, int(port)))
        for flag in ("--sessions", "--broker"):
            found |= _redis(each.component, option(arguments, flag) or "")
        if (option(arguments, "--registry") or "").startswith("s3://"):
            found.add((each.component, _OUTSIDE, _EGRESS_PORTS["https"]))
        if each.component == "gateway":
            found.add((_OUTSIDE, "gateway", each.ports()["devices"]))
            found |= {("gateway", host, port) for host, port in clusters(world, each)}
    return found


def _redis(component: str, url: str) -> set[Arrow]:
    if url.startswith("<secret"):
        return {(component, _OUTSIDE, port) for port in (6379, 6380)}
    parts = urlsplit(url)
    return {(component, parts.hostname, parts.port or 6379)} if parts.hostname else set()


def clusters(world: World, gateway: Workload) -> set[tuple[str, int]]:
    """Host and port of what the gateway's Envoy calls, but itself."""
    volume = next(v for v in gateway.pod["volumes"] if v["name"] == "config")
    item = world.get("ConfigMap", volume["configMap"]["name"])
    if item is None:
        return set()
    config = yaml.safe_load(item["data"]["envoy.yaml"])
    found = set()
    for cluster in config["static_resources"]["clusters"]:
        for group in cluster["load_assignment"]["endpoints"]:
            for endpoint in group["lb_endpoints"]:
                address = endpoint["endpoint"]["address"]["socket_address"]
                if address["address"] != "127.0.0.1":
                    found.add((address["address"], address["port_value"]))
    return found


def allowed_arrows(world: World, policies: Sequence[Object]) -> set[Arrow]:
    """What passes both ends, metrics and DNS apart."""
    found: set[Arrow] = set()
    for source in world.workloads:
        for target in world.workloads:
            for name, port in target.ports().items():
                if name == "metrics" and not _passes(policies, "ingress", target, source, port):
                    continue
                if _passes(policies, "egress", source, target, port) and _passes(
                    policies, "ingress", target, source, port
                ):
                    found.add((source.component, target.component, port))
    for each in world.workloads:
        found |= {
            (_OUTSIDE, each.component, port)
            for port in each.ports().values()
            if _passes(policies, "ingress", each, None, port)
        }
        found |= {
            (each.component, _OUTSIDE, port)
            for port in (443, 6379, 6380, 80, 22)
            if _passes(policies, "egress", each, None, port)
        }
    return found


def _passes(
    policies: Sequence[Object], way: str, here: Workload, there: Workload | None, port: int
) -> bool:
    """there: None is somewhere outside of the cluster."""
    for policy in policies:
        if not matches(policy["spec"]["podSelector"].get("matchLabels", {}), here.labels):
            continue
        for rule in policy["spec"].get(way, ()):
            ends = rule.get("from" if way == "ingress" else "to")
            if _port(rule, port) and (ends is None or _end(ends, there)):
                return True
    return False


def _port(rule: Mapping[str, Any], port: int) -> bool:
    return "ports" not in rule or any(
        p["port"] == port and p.get("protocol", "TCP") == "TCP" for p in rule["ports"]
    )


def _end(ends: Sequence[Mapping[str, Any]], there: Workload | None) -> bool:
    return there is not None and any(
        "podSelector" in end
        and "namespaceSelector" not in end
        and matches(end["podSelector"].get("matchLabels", {}), there.labels)
        for end in ends
    )


def _dns_and_metrics(world: World, policies: Sequence[Object]) -> Iterator[str]:
    def opened(way: str, here: Workload, port: int) -> bool:
        # To or from pods of other namespaces.
        return any(
            matches(policy["spec"]["podSelector"].get("matchLabels", {}), here.labels)
            and any(p["port"] == port for p in rule.get("ports", ()))
            and any("namespaceSelector" in end for end in rule.get("from", rule.get("to", ())))
            for policy in policies
            for rule in policy["spec"].get(way, ())
        )

    for each in world.workloads:
        if not opened("egress", each, 53):
            yield f"{each.name}: may not ask DNS"
        metrics = each.ports().get("metrics")
        if metrics is not None and not opened("ingress", each, metrics):
            yield f"{each.name}: may not be scraped"
