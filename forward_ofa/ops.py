"""The operations of `backbones.contract.Ops` in torch, for training and for ONNX."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from forward_ofa.generated import Generated


class TorchOps:
    """Keeps `contract.Ops`. dropout: probability, applied only while `training` is true."""

    def __init__(self, dropout: float = 0.0) -> None:
        self.dropout_probability = dropout
        self.training = False

    def linear(self, x: Tensor, weight: Tensor | Generated, bias: Tensor | Generated) -> Tensor:
        """x may lack columns at its front that are zero (see `taps`)."""
        offset = bias.tensor() if isinstance(bias, Generated) else bias
        if isinstance(weight, Generated):
            y = weight.product(x.flatten(1, -2)) + offset[:, None]
            return y.reshape(*x.shape[:-1], weight.shape[-1])
        if x.shape[-1] != weight.shape[-2]:
            weight = weight[..., -x.shape[-1] :, :]
        if weight.ndim == 2:
            return F.linear(x, weight.T, offset)
        y = torch.baddbmm(offset[:, None], x.flatten(1, -2), weight)
        return y.reshape(*x.shape[:-1], weight.shape[-1])

    def layer_norm(
        self, x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        # The gain's shape is a constant where the input's is not: while traced for ONNX.
        width = x.shape[-1:] if gain is None else gain.shape
        return F.layer_norm(x, width, gain, bias, 1e-5)

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def softmax(self, x: Tensor) -> Tensor:
        return F.softmax(x, dim=-1)

    def mask(self, x: Tensor, keep: Tensor, value: float) -> Tensor:
        return torch.where(keep, x, value)

    def causal(self, length: int, like: Tensor) -> Tensor:
        return _causal(length, like.device)

    def taps(self, x: Tensor, width: int, dilation: int) -> Tensor:
        """Without the column groups that reach back beyond the start for every position: they
        are zero, and `linear` leaves out what they would be multiplied with."""
        length = x.shape[-2]
        reach = min(width - 1, (length - 1) // dilation)
        padded = F.pad(x, (0, 0, reach * dilation, 0))
        columns = [padded.narrow(-2, j * dilation, length) for j in range(reach + 1)]
        return torch.cat(columns, dim=-1)

    def dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout_probability, self.training)


@functools.cache
def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
