"""Assembled networks, many at once: block outputs gated by paths (paper, Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from forward_ofa.generated import Generated
from forward_ofa.ops import TorchOps
from forward_ofa_device.backbones.contract import Backbone

Parameters = Mapping[str, Tensor | Generated]

_WHOLE = 0.75
"""From this share of keepers on, training runs all rows in one part: two parts would cost the
forward pass more than they spare the backward pass (docs/training-speed.md)."""


def run_blocks(
    backbone: Backbone,
    ops: TorchOps,
    window: Tensor,
    valid: Tensor,
    parameters_of: Callable[[int], Parameters],
    shared: Mapping[str, Tensor],
    gates: Tensor | None = None,
) -> Tensor:
    """The users' vectors [B.., D], whose products with item embeddings are scores.

    window: item embeddings [B.., T, D], padding first; valid: [B.., T].
    parameters_of(l): the parameters of block l, one set for all (of the backbone's shapes) or one
    a sub-model (with one axis more in front, or `Generated`); asked for block by block.
    gates: [B, L], 1 = keep, 0 = skip; differentiable. None: all blocks.

    On a CPU a block costs a sub-model that skips it nothing in evaluation. In training its output
    is computed, since the gate's gradient is its product with (output - input), but no gradient
    goes into it: that is zero, as the gate is.
    """
    x = backbone.embed(ops, window, valid, shared)
    # A GPU would have to be waited for to know the paths: there all rows run.
    paths = None if gates is None or gates.is_cuda else gates.detach().ne(0)
    for index in range(backbone.config.blocks):

        def block(x: Tensor, valid: Tensor, own: Parameters, index: int = index) -> Tensor:
            found: Tensor = backbone.block(ops, index, x, valid, own, shared)
            return found

        own = parameters_of(index)
        if gates is None:
            x = block(x, valid, own)
            continue
        if paths is None:
            y = block(x, valid, own)
        else:
            y = _kept_rows(backbone, block, x, valid, own, paths[:, index], gates.requires_grad)
        x = x + gates[:, index].reshape(-1, *[1] * (x.ndim - 1)) * (y - x)
    output: Tensor = backbone.readout(ops, x, shared)
    return output


def _kept_rows(
    backbone: Backbone,
    block: Callable[[Tensor, Tensor, Parameters], Tensor],
    x: Tensor,
    valid: Tensor,
    own: Parameters,
    path: Tensor,
    outputs_of_skipped: bool,
) -> Tensor:
    """The block's outputs for the sub-models that keep it (for all if most do); else a constant.

    path: booleans [B]. The constant is the block's output, detached, if
    `outputs_of_skipped`, else the input.
    """
    kept_count = int(path.sum())
    most = outputs_of_skipped and kept_count >= _WHOLE * len(path)
    if most or kept_count == len(path):
        return block(x, valid, own)
    axes = {spec.name: len(spec.shape) for spec in backbone.block_parameters()}

    def some(rows: Tensor) -> Tensor:
        return block(x[rows], valid[rows], _rows_of(own, axes, rows))

    kept, skipped = (rows.nonzero()[:, 0] for rows in (path, ~path))
    constant = x.detach()
    if outputs_of_skipped:
        with torch.no_grad():
            constant = constant.index_copy(0, skipped, some(skipped))
    return constant.index_copy(0, kept, some(kept)) if len(kept) else constant


def _rows_of(own: Parameters, axes: Mapping[str, int], rows: Tensor) -> Parameters:
    """Parameters of some sub-models. axes: how many a parameter has that all share."""
    found: dict[str, Tensor | Generated] = {}
    for name, value in own.items():
        if isinstance(value, Generated):
            found[name] = value.rows(rows)
        else:
            found[name] = value[rows] if value.ndim > axes[name] else value
    return found
