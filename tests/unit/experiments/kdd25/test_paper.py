"""The transcription of the paper, against what can be computed and against itself."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from experiments.kdd25 import paper
from forward_ofa.cost import (
    cloud_modules_cost,
    device_modules_cost,
    mean_network_cost,
    network_cost,
)
from forward_ofa_device.backbones.contract import BackboneConfig

RAW = tomllib.loads(Path(paper.__file__).with_name("paper.toml").read_text())
BLOCKS = {"sasrec": 6, "nextitnet": 12}
SETS = ("ml-1m", "ml-10m", "amazon-game", "amazon-food")
TABLES = ("table1", "table2", "table3", "table4", "table7")


def config(backbone: str) -> BackboneConfig:
    return BackboneConfig(backbone, blocks=BLOCKS[backbone])


def value(table: str, backbone: str, dataset: str, system: str, column: str) -> float:
    found = paper.figure(table, backbone, dataset, system, column)
    assert found is not None
    return found.value


@pytest.mark.parametrize("backbone", BLOCKS)
@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("system", ["device-rec", "finetune", "duet"])
def test_dense_networks_of_table_1_cost_what_the_cost_library_says(backbone, dataset, system):
    cost = network_cost(config(backbone), BLOCKS[backbone])
    assert value("table1", backbone, dataset, system, "mflops") == round(cost.flops.paper / 1e6, 4)
    assert value("table1", backbone, dataset, system, "mbit") == round(cost.parameter_mbit, 4)


@pytest.mark.parametrize("backbone", BLOCKS)
@pytest.mark.parametrize("dataset", SETS)
def test_flops_and_param_of_forward_ofa_are_of_one_number_of_blocks(backbone, dataset):
    """So neither is misread; the one figure that did not fit is settled to one that does."""
    none, one = (network_cost(config(backbone), k).parameter_mbit for k in (0, 1))
    kept = (value("table1", backbone, dataset, "forward-ofa", "mbit") - none) / (one - none)
    assert 0 < kept < BLOCKS[backbone]
    mflops, _, _ = mean_network_cost(config(backbone), kept)
    assert value("table1", backbone, dataset, "forward-ofa", "mflops") == pytest.approx(
        mflops, abs=4e-4
    )


@pytest.mark.parametrize("backbone", BLOCKS)
def test_table_5_is_the_cost_library_to_the_digit(backbone):
    network = network_cost(config(backbone), BLOCKS[backbone])
    device, cloud = device_modules_cost(config(backbone), 5), cloud_modules_cost(config(backbone))
    assert paper.component(backbone, "backbone", "mflops").value == round(
        network.flops.paper / 1e6, 4
    )
    assert paper.component(backbone, "backbone", "param").value == round(network.parameter_mbit, 4)
    # The paper cuts Forward-device's FLOPs off.
    assert paper.component(backbone, "device", "mflops").value == device.flops.paper // 100 / 1e4
    assert paper.component(backbone, "device", "param").value == round(device.parameters / 1e6, 4)
    assert paper.component(backbone, "cloud", "mflops").value == round(cloud.flops.paper / 1e6, 4)
    assert paper.component(backbone, "cloud", "param").value == round(cloud.parameters / 1e6, 4)


@pytest.mark.parametrize("backbone", BLOCKS)
def test_table_8s_device_column_is_its_cloud_column_scaled(backbone):
    seconds = paper.adaptation_seconds(backbone)
    printed = tomllib.loads(Path(paper.__file__).with_name("paper.toml").read_text())["table8"]
    speeds = printed["cloud_tflops"] * 1024 / printed["device_gflops"]
    assert round(seconds["cloud"] * speeds, 4) == seconds["device"]


def test_figures_that_two_tables_share_are_equal_unless_a_footnote_says_otherwise():
    differing = set()
    for backbone in BLOCKS:
        for dataset in SETS:
            for system in paper.rows("table1", backbone, dataset):
                for column in ("ndcg", "hit"):
                    found = {
                        table: paper.figure(table, backbone, dataset, system, column)
                        for table in ("table1", "table2", "table3", "table7")
                    }
                    if system == "forward-ofa":
                        found["table4"] = paper.figure("table4", backbone, dataset, system, column)
                    printed = {t: f for t, f in found.items() if f is not None}
                    if len({f.value for f in printed.values()}) > 1:
                        assert any(f.note for f in printed.values()), (backbone, dataset, system)
                        differing.add((backbone, dataset, system, column))
    assert len(differing) == 3


def test_every_erratum_is_of_a_figure_that_is_there_and_changes_it_or_explains_it():
    for entry in RAW["errata"]:
        table, backbone, dataset, *rest = entry["cell"].split(".")
        if table == "table5":
            figure = paper.component(backbone, dataset, rest[0])
        else:
            figure = paper.figure(table, backbone, dataset, rest[0], rest[1])
        assert figure is not None, entry["cell"]
        assert figure.note == entry["note"]
        assert figure.value == entry.get("settled", figure.printed)
        assert "settled" not in entry or figure.value != figure.printed


def test_quality_is_a_share_and_ndcg_is_never_above_hit():
    seen = 0
    for table in TABLES:
        for backbone in BLOCKS:
            for dataset in SETS:
                for system in paper.rows(table, backbone, dataset):
                    ndcg, hit = (
                        value(table, backbone, dataset, system, c) for c in ("ndcg", "hit")
                    )
                    assert 0 < ndcg < hit < 0.25
                    seen += 1
    assert seen == 56 + 18 + 36 + 42 + 24


def test_table_6_adds_up():
    for dataset in SETS:
        found = paper.statistics(dataset)
        assert round(found["interactions"] / found["users"], 2) == found["length"]
        share = 100 * (1 - found["interactions"] / (found["users"] * found["items"]))
        if dataset == "amazon-game":
            assert round(share, 2) == 99.97
            assert any("99.97" in note for note in paper.notes("table6"))
        else:
            assert found["sparsity"] == pytest.approx(share, abs=0.02)


def test_a_figure_that_the_paper_does_not_have_is_none():
    assert paper.figure("table1", "sasrec", "online-retail", "duet", "ndcg") is None
    assert paper.figure("table2", "sasrec", "ml-1m", "device-rec", "mflops") is None
    assert paper.statistics("online-retail") is None
