"""Holds the mapper's arithmetic in this process until a test lets it go."""

from __future__ import annotations

import threading

from services.mapper.hypernetworks import BlockHypernetworks


class Gate:
    """Holds generation until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.entered = threading.Event(), threading.Event()
        multiply = BlockHypernetworks.multiply

        def gated(hypernetworks, *arguments):
            self.entered.set()
            assert self.open.wait(20)
            return multiply(hypernetworks, *arguments)

        monkeypatch.setattr(BlockHypernetworks, "multiply", gated)
