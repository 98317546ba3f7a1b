"""Which combinations of components there are, and what they build."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.check.objects import World, parse

DEPLOY = Path(__file__).resolve().parents[1]
OVERLAYS = ("local", "production")
# In the order in which they have to stand in an overlay.
FIRST = ("canary-release", "canary-version", "gpu-trainer", "device-tokens")
REDIS = (("redis-sessions", "redis-jobs"), ("managed-redis",))
MIDDLE = (
    "tls", "gateway", "gateway-tls", "network-policies", "autoscaling", "gateway-autoscaling",
    "monitoring",
)  # fmt: skip
REGISTRY = ("registry-volume", "registry-s3")
LAST = ("mapper-with-assembler",)
OPTIONAL = (*FIRST, *MIDDLE, *LAST)
ENTANGLED = ("canary-release", "device-tokens", "tls", "gateway", "autoscaling", *LAST)
NEEDS = {"gateway-tls": {"gateway", "tls"}, "gateway-autoscaling": {"gateway"}}


def ordered(chosen: set[str]) -> tuple[str, ...]:
    """Components in the order in which kustomize has to get them."""
    first = ("canary-release", "canary-version", "first-version")
    every = (*first, *FIRST[2:], *itertools.chain(*REDIS), *MIDDLE, *REGISTRY, *LAST)
    return tuple(name for name in every if name in chosen)


def combinations() -> list[tuple[str, ...]]:
    """None and all of the optional components on each kind of registry and Redis; each alone, all
    but each, and each pair of those that change the same objects, on these kinds by turns."""
    extremes: tuple[tuple[str, ...], ...] = ((), OPTIONAL)
    places = list(itertools.product(REGISTRY, REDIS))
    picks: list[tuple[str, ...]] = [*itertools.combinations(OPTIONAL, 1)]
    picks += itertools.combinations(OPTIONAL, len(OPTIONAL) - 1)
    picks += itertools.combinations(ENTANGLED, 2)
    everything = [(place, pick) for place in places for pick in extremes]
    everything += [(places[n % len(places)], pick) for n, pick in enumerate(picks)]
    found: dict[tuple[str, ...], None] = {}
    for (registry, redis), pick in everything:
        chosen = {registry, *redis, *pick}
        # A component comes with what it needs, and TLS with its part of the gateway.
        for name in pick:
            chosen |= NEEDS.get(name, set())
        if {"gateway", "tls"} <= chosen:
            chosen.add("gateway-tls")
        found[ordered(chosen)] = None
    found[ordered({"registry-volume", "first-version", *REDIS[0]})] = None
    return list(found)


def kubectl() -> str:
    """The one of the pinned packages."""
    return str(Path(sys.executable).with_name("kubectl"))


def build(folder: Path) -> str:
    """What `kubectl kustomize` prints. Raises ValueError with what it says."""
    command = [kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or done.stderr.strip():
        # Warnings are of things that will stop working.
        raise ValueError(done.stderr.strip() or f"kubectl ended with {done.returncode}")
    return done.stdout


def overlay(name: str) -> str:
    """What one of ours builds."""
    return build(DEPLOY / "overlays" / name)


def combination(components: Sequence[str]) -> str:
    """What the base with these components builds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()

        def path(target: Path) -> str:
            # kustomize takes no absolute paths.
            return os.path.relpath(target, folder)

        lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
        lines += ["namespace: forward-ofa", "resources:", f"  - {path(DEPLOY / 'base')}"]
        lines += ["components:"]
        lines += [f"  - {path(DEPLOY / 'components' / name)}" for name in components]
        (folder / "kustomization.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return build(folder)


def worlds() -> Iterator[tuple[str, World]]:
    """All overlays and combinations, with a name for each. Raises ValueError."""
    for name in OVERLAYS:
        yield f"overlay {name}", World(parse(overlay(name)))
    for components in combinations():
        title = " + ".join(components)
        try:
            yield title, World(parse(combination(components)))
        except ValueError as error:
            raise ValueError(f"{title}: {error}") from error
