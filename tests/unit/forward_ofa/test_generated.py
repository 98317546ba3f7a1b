"""The fast form of generation against the naive one: every block for every row, W in full."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from benchmarks.training.naive import naive_vectors
from forward_ofa.assembly import run_blocks
from forward_ofa.config import MethodConfig
from forward_ofa.generated import Generated
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa_device.backbones.contract import BackboneConfig, Parameters

CONFIGS = [
    BackboneConfig("sasrec", blocks=4, hidden=16, heads=2),
    BackboneConfig("sasrec", blocks=4, hidden=16, heads=2, norm="pre"),
    BackboneConfig("nextitnet", blocks=4, hidden=16),  # dilations 1 and 4: taps beyond T = 5
    BackboneConfig("nextitnet", blocks=4, hidden=16, history=9, dilations=(1, 2)),
]


@pytest.fixture(params=CONFIGS, ids=lambda c: f"{c.name}-{c.norm}-{c.history}")
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    return request.param


def example(config: BackboneConfig, bases: int) -> tuple[ForwardOFA, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    system = ForwardOFA(30, MethodConfig(config, dropout=0.0, bases=bases))
    windows = torch.randint(1, 31, (7, 3, config.history))
    windows[2, :, :2] = 0
    gates = (torch.rand(7, config.blocks) < 0.5).float()
    gates[:, 1] = 1  # a block that all keep, and one that none does
    gates[:, 2] = 0
    return system, windows, gates.requires_grad_(), torch.randn(7, config.hidden).requires_grad_()


@pytest.mark.parametrize("bases", [0, 3])
def test_outputs_and_all_gradients_are_those_of_the_naive_form(
    config: BackboneConfig, bases: int
) -> None:
    system, windows, gates, interest = example(config, bases)
    leaves = dict(system.named_parameters()) | {"gates": gates, "interest": interest}

    def run(output: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
        target = torch.sin(torch.arange(output.numel()).reshape(output.shape))
        found = torch.autograd.grad((output * target).sum(), leaves.values(), allow_unused=True)
        return output.detach(), dict(zip(leaves, found, strict=True))

    expected, wanted = run(naive_vectors(system, windows, gates, interest))
    fast = run_blocks(
        system.backbone,
        system.ops,
        system.items(windows),
        windows > 0,
        lambda index: system.hypernetwork(index)(interest),
        system.shared_parameters(),
        gates,
    )
    output, found = run(fast)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in wanted.items():
        # None and zero are the same: nobody asked for what a block that all skip would do.
        want = torch.zeros_like(leaves[name]) if gradient is None else gradient
        have = torch.zeros_like(leaves[name]) if found[name] is None else found[name]
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5 * scale, msg=name)
    assert found["gates"] is not None and found["gates"][:, 2].abs().min() > 0


def test_a_step_is_the_same_whichever_rows_are_gathered() -> None:
    """Gates are drawn before anything else is, so the same seed gives the same loss."""
    config = CONFIGS[0]
    torch.manual_seed(0)
    method = MethodConfig(config, extractor_history=4, dropout=0.0, keep_bias=0.0)
    system = ForwardOFA(30, method).train()
    batch = Batch(
        torch.randint(1, 31, (6, 4)),
        torch.tensor([1, 2, 3, 4, 4, 4]),
        torch.randint(1, 31, (6, 2, config.history)),
        torch.randint(1, 31, (6, 2)),
    )
    torch.manual_seed(1)
    adaptation = system.adapt(batch)
    assert 0 < adaptation.gates.sum() < adaptation.gates.numel()
    reference = naive_vectors(system, batch.windows, adaptation.gates, adaptation.interest)
    torch.testing.assert_close(system.vectors(batch, adaptation), reference, rtol=1e-5, atol=1e-5)
    system.eval()
    with torch.no_grad():  # evaluation leaves skipped blocks out altogether
        chosen = system.adapt(batch)
        reference = naive_vectors(system, batch.windows, chosen.gates, chosen.interest)
        torch.testing.assert_close(system.vectors(batch, chosen), reference, rtol=1e-5, atol=1e-5)


def test_evaluation_computes_no_block_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    system, windows, _, interest = example(CONFIGS[0], 0)
    rows: list[int] = []
    block = type(system.backbone).block

    def counted(self: object, ops: object, index: int, x: Tensor, *rest: Parameters) -> Tensor:
        rows.append(len(x))
        return block(self, ops, index, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(system.backbone), "block", counted)
    gates = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 3 + [[1.0, 0.0, 0.0, 0.0]] * 4)
    with torch.no_grad():
        run_blocks(
            system.backbone, system.ops, system.items(windows), windows > 0,
            lambda index: system.hypernetwork(index)(interest), system.shared_parameters(), gates,
        )  # fmt: skip
    assert rows == [7, 3]


@pytest.mark.parametrize("columns", [4, 3])
def test_gradients_in_double_precision(columns: int) -> None:
    """columns < 4: the matrix's first row meets nothing."""
    torch.manual_seed(0)
    x, interest = torch.randn(3, 2, columns).double(), torch.randn(3, 5).double()
    weight, base = torch.randn(8, 5).double(), torch.randn(8).double()
    leaves = tuple(t.requires_grad_() for t in (x, interest, weight, base))
    assert torch.autograd.gradcheck(
        lambda x, h, w, b: Generated(h, w, b, (4, 2)).product(x), leaves
    )


def test_a_product_that_cannot_be_is_refused() -> None:
    generated = Generated(torch.zeros(2, 5), torch.zeros(8, 5), torch.zeros(8), (4, 2))
    with pytest.raises(ValueError, match="5 columns"):
        generated.product(torch.zeros(2, 1, 5))
    with pytest.raises(ValueError, match="only a matrix"):
        dataclasses.replace(generated, shape=(8,)).product(torch.zeros(2, 1, 8))


def test_factored_hypernetworks_multiply_out() -> None:
    """What a version publishes, [h, 1] times [D + 1, P], is what was trained."""
    system, _, _, interest = example(CONFIGS[0], 3)
    hypernetwork = system.hypernetwork(0)
    assert hypernetwork.weight.shape[1] == 3
    flat = interest @ hypernetwork.matrix().T + hypernetwork.bias
    made = torch.cat([v.tensor().flatten(1) for v in hypernetwork(interest).values()], dim=1)
    torch.testing.assert_close(made, flat)


@pytest.mark.parametrize("bases", [-1, 16])
def test_a_number_of_bases_that_makes_no_sense_is_refused(bases: int) -> None:
    with pytest.raises(ValueError, match="bases"):
        MethodConfig(CONFIGS[0], bases=bases)
