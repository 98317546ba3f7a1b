"""Forward-OFA as its equations are written: what the fast form is compared with, and tested by."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from forward_ofa.model import Adaptation, Batch, ForwardOFA
from forward_ofa.ops import TorchOps


class NaiveOps(TorchOps):
    """Every tap of a convolution is read, also those that lie before every window's start."""

    def taps(self, x: Tensor, width: int, dilation: int) -> Tensor:
        padded = F.pad(x, (0, 0, (width - 1) * dilation, 0))
        columns = [padded.narrow(-2, j * dilation, x.shape[-2]) for j in range(width)]
        return torch.cat(columns, dim=-1)


class NaiveForwardOFA(ForwardOFA):
    """Each block's parameters are one tensor [B, P], and every block runs for every row."""

    def vectors(self, batch: Batch, adaptation: Adaptation | None = None) -> Tensor:
        """As `ForwardOFA.vectors`, up to the order of sums."""
        adaptation = adaptation or self.adapt(batch)
        return naive_vectors(self, batch.windows, adaptation.gates, adaptation.interest)


def naive_vectors(system: ForwardOFA, windows: Tensor, gates: Tensor, interest: Tensor) -> Tensor:
    """Eq. 2 and Eq. 9: windows [B, M, T], gates [B, L], interest [B, D] -> [B, M, D]."""
    ops = NaiveOps(system.config.dropout)
    ops.training = system.training
    backbone, shared, valid = system.backbone, system.shared_parameters(), windows > 0
    x = backbone.embed(ops, system.items(windows), valid, shared)
    for index in range(backbone.config.blocks):
        hypernetwork = system.hypernetwork(index)
        flat = F.linear(interest, hypernetwork.matrix(), hypernetwork.bias)
        parts = torch.split(flat, [spec.size for spec in hypernetwork.specs], dim=-1)
        own = {
            spec.name: part.reshape(-1, *spec.shape)
            for spec, part in zip(hypernetwork.specs, parts, strict=True)
        }
        y = backbone.block(ops, index, x, valid, own, shared)
        x = x + gates[:, index].reshape(-1, *[1] * (x.ndim - 1)) * (y - x)
    output: Tensor = backbone.readout(ops, x, shared)
    return output
