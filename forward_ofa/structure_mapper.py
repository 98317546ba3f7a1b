"""The structural mapper: from behaviour and structure to parameters (paper, Section 3.3).

E' reads the same history as E, started from the structure's logits padded with
zeros (no learned projection: Table 5's parameter count leaves no room for one);
L linear layers H'_k map its final state h to the parameters of L blocks (Eq. 9).

Residual base: H'_k(h) = B_k + A_k h. The bias B_k is initialised as an ordinary
layer's weights would be, and A_k small, so the generated matrices have the
variance of a normal initialisation whatever h is; N(0, 1) hypernetworks
saturate a stack of 6 to 12 blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forward_ofa.generated import Generated
from forward_ofa.structure_controller import SequenceExtractor
from forward_ofa_device.backbones.contract import ParameterSpec


def initialise(spec: ParameterSpec) -> Tensor:
    """A fresh value for one parameter of a backbone, of its shape."""
    if spec.kind == "matrix":
        return torch.randn(spec.shape) / math.sqrt(spec.shape[0])
    if spec.kind == "embedding":
        return torch.randn(spec.shape) * 0.02
    return torch.ones(spec.shape) if spec.kind == "ones" else torch.zeros(spec.shape)


class BlockHypernetwork(nn.Module):
    """H'_k: h [B, D] to the parameters of one block, each [B, *shape] once it is made.

    spread: standard deviation of a generated matrix entry around its base, as a fraction of the
    base's, for an h of unit variance.

    bases: 0, the paper's form: A_k [P, D] is free. r > 0, the factored form: A_k = U_k C_k, so
    W_k = B_k + sum_r c_r U_kr with c = C_k h; `weight` is then U_k [P, r], r networks that all
    devices share, and `mixing` C_k [r, D]. It has r (P + D) parameters in place of D P.
    """

    def __init__(
        self, hidden: int, specs: Sequence[ParameterSpec], spread: float, bases: int = 0
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.bias = nn.Parameter(torch.cat([initialise(s).flatten() for s in specs]))
        scales = [
            torch.full((s.size,), spread / math.sqrt(s.shape[0]) if s.kind == "matrix" else 0.0)
            for s in specs
        ]
        rank = bases or hidden
        noise = torch.randn(len(self.bias), rank) / math.sqrt(rank)
        self.weight = nn.Parameter(noise * torch.cat(scales)[:, None])
        self.mixing = (
            nn.Parameter(torch.randn(bases, hidden) / math.sqrt(hidden)) if bases else None
        )

    def forward(self, interest: Tensor) -> dict[str, Generated]:
        """The block's parameters by name, made where they are used."""
        coefficients = interest if self.mixing is None else F.linear(interest, self.mixing)
        # split, not slices: the backward pass of a slice allocates the whole again.
        sizes = [s.size for s in self.specs]
        parts = zip(
            self.specs, torch.split(self.weight, sizes), torch.split(self.bias, sizes), strict=True
        )
        return {s.name: Generated(coefficients, w, b, s.shape) for s, w, b in parts}

    def matrix(self) -> Tensor:
        """A_k [P, D], multiplied out if it is factored: it is linear in h either way."""
        return self.weight if self.mixing is None else self.weight @ self.mixing


class StructureMapper(nn.Module):
    """E' and the L block hypernetworks."""

    def __init__(
        self,
        hidden: int,
        blocks: int,
        specs: Sequence[ParameterSpec],
        spread: float,
        bases: int = 0,
    ) -> None:
        super().__init__()
        self.extractor = SequenceExtractor(hidden)
        self.hypernetworks = nn.ModuleList(
            BlockHypernetwork(hidden, specs, spread, bases) for _ in range(blocks)
        )

    def interest(self, embeddings: Tensor, lengths: Tensor, logits: Tensor) -> Tensor:
        """h [B, D] from history [B, N, D], lengths [B] and the structure's logits [B, L]."""
        first = F.pad(logits, (0, embeddings.shape[-1] - logits.shape[-1]))
        final: Tensor = self.extractor(embeddings, lengths, first)
        return final
