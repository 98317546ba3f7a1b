"""SASRec (Kang and McAuley, ICDM 2018) as the paper runs it.

Five generated matrices a block, Q, K, V, FFN1, FFN2, each [D, D] with bias, and
no output projection: 20,800 parameters at D = 64, which is what the paper's
"Param" of 3.9936 Mbit for six blocks says. LayerNorms have no affine part.

norm="original" is the authors' code: the query is LN(x), keys and values are
the raw x, and the residual adds LN(x), not x. norm="pre" is the pre-LN block,
y = x + Att(LN(x)); y + FFN(LN(y)). Both cost the same.

Differences from the authors' code: padding is masked as a key; positions count
from the end of the window, so that the newest item always has the same one;
dropout is applied to the embeddings and to each block's output, not inside (on a
CPU its random numbers cost as much as the block).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forward_ofa_device.backbones.contract import (
    Array,
    BackboneConfig,
    Flops,
    Ops,
    Parameters,
    ParameterSpec,
)


class SASRec:
    """See the module; keeps `contract.Backbone`."""

    def __init__(self, config: BackboneConfig) -> None:
        self.config = config

    def block_parameters(self) -> Sequence[ParameterSpec]:
        d = self.config.hidden
        specs = []
        for name in ("query", "key", "value", "ffn1", "ffn2"):
            specs.append(ParameterSpec(f"{name}.weight", (d, d), "matrix"))
            specs.append(ParameterSpec(f"{name}.bias", (d,), "zeros"))
        return specs

    def shared_parameters(self) -> Sequence[ParameterSpec]:
        return [ParameterSpec("positions", (self.config.history, self.config.hidden), "embedding")]

    def embed(self, ops: Ops, items: Array, valid: Array, shared: Parameters) -> Array:
        x = items * math.sqrt(self.config.hidden) + shared["positions"]
        return ops.mask(ops.dropout(x), valid[..., None], 0.0)

    def block(
        self, ops: Ops, index: int, x: Array, valid: Array, own: Parameters, shared: Parameters
    ) -> Array:
        normed = ops.layer_norm(x)
        pre = self.config.norm == "pre"
        attended = self._attention(ops, normed, normed if pre else x, valid, own)
        y = (x if pre else normed) + attended
        normed = ops.layer_norm(y)
        inner = ops.relu(ops.linear(normed, own["ffn1.weight"], own["ffn1.bias"]))
        fed = ops.linear(inner, own["ffn2.weight"], own["ffn2.bias"])
        return (y if pre else normed) + ops.dropout(fed)

    def _attention(
        self, ops: Ops, query_input: Array, key_input: Array, valid: Array, own: Parameters
    ) -> Array:
        query = self._heads(ops.linear(query_input, own["query.weight"], own["query.bias"]))
        key = self._heads(ops.linear(key_input, own["key.weight"], own["key.bias"]))
        value = self._heads(ops.linear(key_input, own["value.weight"], own["value.bias"]))
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(self.config.hidden // self.config.heads)
        # A padded query row sees nothing valid; a finite value keeps its softmax finite.
        visible = ops.causal(self.config.history, valid) & valid[..., None, None, :]
        weights = ops.softmax(ops.mask(scores, visible, -1e9))
        mixed = (weights @ value).swapaxes(-2, -3)
        return mixed.reshape(*mixed.shape[:-2], self.config.hidden)

    def _heads(self, x: Array) -> Array:
        heads = self.config.heads
        return x.reshape(*x.shape[:-1], heads, self.config.hidden // heads).swapaxes(-2, -3)

    def readout(self, ops: Ops, x: Array, shared: Parameters) -> Array:
        return ops.layer_norm(x[..., -1, :])

    def block_flops(self) -> Flops:
        t, d = self.config.history, self.config.hidden
        matrices = 5 * t * d * d
        attention = 2 * t * t * d
        return Flops(matrices, matrices + attention + self._norm_and_softmax_flops())

    def fixed_flops(self) -> Flops:
        final_norm = 2 * self.config.history * self.config.hidden
        # The paper's tool counts LayerNorms and softmaxes of skipped blocks too.
        return Flops(final_norm + self.config.blocks * self._norm_and_softmax_flops(), final_norm)

    def _norm_and_softmax_flops(self) -> int:
        t, d = self.config.history, self.config.hidden
        return 2 * 2 * t * d + self.config.heads * t * (3 * t - 1)

    def fixed_parameters(self) -> int:
        return 0


def build(config: BackboneConfig) -> SASRec:
    return SASRec(config)
