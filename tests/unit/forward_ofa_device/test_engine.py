from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from forward_ofa_device.artefact import read_artefact
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.engine import NetworkEngine
from forward_ofa_device.errors import CorruptFile, WrongVersion
from tests.support.device_cloud import Version

PATH = (True, False, True, True)


@pytest.fixture(params=["sasrec", "nextitnet"])
def parts(request: pytest.FixtureRequest) -> tuple:
    version = Version("v1", backbone=request.param)
    h = np.random.default_rng(0).normal(0, 1, 16).astype(np.float32)
    data = version.artefact(PATH, h, "float32")
    return NetworkEngine(read_bundle(version.bundle)), read_artefact(data, version.layout), version


def test_padding_never_matters(parts: tuple) -> None:
    """What an item before the window, or the number of paddings, must not change."""
    engine, network, version = parts
    items = version.embeddings[:7]
    assert (engine.vector(network, items) == engine.vector(network, items[-5:])).all()
    few = engine.vector(network, items[-2:])
    assert np.isfinite(few).all() and np.abs(few - engine.vector(network, items)).max() > 1e-3
    assert np.isfinite(engine.vector(network, items[:0])).all()


def test_scores_are_products_and_every_kept_block_counts(parts: tuple) -> None:
    engine, network, version = parts
    items = version.embeddings[:5]
    vector = engine.vector(network, items)
    assert vector.dtype == np.float32 and vector.shape == (16,)
    offset = engine.offset(np.arange(16, dtype=np.float32))
    assert np.abs(offset).max() > 0.1
    scores = engine.scores(network, items, version.embeddings, offset)
    np.testing.assert_allclose(scores, version.embeddings @ (vector + offset), rtol=1e-5)
    for block in network.blocks:
        changed = {**network.blocks}
        # Not a scaling, which NextItNet's norms would undo.
        changed[block] = {name: np.roll(value, 1) for name, value in changed[block].items()}
        other = engine.vector(dataclasses.replace(network, blocks=changed), items)
        assert np.abs(other - vector).max() > 1e-4


def test_flops_grow_by_the_block(parts: tuple) -> None:
    engine, _, _ = parts
    one, two = engine.flops((True, False, False, False)), engine.flops((True, False, True, False))
    three = engine.flops(PATH)
    assert two.true - one.true == three.true - two.true > 0


def test_networks_of_others_are_refused(parts: tuple) -> None:
    engine, network, _ = parts
    engine.check(network)
    with pytest.raises(WrongVersion, match="v2"):
        engine.check(dataclasses.replace(network, version="v2"))
    with pytest.raises(CorruptFile, match="bert"):
        engine.check(dataclasses.replace(network, backbone="bert"))
    with pytest.raises(CorruptFile, match="path"):
        engine.check(dataclasses.replace(network, path=(True,) * 5))
