"""The weights that all systems serve: one published version, and the same numbers as one array."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forward_ofa_device.artefact import BlockLayout
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.tensors import read_tensors
from services.registry.contract import MAPPER
from services.registry.files import FileRegistry
from tests.support.versions import publish

BACKBONE = BackboneConfig(blocks=6, hidden=64)
ITEMS = 3_416
"""As many as MovieLens-1M has after its 5-core filter."""


@dataclass(frozen=True)
class BenchVersion:
    """registry: a folder with one version, labelled stable. weights: .npy [L, D + 1, P], the
    same numbers, the last row is the bias."""

    registry: Path
    version: str
    weights: Path
    config: BackboneConfig

    @property
    def backbone(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self.config)

    @property
    def layout(self) -> BlockLayout:
        return BlockLayout.of(build(self.config).block_parameters())


def make_version(folder: Path) -> BenchVersion:
    """Random weights, published and written as an array."""
    registry = FileRegistry(folder / "registry")
    publish(registry, "20260101-000000-0be9c4a0", config=BACKBONE, items=ITEMS)
    return open_version(folder / "registry", folder / "weights.npy")


def open_version(registry: Path, weights: Path) -> BenchVersion:
    """The stable version of a registry; its mapper's weights are written to `weights`.

    Raises ValueError if the registry has no stable version, Fault if that is damaged.
    """
    files = FileRegistry(registry)
    name = files.current()
    if name is None:
        raise ValueError(f"{registry} has no version labelled stable: publish one, or name another")
    published = files.open(name)
    config = published.manifest.backbone
    tensors, _ = read_tensors(published.path(MAPPER).read_bytes())
    np.save(weights, np.stack([_block(tensors, block) for block in range(config.blocks)]))
    return BenchVersion(registry, name, weights, config)


def _block(tensors: dict[str, np.ndarray], block: int) -> np.ndarray:
    """[D + 1, P] of one block, whichever way the mapper's file has it."""
    if f"block.{block}" in tensors:
        return np.asarray(tensors[f"block.{block}"])
    weight, bias = tensors[f"block.{block}.weight"], tensors[f"block.{block}.bias"]
    return np.concatenate([weight.T, bias[None]])
