"""Generated parameters to payloads, a batch at a time.

The same bytes as `forward_ofa_device.artefact.encode_block`, which defines them; torch does
it for all rows at once, several times faster.

Shape legend: n rows, P parameters, G matrices of one shape I x O.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from forward_ofa_device.artefact import BlockLayout
from services.ports import Encoding

_HALF_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class _Group:
    """The matrices of one shape. flat, codes: [G I O], scales: [G O], each the positions in the
    block, among the int8 values and among the scales."""

    shape: tuple[int, int, int]
    flat: Tensor
    codes: Tensor
    scales: Tensor


class BlockEncoder:
    """Encodes float32 [n, P] by a layout. Stateless after it was made: threads share it."""

    def __init__(self, layout: BlockLayout) -> None:
        self._matrix_size, self._columns = layout.matrix_size, layout.columns
        self._groups, self._vectors = _positions(layout)

    def encode(self, rows: Tensor, encoding: Encoding) -> list[bytes]:
        """One payload a row. rows: float32 [n, P]; float16 clips them in place."""
        if encoding == "int8":
            return self._int8(rows)
        if encoding == "float16":
            rows = rows.clamp_(-_HALF_MAX, _HALF_MAX).to(torch.float16)
        return [row.tobytes() for row in rows.numpy()]

    def _int8(self, rows: Tensor) -> list[bytes]:
        n = len(rows)
        codes = torch.empty((n, self._matrix_size), dtype=torch.int8)
        half = torch.empty((n, self._columns + len(self._vectors)), dtype=torch.float16)
        half[:, self._columns :] = rows[:, self._vectors].clamp_(-_HALF_MAX, _HALF_MAX)
        for group in self._groups:
            matrices = rows[:, group.flat].view(n, *group.shape)
            scale = _column_scales(matrices)
            half[:, group.scales] = scale.view(n, -1)
            safe = torch.where(scale > 0, scale, 1).float().unsqueeze(-2)
            values = matrices.div_(safe).round_().clamp_(-127, 127)
            codes[:, group.codes] = values.view(n, -1).to(torch.int8)
        pairs = zip(half.numpy(), codes.numpy(), strict=True)
        return [head.tobytes() + tail.tobytes() for head, tail in pairs]


def _column_scales(matrices: Tensor) -> Tensor:
    """float16 [n, G, O]: the largest magnitude of each column / 127, rounded up."""
    largest = matrices.abs().amax(dim=-2)
    scale = (largest / 127).clamp_(0, _HALF_MAX).to(torch.float16)
    short = (scale.float() * 127 < largest) & (scale < _HALF_MAX)
    # The bits of positive binary16 values are ordered as the values: the next one is + 1.
    return (scale.view(torch.int16) + short.to(torch.int16)).view(torch.float16)


def _positions(layout: BlockLayout) -> tuple[list[_Group], Tensor]:
    """The groups of equal matrices, and the positions of all vector entries."""
    found: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    vectors: list[Tensor] = []
    flat = code = scale = 0
    for spec in layout.specs:
        if spec.kind == "matrix":
            rows, columns = spec.shape
            positions = (
                torch.arange(flat, flat + spec.size),
                torch.arange(code, code + spec.size),
                torch.arange(scale, scale + columns),
            )
            found[rows, columns].append(positions)
            code += spec.size
            scale += columns
        else:
            vectors.append(torch.arange(flat, flat + spec.size))
        flat += spec.size
    groups = []
    for (rows, columns), members in found.items():
        flats, codes, scales = (torch.cat(parts) for parts in zip(*members, strict=True))
        groups.append(_Group((len(members), rows, columns), flats, codes, scales))
    return groups, torch.cat(vectors) if vectors else torch.empty(0, dtype=torch.long)
