"""deploy/README.md names what there is: components, overlays, Secrets, rungs."""

from __future__ import annotations

import re

from deploy.check.__main__ import ladder
from deploy.check.builds import DEPLOY, OVERLAYS, combinations
from deploy.check.rules import FROM_PEOPLE

TEXT = (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_all_components_and_only_these() -> None:
    folders = {path.name for path in (DEPLOY / "components").iterdir()}
    table = TEXT.partition("## Components")[2].partition("## Checks")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == folders
    assert {name for each in combinations() for name in each} == folders


def test_overlays_secrets_and_rungs() -> None:
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} == set(OVERLAYS)
    for name in OVERLAYS:
        assert f"deploy/overlays/{name}" in TEXT
    for name in FROM_PEOPLE:
        assert f"create secret generic {name}" in TEXT
    rows = TEXT.rpartition("| rung |")[2]
    for rung in ladder():
        assert re.search(rf"\| .*\b{rung.name}\b.* \|", rows), rung.name
