"""Bundles from disk."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

import pytest

from services.controller.bundles import stream_file
from services.registry.contract import BUNDLE_TENSORS
from services.registry.files import FileRegistry
from tests.support.versions import publish


def _open_files():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
async def test_a_caller_who_goes_while_the_file_is_opened_leaves_it_closed(tmp_path):
    registry = FileRegistry(tmp_path)
    publish(registry, "v1")
    published = registry.open("v1")
    await asyncio.to_thread(lambda: None)
    before = _open_files()
    for _ in range(20):
        chunks = stream_file(published, BUNDLE_TENSORS, 0)
        first = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        time.sleep(0.005)  # The thread has opened it; the event loop does not know yet.
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    gc.collect()
    assert _open_files() <= before
