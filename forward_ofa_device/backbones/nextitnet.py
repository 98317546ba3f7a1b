"""NextItNet (Yuan et al., WSDM 2019) as the paper runs it.

A block is causal convolution (width 3, dilation m) -> LN -> ReLU -> causal
convolution (dilation 2m) -> LN -> ReLU -> + x. The two convolutions are
generated, 24,704 parameters at D = 64; the four LayerNorm vectors of a block
are shared by all devices. That gives the paper's 1.5053 M FLOPs and
9.5846 Mbit for twelve blocks.

Difference from the authors' code: padding is set to zero before each
convolution, so that a short history never depends on how it is padded.
"""

from __future__ import annotations

from collections.abc import Sequence

from forward_ofa_device.backbones.contract import (
    Array,
    BackboneConfig,
    Flops,
    Ops,
    Parameters,
    ParameterSpec,
)

_WIDTH = 3


class NextItNet:
    """See the module; keeps `contract.Backbone`."""

    def __init__(self, config: BackboneConfig) -> None:
        self.config = config

    def block_parameters(self) -> Sequence[ParameterSpec]:
        d = self.config.hidden
        specs = []
        for name in ("conv1", "conv2"):
            specs.append(ParameterSpec(f"{name}.weight", (_WIDTH * d, d), "matrix"))
            specs.append(ParameterSpec(f"{name}.bias", (d,), "zeros"))
        return specs

    def shared_parameters(self) -> Sequence[ParameterSpec]:
        d = self.config.hidden
        specs = []
        for index in range(self.config.blocks):
            for norm in ("norm1", "norm2"):
                specs.append(ParameterSpec(f"{index}.{norm}.gain", (d,), "ones"))
                specs.append(ParameterSpec(f"{index}.{norm}.bias", (d,), "zeros"))
        return specs

    def embed(self, ops: Ops, items: Array, valid: Array, shared: Parameters) -> Array:
        return ops.mask(ops.dropout(items), valid[..., None], 0.0)

    def block(
        self, ops: Ops, index: int, x: Array, valid: Array, own: Parameters, shared: Parameters
    ) -> Array:
        dilation = self.config.dilations[index % len(self.config.dilations)]
        y = x
        for step in (1, 2):
            taps = ops.taps(ops.mask(y, valid[..., None], 0.0), _WIDTH, step * dilation)
            y = ops.linear(taps, own[f"conv{step}.weight"], own[f"conv{step}.bias"])
            norm = f"{index}.norm{step}"
            y = ops.relu(ops.layer_norm(y, shared[f"{norm}.gain"], shared[f"{norm}.bias"]))
        return x + ops.dropout(y)

    def readout(self, ops: Ops, x: Array, shared: Parameters) -> Array:
        return x[..., -1, :]

    def block_flops(self) -> Flops:
        t, d = self.config.history, self.config.hidden
        convolutions = 2 * t * _WIDTH * d * d
        return Flops(convolutions, convolutions + self._norm_flops())

    def fixed_flops(self) -> Flops:
        # The paper's tool counts the LayerNorms of skipped blocks too.
        return Flops(self.config.blocks * self._norm_flops(), 0)

    def _norm_flops(self) -> int:
        return 2 * 4 * self.config.history * self.config.hidden

    def fixed_parameters(self) -> int:
        return sum(spec.size for spec in self.shared_parameters())


def build(config: BackboneConfig) -> NextItNet:
    return NextItNet(config)
