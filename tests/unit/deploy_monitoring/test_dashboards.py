"""The committed dashboards are what boards.py says, and panels lie beside one another."""

from __future__ import annotations

import itertools
import json

import pytest

from deploy.monitoring.boards import BOARDS
from deploy.monitoring.dashboards import FOLDER
from deploy.monitoring.panels import to_json
from deploy.monitoring.picture import said
from deploy.monitoring.queries import read_board


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
