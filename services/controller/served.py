"""What the controller holds of a version: the item index, the budget's arithmetic, the bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from forward_ofa_device.artefact import BlockLayout, artefact_bytes
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig, Flops
from services.controller.retrieval import Index, load_index
from services.errors import Fault, Reason
from services.ports import Encoding
from services.registry.contract import CATALOGUE, PublishedVersion


@dataclass(frozen=True)
class Allowance:
    """What a device can afford; 0: no limit. See `Budget` in types.proto."""

    max_artefact_bytes: int = 0
    max_flops: int = 0


@dataclass(frozen=True)
class DenseNetwork:
    """The network with all blocks, to compare with. bytes: of its artefact."""

    flops: Flops
    bytes: int


@dataclass(frozen=True)
class ServedVersion:
    """One version at the controller, ready to answer."""

    published: PublishedVersion
    index: Index
    item_ids: list[str]
    layout: BlockLayout
    block_flops: Flops
    fixed_flops: Flops
    _dense: dict[Encoding, DenseNetwork] = field(default_factory=dict, init=False)

    @property
    def version(self) -> str:
        return self.published.manifest.version

    @property
    def backbone(self) -> BackboneConfig:
        return self.published.manifest.backbone

    @classmethod
    def load(cls, published: PublishedVersion) -> ServedVersion:
        """Verifies every file, the mapper's too: devices move to the version that is announced
        here. Raises Fault CORRUPT_VERSION."""
        published.verify()
        backbone = build(published.manifest.backbone)
        served = cls(
            published,
            load_index(published),
            _load_item_ids(published),
            BlockLayout.of(backbone.block_parameters()),
            backbone.block_flops(),
            backbone.fixed_flops(),
        )
        served.index.search(np.zeros(backbone.config.hidden, np.float32), 1)
        return served

    def dense(self, encoding: Encoding) -> DenseNetwork:
        """What a network with all blocks would cost; counted once an encoding."""
        known = self._dense.get(encoding)
        if known is None:
            blocks = self.backbone.blocks
            flops = self.fixed_flops + self.block_flops * blocks
            size = self._bytes((True,) * blocks, encoding, blocks)
            known = self._dense[encoding] = DenseNetwork(flops, size)
        return known

    def check_budget(
        self, path: tuple[bool, ...], encoding: Encoding, allowance: Allowance
    ) -> None:
        """Raises Fault IMPOSSIBLE_BUDGET or BUDGET_EXCEEDED, naming how many blocks fit."""
        kept = sum(path)
        fit = self._fitting(path, encoding, allowance)
        if kept <= fit:
            return
        if fit == 0:
            raise Fault(
                Reason.IMPOSSIBLE_BUDGET,
                bytes=self._bytes(path, encoding, 1),
                flops=(self.fixed_flops + self.block_flops).true,
            )
        raise Fault(Reason.BUDGET_EXCEEDED, kept=kept, fit=fit)

    def _fitting(self, path: tuple[bool, ...], encoding: Encoding, allowance: Allowance) -> int:
        """How many of the path's kept blocks the allowance has room for, first ones first."""
        fit = sum(path)
        if allowance.max_flops:
            room = (allowance.max_flops - self.fixed_flops.true) // self.block_flops.true
            fit = max(0, min(fit, room))
        if allowance.max_artefact_bytes:
            while fit and self._bytes(path, encoding, fit) > allowance.max_artefact_bytes:
                fit -= 1
        return fit

    def _bytes(self, path: tuple[bool, ...], encoding: Encoding, kept: int) -> int:
        left = kept
        shorter = []
        for keep in path:
            shorter.append(keep and left > 0)
            left -= shorter[-1]
        return artefact_bytes(
            self.version, self.backbone.name, tuple(shorter), encoding, self.layout
        )


def _load_item_ids(published: PublishedVersion) -> list[str]:
    try:
        ids = json.loads(published.path(CATALOGUE).read_text())["item_ids"]
    except (ValueError, LookupError, TypeError) as error:
        raise published.corrupt(CATALOGUE, error) from error
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise published.corrupt(CATALOGUE, "item_ids is not a list of texts")
    if len(ids) != published.manifest.items or len(set(ids)) != len(ids):
        raise published.corrupt(CATALOGUE, "item_ids does not name every item once")
    return ids
