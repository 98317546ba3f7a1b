"""The mapper's parts: encoders against their definition, bounds, memory."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forward_ofa_device.artefact import ENCODINGS, BlockLayout, encode_block
from forward_ofa_device.backbones.contract import ParameterSpec
from services.errors import Fault, Reason
from services.mapper.encoding import BlockEncoder
from services.mapper.hypernetworks import BlockHypernetworks
from services.mapper.workers import Workers
from services.registry.files import FileRegistry
from services.runtime.metrics import Metrics
from tests.support.versions import publish

side = st.integers(1, 5)
specs = st.lists(
    st.one_of(
        st.tuples(st.just("matrix"), st.tuples(side, side)),
        st.tuples(st.just("zeros"), st.tuples(side)),
    ),
    min_size=1,
    max_size=6,
)
# Subnormal, ordinary, beyond binary16: what a float32 can be.
value = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(specs, st.data(), st.sampled_from(ENCODINGS))
def test_a_batch_is_encoded_as_the_definition_says(shapes, data, encoding):
    layout = BlockLayout.of(
        [ParameterSpec(f"p{n}", shape, kind) for n, (kind, shape) in enumerate(shapes)]
    )
    rows = data.draw(
        st.lists(
            st.lists(value, min_size=layout.size, max_size=layout.size), min_size=1, max_size=3
        )
    )
    matrix = np.array(rows, np.float32)
    wanted = [encode_block(row, layout, encoding) for row in matrix]
    assert BlockEncoder(layout).encode(torch.from_numpy(matrix.copy()), encoding) == wanted


@pytest.fixture(scope="module")
def tiny_networks(tmp_path_factory):
    registry = FileRegistry(tmp_path_factory.mktemp("registry"))
    tiny = publish(registry, "v1")
    return tiny, BlockHypernetworks.load(registry.open("v1"))


def test_weights_are_the_files_pages(tiny_networks):
    """Not a copy: all processes of a machine share them."""
    _, networks = tiny_networks
    address = networks._weights[0].data_ptr()
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                assert "mapper.safetensors" in line
                return
    raise AssertionError("the weights lie nowhere")


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8))
def test_what_is_let_through_is_finite(tiny_networks, values):
    _, networks = tiny_networks
    interest = np.array(values, np.float32)
    try:
        row = networks.row(interest)
    except Fault as fault:
        assert fault.reason is Reason.NON_FINITE_INTEREST
        assert np.abs(interest).max() > 1e30, "only what is absurd is refused"
        return
    out = torch.empty(1, networks.layout.size)
    for block in range(networks.blocks):
        assert torch.isfinite(networks.multiply(block, torch.from_numpy(row)[None], out)).all()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
async def test_workers_step_back_from_wherever_the_process_is(monkeypatch):
    asked = []

    def refuse(kind, thread, nice):
        asked.append(nice)
        raise PermissionError

    monkeypatch.setattr(os, "getpriority", lambda *_: 17)
    monkeypatch.setattr(os, "setpriority", refuse)
    workers = Workers(1, 1, Metrics())
    try:
        end = time.monotonic() + 10
        while not asked and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.05)
        assert asked == [19]
        assert all(thread.is_alive() for thread in workers._threads)
    finally:
        workers.close()
