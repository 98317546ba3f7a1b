"""`python -m deploy.check`: climbs the ladder; exit status 0 if no rung failed."""

from __future__ import annotations

import argparse
import sys

from deploy.check import containers, prometheus_rules, tools
from deploy.check.builds import worlds
from deploy.check.ladder import Outcome, Rung, climb
from deploy.check.objects import World
from deploy.check.rules import RULES
from deploy.check.schemas import problems as schema_problems


class Built:
    """All overlays and combinations, built once."""

    def __init__(self) -> None:
        self.worlds: list[tuple[str, World]] = []

    def build(self) -> Outcome:
        """Everything that can be built is built."""
        try:
            self.worlds = list(worlds())
        except ValueError as error:
            return Outcome("builds", [str(error)])
        return Outcome(f"{len(self.worlds)} overlays and combinations of components")

    def schemas(self) -> Outcome:
        """Each object once, however many builds have it."""
        items = {id(item): item for _, world in self.worlds for item in world.items}
        found = [problem for item in items.values() for problem in schema_problems(item)]
        return Outcome(f"{len(items)} objects", found or self._nothing())

    def rules(self) -> Outcome:
        """Each rule on each build."""
        found: dict[str, str] = {}
        for title, world in self.worlds:
            for name, rule in RULES.items():
                for problem in rule(world):
                    found.setdefault(f"{name}: {problem}", title)
        told = [f"{problem}\n  in {title}" for problem, title in found.items()]
        return Outcome(f"{len(RULES)} rules, {len(self.worlds)} builds", told or self._nothing())

    def _nothing(self) -> list[str]:
        return [] if self.worlds else ["nothing was built"]


def fresh() -> Outcome:
    """The generated manifest."""
    stale = "stale: python -m deploy.check --write"
    return Outcome(prometheus_rules.TARGET.name, [] if prometheus_rules.is_fresh() else [stale])


def ladder(*, with_containers: bool = True) -> list[Rung]:
    """From the cheapest to the dearest."""
    built = Built()
    rungs = [
        Rung("yamllint", tools.yamllint),
        Rung("kustomize", built.build),
        Rung("schemas", built.schemas),
        Rung("rules", built.rules),
        Rung("generated", fresh),
        Rung("promtool", tools.promtool),
        Rung("envoy", tools.envoy),
        Rung("hadolint", tools.hadolint),
        Rung("checkov", tools.checkov),
    ]
    if with_containers:
        rungs += [Rung("image", containers.image), Rung("pods", containers.pods)]
    return rungs


def main() -> int:
    """Exit status 1 if a rung failed."""
    parser = argparse.ArgumentParser(prog="python -m deploy.check", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the generated manifest anew")
    parser.add_argument("--only", default="", help="comma list of rungs")
    parser.add_argument("--no-containers", action="store_true", help="build and run no image")
    a = parser.parse_args()
    if a.write:
        print(f"wrote {prometheus_rules.write()}")
        return 0
    rungs = ladder(with_containers=not a.no_containers)
    names = [name for name in a.only.split(",") if name]
    unknown = set(names) - {rung.name for rung in rungs}
    if unknown:
        parser.error(f"no rung {', '.join(sorted(unknown))}: {', '.join(r.name for r in rungs)}")
    if {"schemas", "rules"} & set(names) and "kustomize" not in names:
        names.append("kustomize")
    return 1 if climb([r for r in rungs if not names or r.name in names]).failed else 0


if __name__ == "__main__":
    sys.exit(main())
