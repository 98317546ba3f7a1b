"""The PrometheusRule of components/monitoring: made of deploy/monitoring/rules, never by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deploy.check.builds import DEPLOY

RULES = DEPLOY / "monitoring" / "rules"
TARGET = DEPLOY / "components" / "monitoring" / "prometheus-rules.yaml"
_HEADER = (
    "# Made of deploy/monitoring/rules by `python -m deploy.check --write`; change it there.\n"
)


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        # Lists are indented, as in the other files.
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def generate() -> str:
    """The manifest. Groups come in the order of the files' names."""
    groups: list[Any] = []
    for path in sorted(RULES.glob("*.yaml")):
        groups += yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    labels = {
        "app.kubernetes.io/name": "forward-ofa",
        "app.kubernetes.io/part-of": "forward-ofa",
        "release": "kube-prometheus-stack",
    }
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "forward-ofa", "labels": labels},
        "spec": {"groups": groups},
    }
    return _HEADER + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=1_000)


def write() -> Path:
    """Brings the manifest up to date."""
    TARGET.write_text(generate(), encoding="utf-8")
    return TARGET


def is_fresh() -> bool:
    """Whether the manifest is what would be written."""
    return TARGET.read_text(encoding="utf-8") == generate()
