"""Runs a sub-model on the device's window, and scores items with it."""

from __future__ import annotations

import numpy as np

from forward_ofa_device.artefact import Network
from forward_ofa_device.backbones.contract import Flops
from forward_ofa_device.bundle import DeviceBundle
from forward_ofa_device.errors import CorruptFile, WrongVersion
from forward_ofa_device.ops import NumpyOps


class NetworkEngine:
    """The forward pass of one version's networks in numpy."""

    def __init__(self, bundle: DeviceBundle) -> None:
        self._bundle = bundle
        self._ops = NumpyOps()

    def check(self, network: Network) -> None:
        """Raises WrongVersion or CorruptFile unless this engine can run `network`."""
        manifest = self._bundle.manifest
        if network.version != manifest.version:
            raise WrongVersion(
                f"the network is of version {network.version!r}, the bundle of "
                f"{manifest.version!r}: networks run only with the bundle of their own version"
            )
        if network.backbone != manifest.backbone.name:
            raise CorruptFile(
                f"the network is a {network.backbone!r}, the bundle's are {manifest.backbone.name}"
            )
        if len(network.path) != manifest.backbone.blocks or not any(network.path):
            raise CorruptFile(
                f"the network's path has {sum(network.path)} of {len(network.path)} blocks; "
                f"at least 1 of {manifest.backbone.blocks} expected"
            )

    def offset(self, interest: np.ndarray) -> np.ndarray:
        """What is added to the outputs [D] of the network that was made from this h [D]: the
        cloud's query by its weight, once a network; zeros in a version without fusion."""
        query, fusion = self._bundle.query, np.float32(self._bundle.manifest.fusion)
        if not query:
            return np.zeros_like(interest)
        found: np.ndarray = fusion * (query["weight"] @ interest + query["bias"])
        return found

    def vector(self, network: Network, items: np.ndarray) -> np.ndarray:
        """Item embeddings [n, D], the most recent last, to what the network puts out, [D].

        The last T items count; fewer are padded on the left, and masked.
        """
        config = self._bundle.manifest.backbone
        recent = items[max(0, len(items) - config.history) :]
        window = np.zeros((config.history, config.hidden), np.float32)
        valid = np.zeros(config.history, bool)
        if len(recent):
            window[-len(recent) :] = recent
            valid[-len(recent) :] = True
        backbone, shared = self._bundle.backbone, self._bundle.shared
        x = backbone.embed(self._ops, window, valid, shared)
        for index, own in sorted(network.blocks.items()):
            x = backbone.block(self._ops, index, x, valid, own, shared)
        vector: np.ndarray = backbone.readout(self._ops, x, shared)
        return vector

    def scores(
        self, network: Network, items: np.ndarray, candidates: np.ndarray, offset: np.ndarray
    ) -> np.ndarray:
        """Scores [n] of candidates [n, D] for a device with these items. offset: see `offset`."""
        result: np.ndarray = candidates @ (self.vector(network, items) + offset)
        return result

    def flops(self, path: tuple[bool, ...]) -> Flops:
        """Of one forward pass of a network with this path, without the scoring of candidates."""
        backbone = self._bundle.backbone
        return backbone.fixed_flops() + backbone.block_flops() * sum(path)
