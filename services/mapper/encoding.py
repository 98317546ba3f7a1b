"""Generated parameters to payloads, a batch at a time.

The same bytes as `forward_ofa_device.artefact.encode_block`, which defines them; torch does
it for all rows at once, several times faster.

Shape legend: n rows, P parameters, G matrices of one shape I x O.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from forward_ofa_device.artefact import BlockLayout
from services.ports import Encoding

_HALF_MAX = torch.finfo(torch.float16).max
# More would not stay in a core's cache from one step to the next.
_INT8_ROWS = 8


@dataclass(frozen=True)
class _Group:
    """The matrices of one shape I x O: where each begins in the block, among the int8 values
    and among the scales."""

    rows: int
    columns: int
    flat: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    scales: list[int] = field(default_factory=list)


class BlockEncoder:
    """Encodes float32 [n, P] by a layout. Stateless after it was made: threads share it."""

    def __init__(self, layout: BlockLayout) -> None:
        self._matrix_size, self._columns = layout.matrix_size, layout.columns
        self._groups = _groups(layout)
        self._vectors = _vector_positions(layout)

    def encode(self, rows: Tensor, encoding: Encoding) -> list[bytes]:
        """One payload a row. rows: float32 [n, P]; float16 clips them in place."""
        if encoding == "int8":
            starts = range(0, len(rows), _INT8_ROWS)
            return [made for at in starts for made in self._int8(rows[at : at + _INT8_ROWS])]
        if encoding == "float16":
            rows = rows.clamp_(-_HALF_MAX, _HALF_MAX).to(torch.float16)
        return [row.tobytes() for row in rows.numpy()]

    def _int8(self, rows: Tensor) -> list[bytes]:
        n = len(rows)
        codes = torch.empty((n, self._matrix_size), dtype=torch.int8)
        half = torch.empty((n, self._columns + len(self._vectors)), dtype=torch.float16)
        for group in self._groups:
            size = group.rows * group.columns
            matrices = torch.stack([rows[:, at : at + size] for at in group.flat], dim=1)
            matrices = matrices.view(n, len(group.flat), group.rows, group.columns)
            scale = _column_scales(matrices)
            safe = torch.where(scale > 0, scale, 1).float().unsqueeze(-2)
            matrices.div_(safe).round_().clamp_(-127, 127)
            if len(self._groups) == 1:  # then all lie side by side
                codes.copy_(matrices.view(n, -1))
                half[:, : self._columns] = scale.view(n, -1)
                continue
            for index, (code, at) in enumerate(zip(group.codes, group.scales, strict=True)):
                codes[:, code : code + size] = matrices[:, index].view(n, size)
                half[:, at : at + group.columns] = scale[:, index]
        half[:, self._columns :] = rows[:, self._vectors].clamp_(-_HALF_MAX, _HALF_MAX)
        pairs = zip(half.numpy(), codes.numpy(), strict=True)
        return [head.tobytes() + tail.tobytes() for head, tail in pairs]


def _column_scales(matrices: Tensor) -> Tensor:
    """float16 [n, G, O]: the largest magnitude of each column / 127, rounded up."""
    largest = matrices.abs().amax(dim=-2)
    scale = (largest / 127).clamp_(0, _HALF_MAX).to(torch.float16)
    short = (scale.float() * 127 < largest) & (scale < _HALF_MAX)
    # The bits of positive binary16 values are ordered as the values: the next one is + 1.
    return (scale.view(torch.int16) + short.to(torch.int16)).view(torch.float16)


def _groups(layout: BlockLayout) -> list[_Group]:
    groups: dict[tuple[int, int], _Group] = {}
    flat = code = scale = 0
    for spec in layout.specs:
        if spec.kind == "matrix":
            rows, columns = spec.shape
            group = groups.setdefault((rows, columns), _Group(rows, columns))
            group.flat.append(flat)
            group.codes.append(code)
            group.scales.append(scale)
            code += spec.size
            scale += columns
        flat += spec.size
    return list(groups.values())


def _vector_positions(layout: BlockLayout) -> Tensor:
    positions = torch.arange(layout.size)
    kinds = torch.cat([torch.full((spec.size,), spec.kind == "matrix") for spec in layout.specs])
    return positions[~kinds]
