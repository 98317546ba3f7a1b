"""Assembled networks, many at once: block outputs gated by paths (paper, Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from forward_ofa.ops import TorchOps
from forward_ofa_device.backbones.contract import Backbone


def run_blocks(
    backbone: Backbone,
    ops: TorchOps,
    window: Tensor,
    valid: Tensor,
    parameters_of: Callable[[int], Mapping[str, Tensor]],
    shared: Mapping[str, Tensor],
    gates: Tensor | None = None,
) -> Tensor:
    """The users' vectors [B.., D], whose products with item embeddings are scores.

    window: item embeddings [B.., T, D], padding first; valid: [B.., T].
    parameters_of(l): the parameters of block l, one set for all or one a sub-model;
    asked for block by block, so that only one block's are alive at a time in evaluation.
    gates: [B, L], 1 = keep, 0 = skip; differentiable. None: all blocks.
    """
    x = backbone.embed(ops, window, valid, shared)
    for index in range(backbone.config.blocks):
        y = backbone.block(ops, index, x, valid, parameters_of(index), shared)
        if gates is None:
            x = y
        else:
            gate = gates[:, index].reshape(-1, *[1] * (x.ndim - 1))
            x = x + gate * (y - x)
    output: Tensor = backbone.readout(ops, x, shared)
    return output
