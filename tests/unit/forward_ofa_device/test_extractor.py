"""The device's GRUs are torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.extractor import InterestExtractor, gru
from forward_ofa_device.structure import SKIP_LOGIT, initial_state
from tests.support.device_cloud import Version

torch.set_num_threads(1)
BUNDLE = read_bundle(Version("v1", head_bias=0.0).bundle)
D = 16


def torch_gru(parameters: dict[str, np.ndarray]) -> torch.nn.GRU:
    d = parameters["weight_hh"].shape[1]
    module = torch.nn.GRU(d, d, batch_first=True)
    with torch.no_grad():
        for name, value in parameters.items():
            getattr(module, f"{name}_l0").copy_(torch.tensor(value))
    return module


@given(
    hidden=st.sampled_from([1, 7, 64]),
    length=st.integers(0, 40),
    scale=st.sampled_from([0.1, 1.0, 2.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_gru_equals_torch(hidden: int, length: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = {"weight_ih": (3 * hidden, hidden), "weight_hh": (3 * hidden, hidden)}
    shapes |= {"bias_ih": (3 * hidden,), "bias_hh": (3 * hidden,)}
    spread = scale / np.sqrt(hidden)
    parameters = {n: rng.normal(0, spread, s).astype(np.float32) for n, s in shapes.items()}
    items = rng.normal(0, 1, (length, hidden)).astype(np.float32)
    state = rng.normal(0, 1, hidden).astype(np.float32)
    ours = gru(parameters, items, state)
    assert ours.dtype == np.float32
    if length == 0:
        assert (ours == state).all()
        return
    with torch.no_grad():
        start = torch.tensor(state)[None, None]
        _, theirs = torch_gru(parameters)(torch.tensor(items)[None], start)
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=1e-5, rtol=0)


def test_gru_stays_finite_for_huge_inputs() -> None:
    items = np.full((3, D), 1e6, np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(gru(BUNDLE.extractor_gru, items, np.zeros(D, np.float32))).all()


@pytest.mark.parametrize("max_blocks", [None, 1, 2])
def test_path_and_interest_equal_torch(max_blocks: int | None) -> None:
    items = np.random.default_rng(3).normal(0, 1, (6, D)).astype(np.float32)
    interest = InterestExtractor(BUNDLE).interest(items, max_blocks)
    head = {name: torch.tensor(value) for name, value in BUNDLE.controller_head.items()}
    with torch.no_grad():
        _, state = torch_gru(BUNDLE.controller_gru)(torch.tensor(items)[None])
        logits = torch.nn.functional.linear(state[0, 0], head["weight"], head["bias"])
        order = torch.argsort(-logits, stable=True)[: max_blocks or len(logits)].tolist()
        path = [bool(logits[n] >= 0) and n in order for n in range(len(logits))]
        assert any(path), "the test's bundle keeps something"
        seen = logits.clone()
        for n in range(len(logits)):
            if logits[n] >= 0 and not path[n]:
                seen[n] = SKIP_LOGIT
        start = torch.zeros(1, 1, D)
        start[0, 0, : len(seen)] = seen
        _, h = torch_gru(BUNDLE.extractor_gru)(torch.tensor(items)[None], start)
    assert list(interest.path) == path
    np.testing.assert_allclose(interest.vector, h[0, 0].numpy(), atol=1e-5, rtol=0)


def test_only_the_last_items_count() -> None:
    extractor = InterestExtractor(BUNDLE)
    items = np.random.default_rng(4).normal(0, 1, (20, D)).astype(np.float32)
    full, recent = extractor.interest(items), extractor.interest(items[-extractor.history :])
    assert extractor.history == 8
    assert (full.vector == recent.vector).all() and full.path == recent.path


def test_without_items_the_interest_is_the_structure() -> None:
    extractor = InterestExtractor(BUNDLE)
    nothing = np.zeros((0, D), np.float32)
    expected = initial_state(BUNDLE.controller_head["bias"], D)
    assert (extractor.interest(nothing).vector == expected).all()
