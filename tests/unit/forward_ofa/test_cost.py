"""The paper's accounting, to the digit (Tables 1 and 5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forward_ofa.config import MethodConfig
from forward_ofa.cost import (
    PAPER_BACKBONES,
    block_costs,
    cloud_modules_cost,
    cost_table,
    device_modules_cost,
    generation_flops,
    mean_network_cost,
    network_cost,
)
from forward_ofa.model import ForwardOFA
from forward_ofa_device.backbones.contract import BackboneConfig

SASREC, NEXTITNET = PAPER_BACKBONES


@pytest.mark.parametrize(
    ("backbone", "flops", "mbit"), [(SASREC, 624_400, 3.9936), (NEXTITNET, 1_505_280, 9.584640)]
)
def test_full_networks(backbone: BackboneConfig, flops: int, mbit: float) -> None:
    cost = network_cost(backbone, backbone.blocks)
    assert cost.flops.paper == flops
    assert cost.parameter_mbit == pytest.approx(mbit, abs=1e-9)


@pytest.mark.parametrize("kept", range(7))
def test_every_number_of_kept_sasrec_blocks(kept: int) -> None:
    cost = network_cost(SASREC, kept)
    assert cost.flops.paper == 10_000 + 102_400 * kept
    assert cost.parameter_mbit == pytest.approx(0.6656 * kept, abs=1e-9)
    assert cost.payload_bytes == {
        "float32": 83_200 * kept,
        "float16": 41_600 * kept,
        "int8": 21_760 * kept,
    }


@pytest.mark.parametrize("kept", range(13))
def test_every_number_of_kept_nextitnet_blocks(kept: int) -> None:
    cost = network_cost(NEXTITNET, kept)
    assert cost.flops.paper == 30_720 + 122_880 * kept
    assert cost.parameter_mbit == pytest.approx(0.098304 + 0.790528 * kept, abs=1e-9)


@pytest.mark.parametrize(
    ("backbone", "kept", "flops", "mbit"),
    [
        (SASREC, 3.6384 / 0.6656, 0.5699, 3.6384),
        (SASREC, 3.0522 / 0.6656, 0.4795, 3.0522),
        (NEXTITNET, (3.8656 - 0.0983) / 0.7905, 0.6167, 3.8656),
        (NEXTITNET, (2.6816 - 0.0983) / 0.7905, 0.4324, 2.6816),
    ],
)
def test_mean_costs_of_table_1(
    backbone: BackboneConfig, kept: float, flops: float, mbit: float
) -> None:
    paper, _, parameters = mean_network_cost(backbone, kept)
    assert paper == pytest.approx(flops, abs=5e-4)
    assert parameters == pytest.approx(mbit, abs=2e-4)


@pytest.mark.parametrize(
    ("backbone", "parameters", "flops"), [(SASREC, 50_310, 254_464), (NEXTITNET, 50_700, 254_848)]
)
def test_modules_on_the_device(backbone: BackboneConfig, parameters: int, flops: int) -> None:
    cost = device_modules_cost(backbone, 5)
    assert (cost.parameters, cost.flops.paper) == (parameters, flops)


@pytest.mark.parametrize(
    ("backbone", "parameters", "paper", "true"),
    [(SASREC, 8_112_000, 262_144, 7_987_200), (NEXTITNET, 19_269_120, 786_432, 18_972_672)],
)
def test_modules_on_the_cloud(
    backbone: BackboneConfig, parameters: int, paper: int, true: int
) -> None:
    cost = cloud_modules_cost(backbone)
    assert (cost.parameters, cost.flops.paper, cost.flops.true) == (parameters, paper, true)
    assert generation_flops(backbone, 1) * backbone.blocks == true


def test_the_recipes_count_the_modules_that_are_really_there() -> None:
    for backbone in PAPER_BACKBONES:
        with torch.device("meta"):
            system = ForwardOFA(10, MethodConfig(backbone))
        device = [*system.controller.parameters(), *system.mapper.extractor.parameters()]
        cloud = system.mapper.hypernetworks.parameters()
        assert sum(p.numel() for p in device) == device_modules_cost(backbone, 5).parameters
        assert sum(p.numel() for p in cloud) == cloud_modules_cost(backbone).parameters
        with torch.device("meta"):
            factored = ForwardOFA(10, MethodConfig(backbone, bases=8)).mapper.hypernetworks
        cost = cloud_modules_cost(backbone, bases=8)
        assert sum(p.numel() for p in factored.parameters()) == cost.parameters
        assert cost.flops.true < cloud_modules_cost(backbone).flops.true / 7


def test_true_flops_count_attention_and_only_kept_blocks() -> None:
    paper, true = network_cost(SASREC, 6).flops.paper, network_cost(SASREC, 6).flops.true
    assert true - paper == 6 * 2 * 5 * 5 * 64
    assert network_cost(SASREC, 1).flops.true < network_cost(SASREC, 1).flops.paper
    assert network_cost(NEXTITNET, 0).flops.true == 0


def test_table_has_the_printed_figures_under_stable_keys() -> None:
    table = cost_table(SASREC, 5)
    assert table["full_network"]["paper_mflops"] == 0.6244
    assert table["full_network"]["paper_mbit"] == 3.9936
    assert table["forward_device"]["paper_mflops"] == 0.2545
    assert table["forward_device"]["paper_mflops_cut_off"] == 0.2544
    assert table["forward_cloud"]["mparameters"] == 8.112
    assert len(table["network_by_kept_blocks"]) == 7


@pytest.mark.parametrize("backbone", [SASREC, NEXTITNET])
def test_true_mbit_is_that_of_systems_with_as_many_blocks(backbone: BackboneConfig) -> None:
    rows = cost_table(backbone, 5)["network_by_kept_blocks"]
    expected = block_costs(backbone, np.arange(len(rows))).true_bits / 1e6
    assert [row["true_mbit"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)
    assert (rows[0]["true_mbit"] == rows[0]["paper_mbit"]) == (backbone is NEXTITNET)


@pytest.mark.parametrize("kept", [-1, 7])
def test_an_impossible_number_of_blocks_is_refused(kept: int) -> None:
    with pytest.raises(ValueError, match="0 to 6"):
        network_cost(SASREC, kept)
