"""Every system: it trains, comes back, repeats itself, and is what its name says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from forward_ofa import stages
from forward_ofa.ablations import (
    ControllerOnly,
    MapperOnly,
    ReplacedBlocks,
    WithoutStructuralVector,
)
from forward_ofa.baselines.finetune import Finetune, FinetuneOptions, own_examples
from forward_ofa.batches import batches, collate, last_item_sessions, training_sessions
from forward_ofa.config import MethodConfig, RunConfig, TrainingConfig
from forward_ofa.cost import Costs, block_costs, network_cost
from forward_ofa.data import FilterConfig, SequenceDataset, generate_log, prepare
from forward_ofa.devices import find_device
from forward_ofa.evaluation import evaluate
from forward_ofa.locks import locked
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa.recipes import recipe
from forward_ofa.runs import RunError, estimate_seconds, evaluate_run, load_run, train_run
from forward_ofa.structure_controller import Phase
from forward_ofa.systems import SYSTEMS, Context, options_of, system_named
from forward_ofa.tasks import ControllerOnlyTask, ForwardOFATask
from forward_ofa.training import run_identity
from forward_ofa_device.backbones.contract import BackboneConfig

BACKBONES = ("sasrec", "nextitnet")


class Recorder:
    """Keeps the stages and epochs it is told of; stops training where it is asked to."""

    def __init__(self, stop_in: str = "") -> None:
        self.epochs: list[str] = []
        self.stop_in = stop_in
        self.stage = ""

    def begin(self, stage: str, steps: int, done: int) -> None:
        self.stage = stage

    def step(self, loss: float) -> None:
        pass

    def epoch(self, record: dict[str, Any]) -> None:
        self.epochs.append(self.stage)
        if self.stage == self.stop_in:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return prepare(generate_log(users=30, items=100, seed=1), FilterConfig())


def tiny(name: str, backbone: str = "sasrec", epochs: int = 2, **run: Any) -> RunConfig:
    """A system of two small blocks, as the default recipe adapts it."""
    config = recipe("quick", backbone, 0, name)
    small = BackboneConfig(backbone, blocks=2, hidden=8, heads=2)
    method = dataclasses.replace(config.method, backbone=small, extractor_history=6)
    short = TrainingConfig(epochs=1, batch_size=128)
    training = dataclasses.replace(config.training, epochs=epochs, batch_size=64)
    if name == "device-rec":
        training = short
    if name == "finetune":
        run["options"] = FinetuneOptions((0.1, 0.3), (1, 2), history=8, users=10)
    return dataclasses.replace(
        config, method=method, device_rec=short, training=training, candidates=20, **run
    )


@pytest.fixture(scope="module", params=BACKBONES)
def base(request: pytest.FixtureRequest, data, tmp_path_factory) -> tuple[str, Any]:
    """(backbone, a run of DeviceRec with the foundation) for others to start from."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny("device-rec", request.param, epochs=1)
    return request.param, train_run(data, config, folder, Recorder())


def weights(run: Any) -> dict[str, torch.Tensor]:
    return run.system.state_dict()


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "device-rec"])
def test_every_system_trains_comes_back_and_repeats_itself(
    name: str, base, data, tmp_path: Path
) -> None:
    backbone, earlier = base
    config = tiny(name, backbone)
    title = SYSTEMS[name].title
    with pytest.raises(KeyboardInterrupt):
        train_run(data, config, tmp_path, Recorder(title), base=earlier.folder)
    rest = Recorder()
    run = train_run(data, config, tmp_path, rest, resume=True, base=earlier.folder)
    assert "DeviceRec" not in rest.epochs and "Foundation" not in rest.epochs
    back = load_run(tmp_path)
    assert back.config == config
    assert evaluate_run(back, data, "test")["systems"] == run.report["systems"]
    assert set(run.report["systems"]) == {name, "device-rec"}
    found = run.report["systems"][name]
    assert all(np.isfinite(list(map(found.get, ("ndcg@10", "paper_mflops", "true_mbit")))))
    assert run.report["difference"]["ndcg@10"]["low"] <= run.report["difference"]["ndcg@10"]["high"]
    whole = train_run(data, config, tmp_path / "whole", Recorder(), base=earlier.folder)
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(run).items())
    assert whole.report["systems"] == run.report["systems"]


@pytest.mark.parametrize("name", ["device-rec", "finetune"])
def test_a_stage_taken_over_is_the_one_that_would_have_been_trained(
    name: str, data, tmp_path: Path
) -> None:
    first = train_run(data, tiny("device-rec", epochs=1), tmp_path / "base", Recorder())
    config = dataclasses.replace(tiny(name), device_rec=first.config.device_rec)
    if name == "device-rec":
        config = first.config
    alone = train_run(data, config, tmp_path / "alone", Recorder())
    taken = Recorder()
    run = train_run(data, config, tmp_path / "taken", taken, base=tmp_path / "base")
    assert set(taken.epochs) <= {"Finetune"}
    assert all(torch.equal(value, weights(alone)[key]) for key, value in weights(run).items())
    assert run.report["training"]["device-rec"] == first.report["training"]["device-rec"]
    assert (tmp_path / "taken" / "device-rec.safetensors").exists()  # needs the base no more


@pytest.mark.parametrize("change", ["seed", "foundation", "log"])
def test_a_base_run_of_other_data_or_settings_is_refused(change: str, data, tmp_path: Path) -> None:
    config = tiny("device-rec", epochs=1)
    train_run(data, config, tmp_path / "base", Recorder())
    wanted = dataclasses.replace(tiny("duet"), device_rec=config.device_rec)
    if change == "seed":
        other = dataclasses.replace(config.device_rec, seed=5)
        wanted = dataclasses.replace(wanted, device_rec=other)
    elif change == "foundation":
        other = dataclasses.replace(config.foundation, dropout=0.4)
        wanted = dataclasses.replace(wanted, foundation=other)
    else:
        data = prepare(generate_log(users=31, items=100, seed=1), FilterConfig())
    watched = Recorder()
    with pytest.raises(RunError, match="--base-run"):
        train_run(data, wanted, tmp_path / "run", watched, base=tmp_path / "base")
    assert watched.epochs == []
    # Nothing that the next try, without a base, would take for a run that was begun.
    assert not (tmp_path / "run" / "config.json").exists()
    # An estimate does not fail on it: the run itself says what is wrong.
    assert estimate_seconds(data, wanted, None, tmp_path / "base") > 0


def test_a_foundation_does_not_depend_on_what_extractors_read(data, tmp_path: Path) -> None:
    """So a run may take over that of a run whose extractors read another history."""
    config = tiny("device-rec", epochs=1)
    found = []
    for history in (1, 200):
        method = dataclasses.replace(config.method, extractor_history=history)
        wanted = dataclasses.replace(config, method=method)
        first = system_named("device-rec").stages(wanted)[0]
        task = first.task(Context(data, wanted, {}))
        assert task.name == "Foundation"
        with torch.no_grad():  # so large that a state tells what is far back
            for parameter in task.system.parameters():
                parameter.mul_(30)
        found.append((run_identity(task), task.validate()))
    assert found[0] == found[1]


def test_one_process_at_a_time_trains_in_a_folder(data, tmp_path: Path) -> None:
    config = tiny("device-rec", epochs=1)
    with (
        locked(tmp_path / "run" / "lock", wait=False),
        pytest.raises(RunError, match="another process trains in"),
    ):
        train_run(data, config, tmp_path / "run", Recorder(), resume=True)
    assert train_run(data, config, tmp_path / "run", Recorder(), resume=True).report


def test_a_damaged_base_run_is_refused(data, tmp_path: Path) -> None:
    config = tiny("device-rec", epochs=1)
    train_run(data, config, tmp_path / "base", Recorder())
    path = tmp_path / "base" / "device-rec.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    wanted = dataclasses.replace(tiny("duet"), device_rec=config.device_rec)
    with pytest.raises(RunError, match="damaged"):
        train_run(data, wanted, tmp_path / "run", Recorder(), base=tmp_path / "base")


def test_an_estimate_counts_what_is_left(data, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "fit_seconds", lambda task, device: 100.0 * task.config.epochs)
    config = tiny("forward-ofa", epochs=4)
    assert estimate_seconds(data, config) == 600  # foundation 1, DeviceRec 1, Forward-OFA 4
    with pytest.raises(KeyboardInterrupt):
        train_run(data, config, tmp_path, Recorder("Forward-OFA"))
    assert estimate_seconds(data, config, tmp_path) == 300
    other = dataclasses.replace(tiny("duet", epochs=4), device_rec=config.device_rec)
    assert estimate_seconds(data, other, None, tmp_path) == 400


def test_without_comparison_only_what_is_needed_is_trained(data, tmp_path: Path) -> None:
    config = tiny("plus-controller", compare=False, foundation=None, warm_start=False)
    watched = Recorder()
    run = train_run(data, config, tmp_path, watched)
    assert set(watched.epochs) == {"+controller"}
    assert run.device_rec is None and "difference" not in run.report
    assert load_run(tmp_path).device_rec is None


def test_only_forward_ofa_can_be_exported(data, tmp_path: Path) -> None:
    run = train_run(data, tiny("duet", compare=False, warm_start=False), tmp_path, Recorder())
    with pytest.raises(RunError, match=r"run of DUET.*only Forward-OFA can be published"):
        _ = run.forward_ofa


METHOD = MethodConfig(BackboneConfig("sasrec", blocks=3, hidden=16, heads=2), extractor_history=8)


def training_batch(data: SequenceDataset) -> Batch:
    sessions = training_sessions(data, 2, np.random.default_rng(0))
    return next(batches(data, sessions, 16, 8, 5, np.random.default_rng(0)))


def varied(kind: type, data: SequenceDataset) -> Any:
    """An untrained system whose devices choose different paths."""
    torch.manual_seed(0)
    system = kind(data.num_items, dataclasses.replace(METHOD, keep_bias=0.1, spread=1.0))
    with torch.no_grad():
        system.items.weight.mul_(40)
        if hasattr(system, "controller"):
            system.controller.head.weight.mul_(60)
    return system.eval()


def test_mapper_only_keeps_all_blocks_and_knows_no_structure(data) -> None:
    system = varied(MapperOnly, data)
    assert not any(name.startswith("controller") for name, _ in system.named_parameters())
    batch = training_batch(data)
    networks = system.networks(batch)
    assert networks.kept.all()
    interest = system.mapper.extractor(system.items(batch.history), batch.lengths)
    torch.testing.assert_close(system.adapt(batch).interest, interest)  # E' from zeros
    assert networks.vectors.std(0).max() > 0.1, "parameters differ from device to device"


def test_without_structural_vector_only_parameters_ignore_the_structure(data) -> None:
    system = varied(WithoutStructuralVector, data)
    reference = varied(ForwardOFA, data)
    batch = training_batch(data)
    ours, theirs = system.adapt(batch), reference.adapt(batch)
    assert torch.equal(ours.gates, theirs.gates)
    assert 0 < ours.gates.mean() < 1
    plain = system.mapper.extractor(system.items(batch.history), batch.lengths)
    torch.testing.assert_close(ours.interest, plain)
    assert not torch.allclose(ours.interest, theirs.interest)


def test_controller_only_learns_a_path_through_shared_blocks(data) -> None:
    system = varied(ControllerOnly, data)
    batch = training_batch(data)
    networks = system.networks(batch)
    counts = networks.kept.sum(1).numpy()
    assert len(set(counts.tolist())) > 1
    expected = [network_cost(METHOD.backbone, k).flops.paper for k in counts.tolist()]
    assert networks.costs.paper_flops.tolist() == expected
    task = ControllerOnlyTask(data, METHOD, TrainingConfig(epochs=1))
    task.system.train()
    task.loss(batch, 0.9).backward()
    for part in (task.system.controller.head.weight, task.system.blocks[0][0]):
        assert torch.isfinite(part.grad).all() and part.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [ForwardOFATask, ControllerOnlyTask])
def test_the_structure_is_learned_in_its_part_of_training(kind, data) -> None:
    method = dataclasses.replace(
        METHOD, structure_from=0.5, structure_until=0.75, keep_bias=0.0, compact_weight=1.0,
        compact_warmup=0.0, dropout=0.0,
    )  # fmt: skip
    task = kind(data, method, TrainingConfig(epochs=1))
    task.system.train()
    batch = training_batch(data)

    def losses(done: float) -> set[float]:
        return {task.loss(batch, done).item() for _ in range(5)}

    before, within, after = losses(0.49), losses(0.5), losses(0.75)
    assert len(before) == len(after) == 1, "nothing is drawn"
    # With lambda 1 and logits of 0: the softplus of each block's logit.
    assert len(within) == 5 and min(within) > max(before | after) + 2
    for done, learns in ((0.49, False), (0.5, True), (0.75, False)):
        task.system.zero_grad()
        task.loss(batch, done).backward()
        learned = {p.grad is not None for p in task.system.controller.parameters()}
        assert learned == {learns}


def test_a_chosen_structure_in_training_is_the_devices_but_for_cuts(data) -> None:
    system = varied(ForwardOFA, data)
    batch = training_batch(data)
    device = system.adapt(batch)
    assert 0 < device.gates.mean() < 1
    system.train()
    trained = system.adapt(batch, Phase.CHOSEN)
    assert torch.equal(trained.gates, device.gates)
    torch.testing.assert_close(trained.interest, device.interest)
    system.config = dataclasses.replace(system.config, cut_probability=0.99)
    cut = system.adapt(batch, Phase.CHOSEN).gates
    assert (
        (cut <= device.gates).all() and (cut.sum(1) >= 1).all() and cut.sum() < trained.gates.sum()
    )


@pytest.mark.parametrize("how", ["random", "first", "last"])
def test_replaced_blocks_are_as_many_but_others(how: str, data) -> None:
    trained = varied(ForwardOFA, data)
    chosen = evaluate(trained, data, "test", 20)
    found = evaluate(ReplacedBlocks(trained, how, seed=3), data, "test", 20)
    assert found.kept_blocks.tolist() == chosen.kept_blocks.tolist()
    assert (found.kept != chosen.kept).any()
    assert found.funnel.recall == chosen.funnel.recall  # h, and so retrieval, is as before
    again = evaluate(ReplacedBlocks(trained, how, seed=3), data, "test", 20)
    assert (again.kept == found.kept).all() and (again.ranks == found.ranks).all()
    kept = found.kept if how != "last" else found.kept[:, ::-1]
    if how == "random":
        assert found.kept.mean(0).min() > 0
    else:
        assert (np.diff(kept.astype(int), axis=1) <= 0).all()


def test_replaced_blocks_need_a_known_way(data) -> None:
    with pytest.raises(ValueError, match="random, first, last"):
        ReplacedBlocks(varied(ForwardOFA, data), "middle")


def finetuned(data: SequenceDataset, backbone: str = "sasrec") -> Finetune:
    torch.manual_seed(0)
    method = dataclasses.replace(METHOD, backbone=BackboneConfig(backbone, 2, 16, heads=2))
    system = Finetune(data.num_items, method, FinetuneOptions(history=8))
    with torch.no_grad():
        system.items.weight.mul_(20)
    return system.eval()


def validation_batch(data: SequenceDataset, users: list[int]) -> Batch:
    return collate(data, last_item_sessions(data, "validation").take(np.array(users)), 8, 5)


def test_a_device_tunes_on_its_own_past_alone(data) -> None:
    batch = validation_batch(data, [0, 3])
    windows, targets = own_examples(batch, 5)
    for row, user in enumerate((0, 3)):
        past = data.history(user)[:-2][-8:].tolist()
        assert targets[row][targets[row] > 0].tolist() == past[1:]
        for index, item in enumerate(past[1:], 1):
            read = [i for i in windows[row, index - 1].tolist() if i]
            assert read == past[max(0, index - 5) : index] and targets[row, index - 1] == item


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tuning_many_devices_is_tuning_each_alone(backbone: str, data) -> None:
    system = finetuned(data, backbone)
    batch = validation_batch(data, [0, 1, 2])
    *_, tuned = system.tuned(batch, 0.1, 3)
    for device in range(3):
        one = Batch(*(t[device : device + 1] for t in vars(batch).values()))
        windows, targets = own_examples(one, 5)
        reference = finetuned(data, backbone)
        own = [dict(reference.block_parameters(i)) for i in range(2)]
        values = [value for block in own for value in block.values()]
        for _ in range(3):
            vectors = super(Finetune, reference).vectors(
                Batch(one.history, one.lengths, windows, targets)
            )
            wanted = targets > 0
            scores = vectors[wanted] @ reference.items.weight[1:].T
            gradients = torch.autograd.grad(F.cross_entropy(scores, targets[wanted] - 1), values)
            with torch.no_grad():
                for value, gradient in zip(values, gradients, strict=True):
                    value -= 0.1 * gradient
        for block, mine in zip(tuned, own, strict=True):
            for name, value in mine.items():
                torch.testing.assert_close(block[name][device], value, rtol=1e-4, atol=1e-5)


def test_what_tuning_takes_at_a_refresh(data) -> None:
    system = finetuned(data)
    network = network_cost(system.backbone.config, 2).flops
    system.steps.fill_(1)
    one = system.device_modules()
    # Seven windows: forwards, twice that backwards; products with all items, and their gradients.
    assert one.flops.true == 7 * (3 * network.true + 2 * 16 * data.num_items)
    assert one.flops.paper == 7 * (3 * network.paper + 2 * 16 * data.num_items)
    assert one.parameters == 16 * data.num_items
    system.assume_dearest()
    dearest = system.device_modules()
    assert dearest.flops.true == 10 * one.flops.true and dearest.parameters == one.parameters


def test_tuning_lowers_a_devices_own_loss_and_changes_nothing_shared(data) -> None:
    system = finetuned(data)
    before = {name: value.clone() for name, value in system.state_dict().items()}
    batch = validation_batch(data, list(range(10)))
    windows, targets = own_examples(batch, 5)

    def loss(blocks) -> float:
        scores = system.run(windows, blocks) @ system.items.weight[1:].T
        return float(F.cross_entropy(scores.detach()[targets > 0], targets[targets > 0] - 1))

    losses = [loss(blocks) for blocks in system.tuned(batch, 0.3, 5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in system.state_dict().items())


def test_costs_join_and_average() -> None:
    config = BackboneConfig("nextitnet", blocks=12)
    costs = Costs.join([block_costs(config, np.array([0, 12])), block_costs(config, np.array([6]))])
    assert costs.paper_flops.tolist() == [network_cost(config, k).flops.paper for k in (0, 12, 6)]
    assert costs.means()["paper_mbit"] == pytest.approx(0.098304 + 0.790528 * 6)
    # NextItNet's norms of skipped blocks are in the bundle too: nothing else is to be added.
    assert costs.true_bits.tolist() == costs.paper_bits.tolist()
    assert costs.means()["payload_bytes"]["float32"] == 6 * 98_816


def test_options_are_read_from_text_and_json() -> None:
    system = system_named("finetune")
    raw = {"rates": "0.1,0.2", "steps": [1, 3], "users": "0"}
    assert options_of(system, raw) == FinetuneOptions((0.1, 0.2), (1, 3), users=0)
    for raw, match in (
        ({"rate": 1}, "no option 'rate': there are history, rates"),
        ({"users": "many"}, "users: 'many' is no whole number"),
        ({"steps": "0"}, "at least 1"),
        ({"rates": 5}, "rates: 5 is no list"),
    ):
        with pytest.raises(ValueError, match=match):
            options_of(system, raw)
    with pytest.raises(ValueError, match="no options"):
        options_of(system_named("device-rec"), {"steps": 1})
    with pytest.raises(ValueError, match="forward-ofa, device-rec"):
        system_named("best")


def test_a_gpu_that_is_not_there_is_a_clear_error(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (find_device("auto"), find_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(ValueError, match="no GPU here"):
        find_device("cuda")
    for name in ("gpu", "cuda:x", "cuda:"):
        with pytest.raises(ValueError, match="use cpu, cuda"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (find_device("auto"), find_device("cuda:1")) == ("cuda:0", "cuda:1")
    with pytest.raises(ValueError, match="cuda:0 to cuda:1"):
        find_device("cuda:2")


def test_a_batch_can_be_read_shorter() -> None:
    history = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]])
    nothing = torch.zeros(3, 1, 2, dtype=torch.long)
    batch = Batch(history, torch.tensor([4, 2, 3]), nothing, nothing[..., 0])
    short = batch.read(2)
    assert short.history.tolist() == [[3, 4], [5, 6], [8, 9]]
    assert short.lengths.tolist() == [2, 2, 2]
    assert batch.read(9) is batch
