"""DeviceRec: the base model, trained once, the same for all devices (paper, A.2)."""

from __future__ import annotations

from torch import Tensor, nn

from forward_ofa.assembly import run_blocks
from forward_ofa.model import Batch, item_table
from forward_ofa.ops import TorchOps
from forward_ofa.ranking import RankingSystem
from forward_ofa.structure_mapper import initialise
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig


class DeviceRec(RankingSystem):
    """All L blocks of the backbone with ordinary trained parameters."""

    def __init__(self, items: int, config: BackboneConfig, dropout: float) -> None:
        super().__init__()
        self.backbone = build(config)
        self.ops = TorchOps(dropout)
        self.items = item_table(items, config.hidden)
        block, shared = self.backbone.block_parameters(), self.backbone.shared_parameters()
        self.blocks = nn.ModuleList(
            nn.ParameterList(initialise(spec) for spec in block) for _ in range(config.blocks)
        )
        self.shared = nn.ParameterList(initialise(spec) for spec in shared)

    def block_parameters(self, index: int) -> dict[str, Tensor]:
        """The parameters of one block under the backbone's names."""
        names = [spec.name for spec in self.backbone.block_parameters()]
        values = self.blocks[index]
        assert isinstance(values, nn.ParameterList)
        return dict(zip(names, values, strict=True))

    def shared_parameters(self) -> dict[str, Tensor]:
        """The backbone's shared parameters under their own names."""
        names = [spec.name for spec in self.backbone.shared_parameters()]
        return dict(zip(names, self.shared, strict=True))

    def vectors(self, batch: Batch, gates: Tensor | None = None) -> Tensor:
        """Outputs [B, M, D] for all windows. gates [B, L]: 1 = block kept; None: all are."""
        return run_blocks(
            self.backbone,
            self.ops,
            self.items(batch.windows),
            batch.windows > 0,
            self.block_parameters,
            self.shared_parameters(),
            gates,
        )
