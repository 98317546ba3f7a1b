"""Gater: the estimator, what a closed filter does, and what it saves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from forward_ofa.baselines.gater import (
    Gater,
    GaterOptions,
    GaterTask,
    gater_costs,
    matrix_specs,
    semantic_hash,
)
from forward_ofa.evaluation import evaluate
from forward_ofa.ops import TorchOps
from forward_ofa_device.backbones.contract import BackboneConfig


def test_improved_semhash_is_hard_or_soft_forward_and_soft_backward() -> None:
    logits = torch.tensor([[-4.0, -0.5, 0.3, 4.0]] * 2, requires_grad=True)
    noise = torch.tensor([[0.0, 1.0, -0.5, 0.0]] * 2)
    hard = torch.tensor([[True], [False]])
    gates = semantic_hash(logits, hard, noise)
    noisy = (logits + noise).detach()
    soft = (1.2 * torch.sigmoid(noisy) - 0.1).clamp(0, 1)
    assert gates[0].tolist() == [0.0, 1.0, 0.0, 1.0]
    torch.testing.assert_close(gates[1], soft[1])
    gates.sum().backward()
    slope = 1.2 * torch.sigmoid(noisy) * (1 - torch.sigmoid(noisy))
    slope[:, [0, 3]] = 0  # saturated: the sigmoid is past its ends
    torch.testing.assert_close(logits.grad, slope)


def test_gates_of_each_window_equal_matrices_with_their_columns_taken_out(
    data, method, config, batch
) -> None:
    """The shared product with gates is the network with closed columns and biases at zero."""
    system = Gater(data.num_items, method.backbone, 0.0, GaterOptions()).eval()
    with torch.no_grad():
        for block in system.blocks:
            for value in block:
                value.add_(torch.randn_like(value) * 0.1)
    filters = (torch.rand(*batch.targets.shape, len(system.used)) < 0.5).float()
    found = system.vectors(batch, filters=filters)
    dense = TorchOps()
    for device, window in ((0, 0), (3, 1)):
        items = batch.windows[device, window]
        x = system.backbone.embed(dense, system.items(items), items > 0, system.shared_parameters())
        for index, part in enumerate(filters[device, window].chunk(method.backbone.blocks)):
            closed = system.block_parameters(index)
            columns = part.split([spec.shape[1] for spec in system.specs])
            for spec, gate in zip(system.specs, columns, strict=True):
                bias = spec.name.replace("weight", "bias")
                closed |= {spec.name: closed[spec.name] * gate, bias: closed[bias] * gate}
            x = system.backbone.block(
                dense, index, x, items > 0, closed, system.shared_parameters()
            )
        expected = system.backbone.readout(dense, x, system.shared_parameters())
        torch.testing.assert_close(found[device, window], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "blocks", "mflops", "mbit"),
    [("sasrec", 6, 0.6244, 3.9936), ("nextitnet", 12, 1.5053, 9.5846)],
)
def test_open_filters_cost_the_dense_network(
    backbone: str, blocks: int, mflops: float, mbit: float
) -> None:
    config = BackboneConfig(backbone, blocks=blocks)
    count = blocks * sum(spec.shape[1] for spec in matrix_specs(config))
    options = GaterOptions()
    alive, used = np.ones((2, count)), np.ones(count, dtype=bool)
    means = gater_costs(config, options, alive, used).means()
    assert (round(means["paper_mflops"], 4), round(means["paper_mbit"], 4)) == (mflops, mbit)
    system = Gater(10, config, 0.0, options)
    held = sum(p.numel() for n, p in system.named_parameters() if n != "items.weight")
    assert means["true_mbit"] == pytest.approx(held * 32 / 1e6)


def test_closed_filters_save_their_products_and_unused_ones_their_values() -> None:
    config = BackboneConfig("nextitnet", blocks=2)
    alive = np.ones((3, 256))
    alive[1, :10] = 0
    alive[2] = 0
    used = np.ones(256, dtype=bool)
    used[:4] = False
    dense = gater_costs(config, GaterOptions(), np.ones((3, 256)), np.ones(256, dtype=bool))
    found = gater_costs(config, GaterOptions(), alive, used)
    saved = dense.paper_flops - found.paper_flops
    assert saved.tolist() == [0, 10 * 192 * 5, 256 * 192 * 5]
    assert (dense.true_flops - found.true_flops).tolist() == saved.tolist()
    assert (dense.paper_bits - found.paper_bits).tolist() == [4 * 193 * 32] * 3


def test_a_higher_price_closes_more_filters(
    data, method, config, batch, trained, gradients
) -> None:
    config = dataclasses.replace(config, learning_rate=0.03, batch_size=32)
    shares = []
    for weight in (0.0, 30.0):
        options = GaterOptions(gate_weight=weight, warmup=0.0, open_share=1e-9, open_bias=1.0)
        task = GaterTask(data, method, config, options)
        assert set(gradients(task, batch)) == {name for name, _ in task.system.named_parameters()}
        records = trained(task)
        shares.append(records[-1]["live_filters"])
        best = max(records, key=lambda record: record["ndcg@10"])
        assert task.system.used.float().mean().item() == pytest.approx(best["used_filters"])
        means = evaluate(task.system, data, "validation").costs.means()
        open_filters = np.ones((1, len(task.system.used)))
        dense = gater_costs(method.backbone, options, open_filters, open_filters[0]).means()
        closed = 1 - means["paper_mflops"] / dense["paper_mflops"]
        assert (closed > 0.02) == (best["live_filters"] < 0.98)
    assert shares[1] < shares[0] - 0.1


def test_the_price_presses_towards_the_share_and_grows() -> None:
    gates = torch.tensor([[1.0, 1.0, 0.5, 0.0]], requires_grad=True)
    logits = torch.tensor([[2.0, 1.0, 0.1, -1.0]])  # three of four are open
    options = GaterOptions(gate_weight=2.0, warmup=0.5, open_share=0.7)
    assert options.price(gates, logits, 1.0, "sasrec").item() == pytest.approx(2 * 0.625)
    assert options.price(gates, logits, 0.25, "sasrec").item() == pytest.approx(0.625)
    options.price(gates, logits, 1.0, "sasrec").backward()
    torch.testing.assert_close(gates.grad, torch.full((1, 4), 0.5))
    assert GaterOptions(open_share=0.75).price(gates, logits, 1.0, "sasrec") == 0
    # By default the paper's shares: three quarters are below SASRec's and above NextItNet's.
    assert GaterOptions().price(gates, logits, 1.0, "sasrec") < 0
    assert GaterOptions().price(gates, logits, 1.0, "nextitnet") > 0


def test_filters_close_down_to_their_share(data, method, config, trained) -> None:
    config = dataclasses.replace(config, batch_size=32)
    options = GaterOptions(gate_weight=1.0, warmup=0.0, open_share=0.8, open_bias=1.0)
    records = trained(GaterTask(data, method, config, options))
    assert 0.75 < records[-1]["live_filters"] < 0.87


def test_filters_that_were_dropped_stay_closed(data, method, batch) -> None:
    system = Gater(data.num_items, method.backbone, 0.0, GaterOptions(open_bias=9.0)).eval()
    assert system.filters(system.logits(batch)).all()
    system.used[::2] = False
    filters = system.filters(system.logits(batch))
    assert not filters[..., ::2].any() and filters[..., 1::2].all()
    networks = system.networks(batch)
    assert networks.kept.all()
    assert networks.costs.paper_flops.shape == (len(batch.targets),)


def test_gates_depend_on_the_window_and_not_on_its_padding(data, method, batch) -> None:
    torch.manual_seed(0)
    options = GaterOptions(open_bias=0.0)
    system = Gater(data.num_items, method.backbone, 0.0, options).eval()
    with torch.no_grad():
        system.items.weight[1:].normal_()
    filters = system.filters(system.logits(batch))
    assert len(torch.unique(filters.flatten(0, 1), dim=0)) > 1
    again = system.filters(system.logits(dataclasses.replace(batch, windows=batch.windows[:, :1])))
    assert torch.equal(again[:, 0], filters[:, 0])


@pytest.mark.parametrize(
    "wrong", [{"bottleneck": 0}, {"gate_weight": -1.0}, {"warmup": 1.0}, {"open_share": 1.1}]
)
def test_bad_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        GaterOptions(**wrong)
