"""Holds the mapper's arithmetic in this process until a test lets it go."""

from __future__ import annotations

import threading

from services.mapper.domain import LocalMapper
from services.mapper.hypernetworks import BlockHypernetworks


class Gate:
    """Holds the workers until it is opened. served: (block, requests) of each product."""

    def __init__(self, monkeypatch):
        self.open, self.entered = threading.Event(), threading.Event()
        self.served = []
        multiply = BlockHypernetworks.multiply

        def gated(networks, block, rows, out):
            self.served.append((block, len(rows)))
            self.entered.set()
            assert self.open.wait(20)
            return multiply(networks, block, rows, out)

        monkeypatch.setattr(BlockHypernetworks, "multiply", gated)
        # A request that is alone would hold the event loop, and the test with it.
        monkeypatch.setattr(LocalMapper, "_is_alone", lambda *_: False)
