"""The contract that every backbone keeps, run against each of them and against a new one.

The new one is a single file that is dropped into the package for the test: nothing else is
changed, and it has parameters, training, numpy inference, ONNX and cost like the others.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forward_ofa.assembly import run_blocks
from forward_ofa.config import MethodConfig
from forward_ofa.cost import cost_table
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa.onnx_export import export_onnx
from forward_ofa.ops import TorchOps
from forward_ofa.structure_controller import choose_paths
from forward_ofa.structure_mapper import initialise
from forward_ofa_device import backbones
from forward_ofa_device.artefact import (
    ENCODINGS,
    BlockLayout,
    encode_block,
    read_artefact,
    write_artefact,
)
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.ops import NumpyOps

NEW_BACKBONE = '''
"""A residual mixer over the window: one generated matrix a block."""
from forward_ofa_device.backbones.contract import Flops, ParameterSpec


class Mixer:
    def __init__(self, config):
        self.config = config

    def block_parameters(self):
        d = self.config.hidden
        weight = ParameterSpec("mix.weight", (d, d), "matrix")
        return [weight, ParameterSpec("mix.bias", (d,), "zeros")]

    def shared_parameters(self):
        return [ParameterSpec("gain", (self.config.hidden,), "ones")]

    def embed(self, ops, items, valid, shared):
        return ops.mask(items, valid[..., None], 0.0)

    def block(self, ops, index, x, valid, own, shared):
        normed = ops.layer_norm(x) * shared["gain"]
        return x + ops.relu(ops.linear(normed, own["mix.weight"], own["mix.bias"]))

    def readout(self, ops, x, shared):
        return x[..., -1, :]

    def block_flops(self):
        macs = self.config.history * self.config.hidden ** 2
        return Flops(macs, macs)

    def fixed_flops(self):
        return Flops(0, 0)

    def fixed_parameters(self):
        return self.config.hidden


def build(config):
    return Mixer(config)
'''

CONFIGS = {
    "sasrec": BackboneConfig("sasrec", blocks=6),
    "sasrec-pre": BackboneConfig("sasrec", blocks=3, hidden=16, history=7, heads=2, norm="pre"),
    "sasrec-one": BackboneConfig("sasrec", blocks=1, hidden=8, history=1, heads=1),
    "nextitnet": BackboneConfig("nextitnet", blocks=12),
    "nextitnet-small": BackboneConfig(
        "nextitnet", blocks=4, hidden=16, history=9, heads=1, dilations=(1, 2)
    ),
    "new": BackboneConfig("mixer", blocks=4, hidden=16),
}


@pytest.fixture(scope="module", autouse=True)
def new_backbone(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("backbones")
    (folder / "mixer.py").write_text(NEW_BACKBONE)
    backbones.__path__.append(str(folder))
    yield
    backbones.__path__.remove(str(folder))


@pytest.fixture(params=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> BackboneConfig:
    return CONFIGS[request.param]


def parameters(config: BackboneConfig, seed: int) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Flat parameters [L, P] of all blocks, and the shared ones, away from their initial values."""
    torch.manual_seed(seed)
    backbone = backbones.build(config)
    flat = [
        torch.cat([initialise(s).flatten() for s in backbone.block_parameters()])
        for _ in range(config.blocks)
    ]
    noisy = torch.stack(flat)
    noisy = noisy + 0.05 * torch.randn_like(noisy)
    shared = {
        s.name: initialise(s) + 0.1 * torch.randn(s.shape) for s in backbone.shared_parameters()
    }
    return noisy.numpy(), shared


def forward_torch(config, flat, shared, window, valid, path):
    backbone = backbones.build(config)
    layout = BlockLayout.of(backbone.block_parameters())
    blocks = [{n: torch.tensor(v) for n, v in layout.split(row).items()} for row in flat]
    gates = torch.tensor(path, dtype=torch.float32)[None]
    return run_blocks(
        backbone,
        TorchOps(),
        torch.tensor(window)[None],
        torch.tensor(valid)[None],
        blocks.__getitem__,
        shared,
        gates,
    )[0].numpy()


def forward_numpy(config, blocks, shared, window, valid):
    backbone, ops = backbones.build(config), NumpyOps()
    values = {n: v.numpy() for n, v in shared.items()}
    x = backbone.embed(ops, window, valid, values)
    for index in sorted(blocks):
        x = backbone.block(ops, index, x, valid, blocks[index], values)
    return backbone.readout(ops, x, values)


def random_window(config: BackboneConfig, length: int, seed: int):
    rng = np.random.default_rng(seed)
    window = (rng.standard_normal((config.history, config.hidden)) * 0.3).astype(np.float32)
    valid = np.arange(config.history) >= config.history - length
    return np.where(valid[:, None], window, 0).astype(np.float32), valid


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_numpy_on_the_device_equals_torch(config: BackboneConfig, data: st.DataObject) -> None:
    path = data.draw(
        st.lists(st.booleans(), min_size=config.blocks, max_size=config.blocks).filter(any)
    )
    length = data.draw(st.integers(1, config.history))
    seed = data.draw(st.integers(0, 2**16))
    encoding = data.draw(st.sampled_from(ENCODINGS))
    flat, shared = parameters(config, seed)
    window, valid = random_window(config, length, seed)
    layout = BlockLayout.of(backbones.build(config).block_parameters())
    payloads = [
        encode_block(row, layout, encoding) for row, kept in zip(flat, path, strict=True) if kept
    ]
    artefact = write_artefact("v", config.name, tuple(path), encoding, layout, payloads)
    network = read_artefact(artefact, layout)
    expected = forward_torch(config, flat, shared, window, valid, path)
    got = forward_numpy(config, network.blocks, shared, window, valid)
    if encoding == "float32":
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)
    else:
        # What a lossy encoding may change: the direction of the user's vector, a little.
        cosine = got @ expected / (np.linalg.norm(got) * np.linalg.norm(expected) + 1e-12)
        assert cosine > (0.99999 if encoding == "float16" else 0.99)


def test_padding_has_no_influence(config: BackboneConfig) -> None:
    flat, shared = parameters(config, 1)
    window, valid = random_window(config, max(1, config.history // 2), 2)
    rubbish = np.where(valid[:, None], window, 9).astype(np.float32)
    path = [True] * config.blocks
    np.testing.assert_allclose(
        forward_torch(config, flat, shared, rubbish, valid, path),
        forward_torch(config, flat, shared, window, valid, path),
        atol=1e-5,
    )


def test_no_position_sees_a_later_one(config: BackboneConfig) -> None:
    """Causality: the first input of a block may not change when the newest item does."""
    if config.history == 1:
        pytest.skip("one position has no later one")
    backbone, ops = backbones.build(config), NumpyOps()
    flat, shared = parameters(config, 1)
    values = {n: v.numpy() for n, v in shared.items()}
    own = BlockLayout.of(backbone.block_parameters()).split(flat[0])
    window, valid = random_window(config, config.history, 3)
    other = window.copy()
    other[-1] += 1
    before, after = (
        backbone.block(ops, 0, backbone.embed(ops, w, valid, values), valid, own, values)
        for w in (window, other)
    )
    np.testing.assert_array_equal(before[:-1], after[:-1])
    assert not np.allclose(before[-1], after[-1])


def test_one_set_of_parameters_each_equals_one_at_a_time(config: BackboneConfig) -> None:
    """Batched generated weights [B, I, O], several targets a network: as training runs it."""
    backbone = backbones.build(config)
    layout = BlockLayout.of(backbone.block_parameters())
    flats, shared = zip(*(parameters(config, seed) for seed in (1, 2)), strict=True)
    windows = np.stack(
        [[random_window(config, config.history, 10 * b + m)[0] for m in range(3)] for b in (0, 1)]
    )
    valid = np.ones(windows.shape[:-1], dtype=bool)
    blocks = [
        {n: torch.tensor(v) for n, v in layout.split(np.stack([f[i] for f in flats])).items()}
        for i in range(config.blocks)
    ]
    together = run_blocks(
        backbone,
        TorchOps(),
        torch.tensor(windows),
        torch.tensor(valid),
        blocks.__getitem__,
        shared[0],
        torch.ones(2, config.blocks),
    ).numpy()
    for b in (0, 1):
        for m in range(3):
            alone = forward_torch(
                config, flats[b], shared[0], windows[b, m], valid[b, m], [True] * config.blocks
            )
            np.testing.assert_allclose(together[b, m], alone, atol=1e-5, rtol=1e-4)


def test_trains_exports_and_counts(config: BackboneConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = ForwardOFA(30, MethodConfig(config, extractor_history=4))
    batch = Batch(
        torch.randint(1, 31, (5, 4)),
        torch.tensor([1, 2, 3, 4, 4]),
        torch.randint(1, 31, (5, 2, config.history)),
        torch.randint(1, 31, (5, 2)),
    )
    adaptation = system.train().adapt(batch)
    system.vectors(batch, adaptation).square().sum().backward()
    assert all(system.hypernetwork(i).weight.grad.abs().sum() > 0 for i in range(config.blocks))
    table = cost_table(config, 4)
    costs = [row["paper_flops"] for row in table["network_by_kept_blocks"]]
    assert len(set(np.diff(costs))) == 1 and costs[-1] > costs[0] >= 0
    _check_onnx(system.eval(), config, tmp_path)


def _check_onnx(system: ForwardOFA, config: BackboneConfig, folder: Path) -> None:
    system.fusion.fill_(0.5)
    export_onnx(system, folder / "extractor.onnx", folder / "backbone.onnx")
    _check_extractor(system, folder / "extractor.onnx")
    session = onnxruntime.InferenceSession(folder / "backbone.onnx")
    flat, _ = parameters(config, 5)
    shared = {n: v.detach() for n, v in system.shared_parameters().items()}
    for length in {1, config.history}:
        window, valid = random_window(config, length, 6)
        path = np.arange(config.blocks) % 2 == 0
        offset = np.linspace(-1, 1, config.hidden, dtype=np.float32)
        inputs = {
            "window": window, "valid": valid, "path": path, "blocks": flat, "offset": offset
        }  # fmt: skip
        (vector,) = session.run(None, inputs)
        expected = forward_torch(config, flat, shared, window, valid, path) + offset
        np.testing.assert_allclose(vector, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def _check_extractor(system: ForwardOFA, path: Path) -> None:
    session = onnxruntime.InferenceSession(path)
    blocks = system.backbone.config.blocks
    for items in (1, 9):
        history = torch.randn(items, system.backbone.config.hidden)
        inputs = {"history": history.numpy(), "max_blocks": np.array(blocks)}
        logits, chosen, interest, offset = session.run(None, inputs)
        length = torch.tensor([items])
        expected = system.controller(history[None], length)
        h = system.mapper.interest(history[None], length, expected)
        np.testing.assert_allclose(logits, expected[0], atol=1e-5)
        assert chosen.tolist() == choose_paths(expected)[0].tolist()
        np.testing.assert_allclose(interest, h[0], atol=1e-5)
        np.testing.assert_allclose(offset, 0.5 * system.query(h)[0], atol=1e-5)


def test_generated_matrices_start_like_a_normal_initialisation(config: BackboneConfig) -> None:
    torch.manual_seed(0)
    system = ForwardOFA(10, MethodConfig(config, spread=0.3))
    generated = system.hypernetwork(0)(torch.randn(64, config.hidden))
    for spec in backbones.build(config).block_parameters():
        if spec.kind == "matrix":
            expected = math.sqrt((1 + 0.3**2) / spec.shape[0])
            assert generated[spec.name].tensor().std().item() == pytest.approx(expected, rel=0.2)
        else:
            assert generated[spec.name].tensor().abs().max() == 0


def test_an_unknown_backbone_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="sasrec"):
        backbones.build(BackboneConfig("bert"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": 0},
        {"hidden": 0},
        {"history": 0},
        {"heads": 3},
        {"blocks": 65},
        {"norm": "post"},
        {"dilations": ()},
        {"dilations": (1, 10_001)},
        {"hidden": 8_192},
        {"history": 10_001},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        BackboneConfig("sasrec", **wrong)
