"""The dashboards' queries against a Prometheus, as Grafana would ask them."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parent / "grafana" / "dashboards"
Points = list[tuple[float, float]]
Series = dict[str, Points]


class QueryError(Exception):
    """Prometheus does not take the query, or cannot be reached."""


@dataclass(frozen=True)
class Drawn:
    """A panel of a committed dashboard. queries: (expression, legend). grid: x, y, width,
    height."""

    title: str
    kind: str
    unit: str
    stacked: bool
    levels: tuple[tuple[float | None, str], ...]
    queries: tuple[tuple[str, str], ...]
    grid: tuple[int, int, int, int]


def read_board(path: Path) -> tuple[str, list[Drawn]]:
    """Title and panels, with every variable at "All"; rows are panels of the kind `row`."""
    raw = json.loads(path.read_text())
    everything = {
        f"${variable['name']}": variable["allValue"]
        for variable in raw["templating"]["list"]
        if "allValue" in variable
    }
    panels = []
    for panel in raw["panels"]:
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        at = panel["gridPos"]
        steps = defaults.get("thresholds", {}).get("steps", [])
        custom = defaults.get("custom", {})
        panels.append(
            Drawn(
                panel["title"],
                panel["type"],
                defaults.get("unit", ""),
                custom.get("stacking", {}).get("mode") == "normal",
                tuple((step.get("value"), step["color"]) for step in steps),
                tuple(
                    (_with(t["expr"], everything), t["legendFormat"])
                    for t in panel.get("targets", ())
                ),
                (at.get("x", 0), at.get("y", 0), at["w"], at["h"]),
            )
        )
    return raw["title"], panels


def boards() -> Iterator[Path]:
    """The committed dashboards."""
    yield from sorted(DASHBOARDS.glob("*.json"))


def _with(expression: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression


def ask(prometheus: str, path: str, **parameters: Any) -> Any:
    """The `data` of an answer of Prometheus' API. Raises QueryError."""
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise QueryError(error.read().decode()[:500]) from error
    except OSError as error:
        raise QueryError(f"{prometheus} cannot be reached: {error}") from error


def over_time(
    prometheus: str, query: tuple[str, str], start: float, end: float, window: str = "30s"
) -> Series:
    """Legend -> points (seconds since 1970, value), without those that are no number."""
    expression, legend = query
    step = max(1.0, (end - start) / 240)
    found = ask(
        prometheus, "query_range",
        query=expression.replace("$__rate_interval", window), start=start, end=end, step=step,
    )  # fmt: skip
    series: Series = {}
    for one in found["result"]:
        name = legend
        for label, value in one["metric"].items():
            name = name.replace(f"{{{{{label}}}}}", value)
        name = re.sub(r"\{\{\w+\}\}", "", name).strip()
        points = [(float(at), float(value)) for at, value in one["values"]]
        points = [(at, value) for at, value in points if math.isfinite(value)]
        if points:
            series[name] = points
    return series
