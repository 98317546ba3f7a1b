"""The real device SDK against the real services."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from forward_ofa_device import Budget, Device
from services.registry.files import FileRegistry
from tests.support.serving import running
from tests.support.versions import publish


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_a_device_gets_its_network(deployment, tmp_path, encoding):
    tiny = deployment.tiny
    with Device(tmp_path, deployment.address, encodings=(encoding,)) as device:
        device.observe(*tiny.item_ids[:5])
        outcome = device.refresh()
        assert outcome.requested, outcome
        ranking = device.rerank(top=10)
        assert len(ranking) == 10
        assert not {entry.item_id for entry in ranking} & set(tiny.item_ids[:5])
        assert device.version == "v1"
    with Device(tmp_path, "127.0.0.1:1") as offline:
        again = offline.rerank(top=10)
        assert [entry.item_id for entry in again] == [entry.item_id for entry in ranking]
        np.testing.assert_allclose(
            [entry.score for entry in again], [entry.score for entry in ranking], rtol=1e-6
        )


def test_its_budget_is_kept(deployment, tmp_path):
    """What the device cuts its path to is what the cloud admits."""
    layout = deployment.tiny.layout
    for kept in (1, 2):
        budget = Budget(max_artefact_bytes=kept * layout.encoded_bytes("float16") + 600)
        with Device(tmp_path / str(kept), deployment.address, budget=budget) as device:
            device.observe("item-1", "item-2")
            assert device.refresh().requested
            assert 1 <= sum(device.path) <= kept


async def test_it_follows_a_new_version(tmp_path):
    registry = FileRegistry(tmp_path / "registry")
    publish(registry, "v1", seed=1)
    async with running(registry.root) as services:

        def use(wanted):
            with Device(tmp_path / "device", services.address) as device:
                device.observe("item-3")
                device.refresh(force=True)
                assert device.rerank(top=5)
                return device.version == wanted

        assert await asyncio.to_thread(use, "v1")
        await asyncio.to_thread(publish, registry, "v2", seed=2)
        for _ in range(60):
            if await asyncio.to_thread(use, "v2"):
                break
            await asyncio.sleep(0.5)
        else:
            pytest.fail("the device never moved on")
