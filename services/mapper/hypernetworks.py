"""H'_0 .. H'_{L-1} of one version: W_k = B_k + A_k h (paper, Eq. 9), many devices at once.

Shape legend: D hidden width, P parameters of a block, n requests of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from forward_ofa_device.artefact import BlockLayout
from forward_ofa_device.backbones import build
from services.errors import Fault, Reason
from services.registry.contract import MAPPER, PublishedVersion

Precision = Literal["float32", "bfloat16"]
_LARGEST = float(torch.finfo(torch.float32).max)


class BlockHypernetworks:
    """All block hypernetworks of one version. Never changes after loading: threads share it.

    blocks: one [D + 1, P] matrix a block, A_k^T with B_k as its last row, so that one product
    with [h, 1] is the whole of Eq. 9. float32: views into the memory-mapped file, which all
    processes of a machine share. bfloat16: a private copy of half the size, which pays on
    processors that multiply bfloat16 natively (AMX, AVX512-BF16) and is slow on others.
    """

    def __init__(
        self, layout: BlockLayout, blocks: Mapping[int, Tensor], precision: Precision = "float32"
    ) -> None:
        self.layout = layout
        self.hidden = blocks[0].shape[0] - 1
        self.blocks = len(blocks)
        self._dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._weights = [blocks[index].to(self._dtype) for index in range(len(blocks))]
        self._largest_column = max(float(w[:-1].norm(dim=0).max()) for w in blocks.values())
        self._largest_bias = max(float(w[-1].abs().max()) for w in blocks.values())

    @classmethod
    def load(
        cls, published: PublishedVersion, precision: Precision = "float32"
    ) -> BlockHypernetworks:
        """Raises Fault CORRUPT_VERSION if the tensors are not those of the backbone."""
        config = published.manifest.backbone
        layout = BlockLayout.of(build(config).block_parameters())
        try:
            tensors = load_file(published.path(MAPPER))
        except SafetensorError as error:
            raise published.corrupt(MAPPER, error) from error
        shape = (config.hidden + 1, layout.size)
        expected = {f"block.{block}": shape for block in range(config.blocks)}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected or any(
            tensor.dtype != torch.float32 for tensor in tensors.values()
        ):
            raise published.corrupt(MAPPER, "the tensors are not those of the backbone")
        blocks = {block: tensors[f"block.{block}"] for block in range(config.blocks)}
        loaded = cls(layout, blocks, precision)
        if not np.isfinite(loaded._largest_column + loaded._largest_bias):
            raise published.corrupt(MAPPER, "values are not finite")
        return loaded

    def row(self, interest: np.ndarray) -> np.ndarray:
        """[h, 1], float32 [D + 1], once it is sure that no parameter made from it overflows.

        |A_k h + B_k| is at most |h| times the longest column of A_k^T plus the largest |B_k|
        (Cauchy-Schwarz): D steps here in place of a look at all L P parameters.
        Raises Fault NON_FINITE_INTEREST.
        """
        length = float(np.linalg.norm(interest.astype(np.float64)))
        if not length * self._largest_column + self._largest_bias < _LARGEST:
            raise Fault(Reason.NON_FINITE_INTEREST, detail="generated parameters may overflow")
        row = np.empty(self.hidden + 1, np.float32)
        row[:-1] = interest
        row[-1] = 1.0
        return row

    def multiply(self, block: int, rows: Tensor, out: Tensor) -> Tensor:
        """The parameters of one block for n devices. rows: float32 [n, D + 1], out: float32
        [n, P], which is filled and returned."""
        weight = self._weights[block]
        if self._dtype is torch.float32:
            return torch.mm(rows, weight, out=out)
        return out.copy_(torch.mm(rows.to(self._dtype), weight))

    @property
    def weight_values(self) -> int:
        """Values that generating one block reads."""
        return (self.hidden + 1) * self.layout.size

    def flops(self, kept: int) -> int:
        """Multiply-accumulates of generating so many blocks."""
        return kept * self.hidden * self.layout.size
