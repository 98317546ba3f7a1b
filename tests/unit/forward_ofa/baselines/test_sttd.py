"""STTD: the paper's costs to the digit, the semi-tensor product, and what distillation does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forward_ofa.baselines.sttd import Grid, STTDOptions, STTDTask, sttd_costs
from forward_ofa.evaluation import evaluate
from forward_ofa.tasks import DeviceRecTask
from forward_ofa_device.backbones.contract import BackboneConfig, ParameterSpec


@pytest.mark.parametrize(
    ("backbone", "blocks", "mflops", "mbit", "true_mflops"),
    [("sasrec", 6, 3.5735, 3.7478, 3.5927), ("nextitnet", 12, 4.1595, 4.5957, 5.6340)],
)
def test_costs_are_those_of_table_1(
    backbone: str, blocks: int, mflops: float, mbit: float, true_mflops: float
) -> None:
    means = sttd_costs(BackboneConfig(backbone, blocks=blocks), STTDOptions()).means()
    assert round(means["paper_mflops"], 4) == mflops
    assert round(means["paper_mbit"], 4) == mbit
    assert round(means["true_mflops"], 4) == true_mflops


def test_a_matrix_is_the_semi_tensor_product_of_its_cores() -> None:
    """Against the definition: Kronecker's product with a unit matrix, then sorted by rows."""
    grid = Grid(rows=(3, 2), columns=(2, 4), rank=6, step=2)
    first, second = (torch.randn(shape, dtype=torch.float64) for shape in grid.shapes)
    assert (first.shape, second.shape) == ((6, 6), (3, 4))
    product = first @ torch.kron(second, torch.eye(2, dtype=torch.float64))
    found = grid.rebuild(first, second)
    for row in range(6):
        for column in range(8):
            outer = (row // 2) * 2 + column // 4
            inner = (row % 2) * 4 + column % 4
            torch.testing.assert_close(found[row, column], product[outer, inner])
    assert torch.linalg.matrix_rank(found) == 6


def test_rebuilt_matrices_have_the_variance_of_an_ordinary_layer() -> None:
    torch.manual_seed(0)
    for shape, rank in (((64, 64), 48), ((192, 64), 28)):
        grid = Grid.of(ParameterSpec("w", shape, "matrix"), rank, 2)
        found = torch.stack([grid.rebuild(*grid.cores()) for _ in range(50)])
        assert found.var().item() == pytest.approx(1 / shape[0], rel=0.05)


def test_it_learns_from_its_teacher(data, method, config, batch, trained, gradients) -> None:
    teacher_task = DeviceRecTask(data, method, config)
    trained(teacher_task)
    teacher = teacher_task.system
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = STTDTask(data, method, config, STTDOptions(predict_weight=0.1), teacher)
    found = gradients(task, batch)
    assert set(found) == {name for name, _ in task.system.named_parameters()}
    assert all(value.abs().sum() > 0 for name, value in found.items() if "cores" in name)
    trained(task)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    figures = evaluate(task.system, data, "validation")
    expected = sttd_costs(method.backbone, task.options).means()
    assert figures.costs.means() == expected
    stored = sum(
        value.numel()
        for name, value in task.system.named_parameters()
        if name.startswith(("cores", "biases", "shared"))
    )
    assert expected["true_mbit"] == pytest.approx(stored * 32 / 1e6)


def test_soft_labels_alone_bring_the_student_to_its_teacher(data, method, config, batch) -> None:
    teacher = DeviceRecTask(data, method, config).system
    options = STTDOptions(soft_weight=1.0, contrast_weight=0.0, predict_weight=0.0)
    task = STTDTask(data, method, config, options, teacher)
    with torch.no_grad():
        for value in (task.teacher.items.weight, task.system.items.weight):
            value[1:].normal_()  # scores that say something
    optimiser = torch.optim.Adam(task.system.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = task.loss(batch, 0.5)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert losses[-1] > 0


def test_popular_items_are_those_met_most(data, method, config) -> None:
    teacher = DeviceRecTask(data, method, config).system
    task = STTDTask(data, method, config, STTDOptions(popular_share=0.25), teacher)
    popular = task.system.distillation.popular.numpy()
    counts = data.popularity()
    assert popular.sum() == round(0.25 * data.num_items)
    assert not popular[0]
    assert counts[popular].min() >= counts[1:][~popular[1:]].max()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 5, "step": 2}, {"step": 0}, {"soft_weight": 1.5}, {"contrast_weight": -1.0},
        {"contrast_temperature": 0.0}, {"popular_share": 1.0},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        STTDOptions(**wrong)


def test_a_step_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(ValueError, match="must divide 64"):
        sttd_costs(BackboneConfig("sasrec"), STTDOptions(rank=48, step=3))


def test_every_number_of_devices_has_its_row() -> None:
    costs = sttd_costs(BackboneConfig("sasrec", blocks=2), STTDOptions(), devices=5)
    assert np.unique(costs.paper_bits).tolist() == [2 * 5 * (64 * 48 + 24 * 32 + 64) * 32]
    assert len(costs.true_flops) == 5
