"""The method's parts against the paper's equations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from forward_ofa.batches import batches, collate, last_item_sessions, training_sessions
from forward_ofa.config import MethodConfig, TrainingConfig
from forward_ofa.data import FilterConfig, SequenceDataset, generate_log, prepare
from forward_ofa.model import ForwardOFA
from forward_ofa.objectives import compact_loss, next_item_loss, retrieval_loss
from forward_ofa.structure_controller import (
    SequenceExtractor,
    apply_cuts,
    choose_paths,
    draw_cuts,
    sample_gates,
)
from forward_ofa.tasks import ForwardOFATask
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.structure import SKIP_LOGIT, choose_path
from tests.support.logs import training_targets

SMALL = BackboneConfig("sasrec", blocks=3, hidden=16, heads=2)


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return prepare(generate_log(users=40, items=120, seed=1), FilterConfig())


def small_system(**method: object) -> ForwardOFA:
    torch.manual_seed(0)
    return ForwardOFA(120, MethodConfig(SMALL, extractor_history=8, **method))


def first_batch(data: SequenceDataset, targets: int = 2):
    sessions = training_sessions(data, targets, np.random.default_rng(0))
    return next(batches(data, sessions, 32, 8, SMALL.history, np.random.default_rng(0)))


def test_gates_are_hard_forward_and_soft_backward() -> None:
    """Eq. 5: the value is the argmax, the gradient that of the relaxed choice."""
    logits = torch.tensor([[0.5, -0.5, 2.0]], requires_grad=True)
    noise = torch.tensor([[-1.0, 1.0, 0.0]])
    gates = sample_gates(logits, temperature=5.0, noise=noise)
    assert gates.tolist() == [[0.0, 1.0, 1.0]]
    gates.sum().backward()
    relaxed = torch.sigmoid((logits.detach() + noise) / 5)
    torch.testing.assert_close(logits.grad, relaxed * (1 - relaxed) / 5)


def test_gates_keep_a_block_with_the_probability_of_its_logit() -> None:
    """Gumbel-max: P(keep) = sigmoid(s), whatever the temperature."""
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, 0.0, 1.0]).expand(40_000, 3)
    for temperature in (0.5, 5.0):
        share = sample_gates(logits, temperature).mean(0)
        torch.testing.assert_close(share, torch.sigmoid(logits[0]), atol=0.01, rtol=0)


def test_a_block_is_kept_iff_its_logit_is_not_negative() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.0], [-3.0, -1.0, -2.0], [-1.0, -1.0, -1.0]])
    expected = [[True, False, True], [False, True, False], [True, False, False]]
    assert choose_paths(logits).tolist() == expected
    assert [choose_path(row.numpy())[0].tolist() for row in logits] == expected


def test_cuts_leave_the_best_blocks_and_tell_the_extractor() -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, 6)
    cuts = draw_cuts(logits, 0.999)
    kept = (~cuts).sum(1)
    assert set(kept.tolist()) == {1, 2, 3, 4, 5, 6} or set(kept.tolist()) == {1, 2, 3, 4, 5}
    for row, cut in zip(logits[:50], cuts[:50], strict=True):
        if cut.any():
            assert row[cut].max() <= row[~cut].min()
            seen, _ = apply_cuts(row[None], cut[None])[0], None
            _, device = choose_path(row.numpy(), int((~cut).sum()))
            np.testing.assert_array_equal(seen.numpy(), device)
    assert not draw_cuts(logits, 0.0).any()
    assert (apply_cuts(torch.ones(1, 2), torch.tensor([[False, True]])) == torch.tensor(
        [[1.0, SKIP_LOGIT]]
    )).all()  # fmt: skip


def test_compact_loss_is_equations_10_and_11() -> None:
    """beta_0 = s, beta_1 = 0: -log of the softmax's second entry, summed over blocks."""
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.0]])
    beta = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
    expected = -torch.log_softmax(beta, dim=-1)[..., 1].sum(1).mean()
    torch.testing.assert_close(compact_loss(logits), expected)


def test_losses_leave_out_padding_targets() -> None:
    torch.manual_seed(0)
    items = torch.randn(11, 4)
    vectors, targets = torch.randn(2, 3, 4), torch.tensor([[1, 2, 3], [10, 0, 0]])
    expected = [
        -torch.log_softmax(items[1:] @ vectors[b, m], 0)[targets[b, m] - 1]
        for b in range(2)
        for m in range(3)
        if targets[b, m]
    ]
    torch.testing.assert_close(next_item_loss(vectors, items, targets), sum(expected) / 4)
    repeated = vectors[:, :1].expand(-1, 3, -1)
    torch.testing.assert_close(
        retrieval_loss(vectors[:, 0], items, targets), next_item_loss(repeated, items, targets)
    )


def test_an_extractor_reads_each_history_to_its_own_end() -> None:
    torch.manual_seed(0)
    extractor = SequenceExtractor(8)
    long = torch.randn(2, 6, 8)
    first = torch.randn(2, 8)
    together = extractor(long, torch.tensor([3, 6]), first)
    alone = extractor(long[:1, :3], torch.tensor([3]), first[:1])
    torch.testing.assert_close(together[:1], alone)


def test_the_structure_reaches_the_interest() -> None:
    """Eq. 9: beta is the first state of E', so another structure gives another h."""
    system = small_system()
    history, lengths = torch.randn(1, 4, 16), torch.tensor([4])
    one = system.mapper.interest(history, lengths, torch.tensor([[1.0, 1.0, 1.0]]))
    other = system.mapper.interest(history, lengths, torch.tensor([[1.0, -4.0, 1.0]]))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("backbone", ["sasrec", "nextitnet"])
def test_every_parameter_learns_and_is_saved_and_restored(
    backbone: str, data: SequenceDataset, tmp_path: Path
) -> None:
    """A public implementation of a rival keeps its generator in plain lists: never trained."""
    config = dataclasses.replace(SMALL, name=backbone)
    torch.manual_seed(0)
    method = MethodConfig(config, extractor_history=8)
    task = ForwardOFATask(data, method, TrainingConfig(epochs=1))
    system = task.system.train()
    before = {name: value.clone() for name, value in system.state_dict().items()}
    optimiser = torch.optim.AdamW(system.parameters(), lr=1e-3)
    hypernetworks = [n for n in before if n.startswith("mapper.hypernetworks.")]
    assert len(hypernetworks) == 2 * config.blocks
    moved: set[str] = set()
    for step in range(3):
        optimiser.zero_grad()
        task.loss(first_batch(data), 0.5).backward()
        if step == 0:
            # No bias of a zero-spread entry may stand still either: all entries get gradient.
            for index in range(config.blocks):
                assert system.hypernetwork(index).bias.grad.abs().sum() > 0
                assert system.hypernetwork(index).weight.grad.abs().sum() > 0
        moved |= {n for n, p in system.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
    assert moved == {name for name, _ in system.named_parameters()}
    changed = {n for n, v in system.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == set(before) - {"fusion"}, "chosen on validation, not learned"

    from safetensors.torch import load_file, save_file

    save_file(system.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    restored = ForwardOFA(data.num_items, system.config)
    restored.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    for name, value in system.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_a_query_apart_leaves_all_else_to_equation_12(data: SequenceDataset) -> None:
    """All but the query's layer gets the gradients of a training without the query's loss."""
    plain = MethodConfig(SMALL, extractor_history=8, retrieval_weight=0.0)
    found: dict[str, dict[str, torch.Tensor | None]] = {}
    for name, method in (
        ("none", plain),
        ("apart", dataclasses.replace(plain, retrieval_weight=0.2, retrieval_apart=True)),
        ("together", dataclasses.replace(plain, retrieval_weight=0.2)),
    ):
        task = ForwardOFATask(data, method, TrainingConfig(epochs=1))
        torch.manual_seed(0)
        task.loss(first_batch(data), 0.5).backward()
        found[name] = {n: p.grad for n, p in task.system.named_parameters()}

    def different(one: str, other: str) -> set[str]:
        pairs = ((n, found[one][n], found[other][n]) for n in found[one])
        return {n for n, a, b in pairs if (a is None) != (b is None) or not torch.equal(a, b)}

    query = {"query.weight", "query.bias"}
    assert different("none", "apart") == query
    assert found["apart"]["query.weight"].any()
    assert {"items.weight", *query} < different("none", "together")


def test_no_target_is_in_what_the_extractors_or_the_window_read(data: SequenceDataset) -> None:
    """Positions, not items: an item may well occur twice in a history."""
    drawn = training_sessions(data, 4, np.random.default_rng(3))
    sessions = drawn.take(np.arange(len(drawn)))
    batch = collate(data, sessions, 8, SMALL.history)
    for row in range(0, len(sessions), 7):
        user, start = int(sessions.users[row]), int(sessions.starts[row])
        sequence = data.history(user)
        length = int(batch.lengths[row])
        np.testing.assert_array_equal(
            batch.history[row, :length], sequence[max(0, start - 8) : start]
        )
        assert not batch.history[row, length:].any()
        for slot in range(int(sessions.counts[row])):
            position = start + slot
            assert batch.targets[row, slot] == sequence[position]
            window = batch.windows[row, slot]
            np.testing.assert_array_equal(
                window[window > 0], sequence[max(0, position - SMALL.history) : position]
            )
        assert not batch.targets[row, int(sessions.counts[row]) :].any()


@pytest.mark.parametrize("targets", [1, 3, 16])
def test_an_epoch_meets_every_training_target_once(data: SequenceDataset, targets: int) -> None:
    drawn = training_sessions(data, targets, np.random.default_rng(5))
    sessions = drawn.take(np.arange(len(drawn)))
    met = [
        (int(user), int(start) + slot)
        for user, start, count in zip(sessions.users, sessions.starts, sessions.counts, strict=True)
        for slot in range(count)
    ]
    users, positions = training_targets(data)
    assert sorted(met) == sorted(zip(users.tolist(), positions.tolist(), strict=True))
    assert sessions.counts.max() <= targets
    for split, back in (("validation", 2), ("test", 1)):
        held_out = last_item_sessions(data, split)
        assert (held_out.starts == data.lengths() - back).all()
        assert not set(zip(held_out.users.tolist(), held_out.starts.tolist(), strict=True)) & set(
            met
        )


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (MethodConfig, {"temperature": 0}),
        (MethodConfig, {"compact_weight": -1}),
        (MethodConfig, {"cut_probability": 1.0}),
        (MethodConfig, {"extractor_history": 0}),
        (MethodConfig, {"dropout": 1.0}),
        (TrainingConfig, {"epochs": 0}),
        (TrainingConfig, {"epochs": 1, "learning_rate": 0}),
        (TrainingConfig, {"epochs": 1, "decay_from": 2}),
        (TrainingConfig, {"epochs": 1, "warmup_steps": -1}),
    ],
)
def test_impossible_settings_are_refused(config: type, wrong: dict) -> None:
    with pytest.raises(ValueError):
        config(**wrong)
