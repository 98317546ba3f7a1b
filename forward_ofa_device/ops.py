"""The operations of `backbones.contract.Ops` in numpy, for inference."""

from __future__ import annotations

import numpy as np

from forward_ofa_device.backbones.contract import Array


class NumpyOps:
    """Keeps `contract.Ops`; float32 in, float32 out."""

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        if weight.ndim == 2:
            return x @ weight + bias
        lead = weight.shape[:-2]
        flat = x.reshape(*lead, -1, x.shape[-1])
        y = flat @ weight + bias[..., None, :]
        return y.reshape(*x.shape[:-1], weight.shape[-1])

    def layer_norm(self, x: Array, gain: Array | None = None, bias: Array | None = None) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        y = centred / np.sqrt(variance + np.float32(1e-5))
        return y if gain is None or bias is None else y * gain + bias

    def relu(self, x: Array) -> Array:
        return np.maximum(x, np.float32(0))

    def softmax(self, x: Array) -> Array:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def mask(self, x: Array, keep: Array, value: float) -> Array:
        return np.where(keep, x, np.float32(value))

    def causal(self, length: int, like: Array) -> Array:
        return np.tri(length, dtype=bool)

    def taps(self, x: Array, width: int, dilation: int) -> Array:
        length = x.shape[-2]
        padding = (width - 1) * dilation
        pad = [(0, 0)] * (x.ndim - 2) + [(padding, 0), (0, 0)]
        padded = np.pad(x, pad)
        columns = [padded[..., j * dilation : j * dilation + length, :] for j in range(width)]
        return np.concatenate(columns, axis=-1)

    def dropout(self, x: Array) -> Array:
        return x
