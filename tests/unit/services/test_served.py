"""Retrieval is exact, budgets are arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa_device.artefact import write_artefact
from services.controller.retrieval import ItemIndex
from services.controller.served import Allowance, ServedVersion
from services.errors import Fault, Reason
from services.registry.files import FileRegistry
from tests.support.versions import publish


@given(st.integers(0, 10_000), st.integers(1, 80), st.booleans())
@settings(max_examples=60, deadline=None)
def test_search_is_a_stable_sort_cut_short(seed, count, ties):
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(50, 4)).astype(np.float32)
    if ties:
        items = np.round(items)
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    interest = rng.normal(size=4).astype(np.float32)
    found = ItemIndex(weight, bias, items).search(interest, count)
    scores = items @ (weight @ interest + bias)
    assert found.tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    registry = FileRegistry(tmp_path_factory.mktemp("registry"))
    publish(registry, "v1")
    return ServedVersion.load(registry.open("v1"))


paths = st.tuples(*[st.booleans()] * 4).filter(any)
encodings = st.sampled_from(["float32", "float16", "int8"])


@given(paths, encodings, st.integers(0, 5000), st.integers(0, 6000))
@settings(max_examples=200, deadline=None)
def test_what_the_budget_admits_really_fits(served, path, encoding, max_bytes, max_flops):
    allowance = Allowance(max_bytes, max_flops)
    kept = sum(path)
    payloads = [b"\0" * served.layout.encoded_bytes(encoding)] * kept
    artefact = write_artefact("v1", "sasrec", path, encoding, served.layout, payloads)
    flops = served.fixed_flops.true + kept * served.block_flops.true
    fits = (not max_bytes or len(artefact) <= max_bytes) and (not max_flops or flops <= max_flops)
    try:
        served.check_budget(path, encoding, allowance)
        admitted, reason = True, None
    except Fault as fault:
        admitted, reason = False, fault.reason
    assert admitted == fits
    if kept == 1 and not fits:
        assert reason is Reason.IMPOSSIBLE_BUDGET


def test_a_dense_network_is_one_with_all_blocks(served):
    blocks = served.backbone.blocks
    every = (True,) * blocks
    payload = bytes(served.layout.encoded_bytes("int8"))
    whole = write_artefact(
        "v1", served.backbone.name, every, "int8", served.layout, [payload] * blocks
    )
    assert served.dense("int8").bytes == len(whole)
    assert served.dense("int8").flops == served.fixed_flops + served.block_flops * blocks
    assert served.dense("int8") is served.dense("int8")
