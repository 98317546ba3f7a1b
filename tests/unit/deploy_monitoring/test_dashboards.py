"""The committed dashboards are what boards.py says, and panels lie beside one another."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess

import pytest
import yaml

from deploy.monitoring.boards import BOARDS
from deploy.monitoring.dashboards import FOLDER
from deploy.monitoring.panels import to_json
from deploy.monitoring.picture import said
from deploy.monitoring.queries import boards, read_board


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_fresh(board):
    assert (FOLDER / f"{board.uid}.json").read_text() == to_json(board), "run `make dashboards`"


def test_no_other_dashboards():
    assert {path.stem for path in FOLDER.iterdir()} == {board.uid for board in BOARDS}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_have_places_units_descriptions_and_the_source(board):
    raw = json.loads((FOLDER / f"{board.uid}.json").read_text())
    names = {variable["name"] for variable in raw["templating"]["list"]}
    assert {"datasource", "namespace", "job", "instance", "runbook"} <= names
    assert ("version" in names) == board.versions
    taken = set()
    for panel in raw["panels"]:
        at = panel["gridPos"]
        cells = set(
            itertools.product(
                range(at.get("x", 0), at.get("x", 0) + at["w"]),
                range(at.get("y", 0), at.get("y", 0) + at["h"]),
            )
        )
        assert not cells & taken and at.get("x", 0) + at["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "$datasource"
            assert all(target["expr"] for target in panel["targets"])
    title, drawn = read_board(FOLDER / f"{board.uid}.json")
    assert title == board.title and len(drawn) == len(raw["panels"])


def test_values_as_people_read_them():
    assert said(0.0123, "s") == "12.3 ms"
    assert said(0.999, "percentunit") == "99.9 %"
    assert said(249_600, "bytes") == "244 KiB"
    assert said(12, "reqps") == "12 req/s"


def test_every_query_can_be_parsed(tmp_path):
    """Each as a rule, by Prometheus' own parser."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: deploy/check/install-tools installs it")
    rules = [
        {"record": f"panel:{number}", "expr": query[0].replace("$__rate_interval", "1m")}
        for number, query in enumerate(
            query for path in boards() for panel in read_board(path)[1] for query in panel.queries
        )
    ]
    assert len(rules) > 60
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
