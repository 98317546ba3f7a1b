"""What a backbone is: the promise that SASRec and NextItNet keep, and the next one will.

A backbone is written once, in one file, as plain functions of arrays. The same
code runs under torch for training (`forward_ofa.ops.TorchOps`), under numpy on
the device (`forward_ofa_device.ops.NumpyOps`), and is traced for ONNX; the
`Ops` below are the few operations that those libraries spell differently.

Shape legend: B sub-models (leading axes, none on a device), T positions of the
window (the most recent last, padding first), D hidden width, I/O matrix sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Array = Any
"""A torch.Tensor or a np.ndarray. Backbones use only what both spell alike:
arithmetic, `@`, `reshape`, `swapaxes`, indexing, `shape`; and Ops for the rest."""

Parameters = Mapping[str, Array]

MOST_HIDDEN, MOST_HISTORY = 4_096, 10_000
"""Far beyond what a hypernetwork fits into memory for, and what anybody looks back."""


@dataclass(frozen=True)
class BackboneConfig:
    """Hyperparameters of a backbone; a backbone ignores what it does not have.

    name: which file of this package. blocks: L. hidden: D. history: T.
    heads: attention heads (SASRec). norm: "original" (the paper's SASRec: query
    and residual are the normalised input) or "pre" (pre-LN residual blocks).
    dilations: repeated over the blocks (NextItNet).
    """

    name: str = "sasrec"
    blocks: int = 6
    hidden: int = 64
    history: int = 5
    heads: int = 4
    norm: Literal["original", "pre"] = "original"
    dilations: tuple[int, ...] = (1, 4)

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.hidden < 1 or self.history < 1 or self.heads < 1:
            raise ValueError("blocks, hidden, history and heads must be at least 1")
        if self.hidden > MOST_HIDDEN or self.history > MOST_HISTORY:
            raise ValueError(
                f"hidden must be at most {MOST_HIDDEN:,}, history at most {MOST_HISTORY:,}"
            )
        if self.hidden < self.blocks:
            raise ValueError(
                f"hidden ({self.hidden}) must be at least blocks ({self.blocks}): the structure's "
                "logits, one a block, become the initial state of the interest extractor"
            )
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.norm not in ("original", "pre"):
            raise ValueError(f"norm is {self.norm!r}: use 'original' or 'pre'")
        if not self.dilations or not all(1 <= each <= MOST_HISTORY for each in self.dilations):
            raise ValueError(f"dilations must be numbers from 1 to {MOST_HISTORY:,}")


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a block (generated) or of the backbone (shared by all devices).

    kind "matrix" [I, O]: initialised with variance 1 / I, one int8 scale an
    output column on the wire. "zeros" and "ones" [D]: biases and gains.
    "embedding" [N, D]: initialised with standard deviation 0.02.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["matrix", "zeros", "ones", "embedding"]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Flops:
    """Multiply-accumulates of one forward pass, in two accountings.

    paper: as `thop` counts them, which the paper's tables use. true: attention
    products as well.
    """

    paper: int
    true: int

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.paper + other.paper, self.true + other.true)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.paper * times, self.true * times)


class Ops(Protocol):
    """The operations that torch and numpy spell differently."""

    def linear(self, x: Array, weight: Array, bias: Array) -> Array:
        """x [B.., .., I] times weight [I, O] or [B.., I, O], plus bias [O] or [B.., O]."""

    def layer_norm(self, x: Array, gain: Array | None = None, bias: Array | None = None) -> Array:
        """Over the last axis, epsilon 1e-5; affine if gain and bias [D] are given."""

    def relu(self, x: Array) -> Array: ...

    def softmax(self, x: Array) -> Array:
        """Over the last axis."""

    def mask(self, x: Array, keep: Array, value: float) -> Array:
        """x where `keep` (broadcast), `value` elsewhere."""

    def causal(self, length: int, like: Array) -> Array:
        """[length, length] booleans where `like` is: row t may see columns up to t."""

    def taps(self, x: Array, width: int, dilation: int) -> Array:
        """Causal convolution's input: x [.., T, D] -> [.., T, width * D].

        Column group j holds x at t - (width - 1 - j) * dilation, zero before the start.
        """

    def dropout(self, x: Array) -> Array:
        """Identity except in training."""


class Backbone(Protocol):
    """One file of this package keeps this. Stateless; `config` is all it holds."""

    config: BackboneConfig

    def block_parameters(self) -> Sequence[ParameterSpec]:
        """What a hypernetwork generates for one block, in wire order. All blocks alike."""

    def shared_parameters(self) -> Sequence[ParameterSpec]:
        """What is trained once and shipped in the device bundle."""

    def embed(self, ops: Ops, items: Array, valid: Array, shared: Parameters) -> Array:
        """Item embeddings [B.., T, D] and validity [B.., T] (False: padding) to the first input."""

    def block(
        self, ops: Ops, index: int, x: Array, valid: Array, own: Parameters, shared: Parameters
    ) -> Array:
        """F_l of Eq. 2: x [B.., T, D] to the output of block `index`, residual included."""

    def readout(self, ops: Ops, x: Array, shared: Parameters) -> Array:
        """x [B.., T, D] to the vector [B.., D] whose products with item embeddings are scores."""

    def block_flops(self) -> Flops:
        """What one more kept block adds."""

    def fixed_flops(self) -> Flops:
        """What is there whatever the path."""

    def fixed_parameters(self) -> int:
        """Shared parameters that the paper's "Param" counts whatever the path."""
