"""Losses (paper, Section 3.4).

Means over the batch; where several processes train together, over all of it (`distributed.share`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from forward_ofa.distributed import share


def compact_loss(logits: Tensor) -> Tensor:
    """L_c of Eqs. 10 and 11, mean over the batch: sum over blocks of -log sigmoid(-s)."""
    return F.softplus(logits).sum(-1).mean() * share(len(logits))


def next_item_loss(vectors: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Full softmax cross-entropy of the next item.

    vectors [.., D], item embeddings [N + 1, D] (row 0: padding, never an answer),
    targets [..] in 1..N; 0 marks a target to leave out. Mean over the targets.
    """
    if targets.is_cuda:  # picking out the wanted ones would make the GPU wait for their number
        scores = vectors.flatten(0, -2) @ items[1:].T
        return F.cross_entropy(scores, targets.flatten() - 1, ignore_index=-1) * share(targets > 0)
    wanted = targets > 0
    scores = vectors[wanted] @ items[1:].T
    return F.cross_entropy(scores, targets[wanted] - 1) * share(wanted)


def retrieval_loss(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """The same for the cloud's query [B, D], which has several targets [B, M] a device."""
    log_probabilities = torch.log_softmax(queries @ items[1:].T, dim=-1)
    wanted = targets > 0
    picked = log_probabilities.gather(1, (targets - 1).clamp(min=0))
    return -(picked * wanted).sum() / wanted.sum() * share(wanted)
