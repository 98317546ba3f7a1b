"""Generated parameters, used without ever lying in memory for a whole block.

A generated matrix is W(h) = B + A h. What a block does with it is x W(h) + b(h), so W is made one
matrix at a time, right before its product (a few megabytes for a batch of 256, which stay in the
processor's cache), and its gradient is used up at once: it goes into A's, B's and h's gradients
and is dropped. A naive module makes all matrices of a block first, and its backward pass puts
their gradients together again into one tensor of [B, P] before it can use them.

What is multiplied is the same, so results differ from the naive form by the order of sums only;
tests/unit/forward_ofa/test_generated.py compares the two and checks gradients in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclass(frozen=True)
class Generated:
    """One parameter of B sub-models that is not made yet: base + weight interest, in `shape`.

    interest [B, K]: h, or the coefficients of the shared bases. weight [size, K], base [size],
    where size is the product of `shape`.
    """

    interest: Tensor
    weight: Tensor
    base: Tensor
    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The parameter itself, [B, *shape]."""
        return F.linear(self.interest, self.weight, self.base).reshape(-1, *self.shape)

    def rows(self, index: Tensor) -> Generated:
        """The same parameter of some of the sub-models, int64 [b]."""
        return Generated(self.interest[index], self.weight, self.base, self.shape)

    def product(self, x: Tensor) -> Tensor:
        """x [B, R, I] times this matrix of shape [I0, O]: [B, R, O].

        I may be less than I0: then x has lost columns at its front that held only zeros, and the
        matrix's first I0 - I rows are neither made nor, their gradient being zero, trained.
        """
        if len(self.shape) != 2:
            raise ValueError(f"only a matrix has a product, not a parameter of shape {self.shape}")
        if x.shape[-1] > self.shape[0]:
            raise ValueError(f"x has {x.shape[-1]} columns, the matrix {self.shape[0]} rows")
        found: Tensor = _Product.apply(x, self.interest, self.weight, self.base, self.shape[1])  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    """x [B, R, I], interest [B, K], weight [I0 O, K], base [I0 O] -> x (base + weight interest).

    I the columns of x, O = `width`; of the I0 rows of the matrix the last I are used.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, interest: Tensor, weight: Tensor, base: Tensor, width: int
    ) -> Tensor:
        used = x.shape[-1] * width
        flat = torch.addmm(base[-used:], interest, weight[-used:].T)
        ctx.save_for_backward(x, interest, weight, flat)
        return torch.bmm(x, flat.view(len(x), x.shape[-1], width))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, interest, weight, flat = ctx.saved_tensors
        wants_x, wants_interest, wants_weight, wants_base, _ = ctx.needs_input_grad
        matrix = flat.view(len(x), x.shape[-1], grad.shape[-1])
        of_x = torch.bmm(grad, matrix.transpose(1, 2)) if wants_x else None
        of_flat = torch.bmm(x.transpose(1, 2), grad).view(flat.shape)
        used = flat.shape[1]
        of_interest = of_flat @ weight[-used:] if wants_interest else None
        of_weight = _padded(of_flat.T @ interest, len(weight)) if wants_weight else None
        of_base = _padded(of_flat.sum(0), len(weight)) if wants_base else None
        return of_x, of_interest, of_weight, of_base, None


def _padded(last: Tensor, rows: int) -> Tensor:
    """`last` as the last rows of a tensor of so many, zero before."""
    missing = rows - len(last)
    return F.pad(last, (0, 0) * (last.ndim - 1) + (missing, 0)) if missing else last
