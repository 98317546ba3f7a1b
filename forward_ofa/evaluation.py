"""Evaluation, two ways, both always reported.

Full ranking (the paper's): the target among all items of the catalogue, items
already seen not removed. The deployed funnel: the cloud retrieves candidates by
a query computed from h alone, the device removes what it has seen, which it
alone knows, and reranks the rest with its network.

Ties count against the target: its rank is one more than the number of other
items that score at least as high.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.batches import collate, last_item_sessions
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.model import Batch, ForwardOFA

TOP = 10
_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """One system on one split.

    ranks: int64 [U], full ranking. funnel_ranks: int64 [U] among retrieved unseen candidates, 0 =
    not among them; for a system without retrieval, of the same candidates (see `evaluate`).
    kept: int64 [U] kept blocks. block_usage: float [L], share of devices that keep each block.
    recall: share of targets among the candidates.
    """

    ranks: np.ndarray
    funnel_ranks: np.ndarray
    kept: np.ndarray
    block_usage: np.ndarray
    recall: float
    candidates: int

    @property
    def ndcg(self) -> float:
        return float(ndcg(self.ranks).mean())

    @property
    def hit(self) -> float:
        return float(hit(self.ranks).mean())

    def metrics(self) -> dict[str, Any]:
        """For a report: stable keys, plain numbers."""
        return {
            "users": len(self.ranks),
            f"ndcg@{TOP}": self.ndcg,
            f"hit@{TOP}": self.hit,
            f"funnel_ndcg@{TOP}": float(ndcg(self.funnel_ranks).mean()),
            f"funnel_hit@{TOP}": float(hit(self.funnel_ranks).mean()),
            "candidates": self.candidates,
            "retrieval_recall": self.recall,
            "mean_kept_blocks": float(self.kept.mean()),
            "kept_blocks_histogram": np.bincount(
                self.kept, minlength=len(self.block_usage) + 1
            ).tolist(),
            "block_usage": self.block_usage.tolist(),
        }


def ndcg(ranks: np.ndarray, top: int = TOP) -> np.ndarray:
    """NDCG@top of each user, one relevant item: 1 / log2(1 + rank), 0 beyond. Rank 0: not there."""
    inside = (ranks >= 1) & (ranks <= top)
    return np.where(inside, 1 / np.log2(1 + np.maximum(ranks, 1)), 0.0)


def hit(ranks: np.ndarray, top: int = TOP) -> np.ndarray:
    """Hit@top of each user: 1 if the target is among the first `top`."""
    return ((ranks >= 1) & (ranks <= top)).astype(np.float64)


def paired_interval(
    ours: np.ndarray, theirs: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference of two per-user metrics, users resampled."""
    difference = ours - theirs
    users = len(difference)
    rng = np.random.default_rng(seed)
    at_once = max(1, 2**22 // users)  # all at once would be gigabytes for a large log
    means = [
        difference[rng.integers(0, users, (min(at_once, resamples - start), users))].mean(1)
        for start in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def user_batches(data: SequenceDataset, split: str, history: int, window: int) -> Iterator[Batch]:
    """All users who have a target in that split, in order, one target each."""
    sessions = last_item_sessions(data, split)
    for start in range(0, len(sessions), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(sessions)))
        yield collate(data, sessions.take(rows), history, window)


def rank_of(scores: Tensor, targets: Tensor) -> Tensor:
    """Ranks [B] of targets [B] in scores [B, N + 1] (column 0, padding, does not count)."""
    scores[:, 0] = -torch.inf
    return (scores >= scores.gather(1, targets[:, None])).sum(1)


def seen_mask(data: SequenceDataset, split: str, users: np.ndarray) -> Tensor:
    """Booleans [B, N + 1]: items before the target in each user's history."""
    mask = torch.zeros(len(users), data.num_items + 1, dtype=torch.bool)
    ends = {"validation": data.train_ends, "test": data.test_starts}[split]
    rows, items = data.before(users, ends[users])
    mask[torch.from_numpy(rows), torch.from_numpy(items.astype(np.int64))] = True
    return mask


@torch.no_grad()
def evaluate(
    system: ForwardOFA | DeviceRec,
    data: SequenceDataset,
    split: str,
    candidates: int = 200,
    retriever: ForwardOFA | None = None,
) -> Evaluation:
    """One system on the "validation" or "test" split.

    retriever: whose candidates a DeviceRec reranks in the funnel (it has no retrieval of its
    own); without one its funnel has the whole catalogue.
    """
    system.eval()
    if isinstance(system, ForwardOFA):
        retriever = system
    if retriever is not None:
        retriever.eval()
    config = system.backbone.config
    history = (retriever or system).extractor_history
    count = min(candidates, data.num_items)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    found = 0
    users, _ = data.held_out(split)
    start = 0
    for batch in user_batches(data, split, history, config.history):
        part = slice(start, start + len(batch.targets))
        start = part.stop
        targets = batch.targets[:, 0]
        vectors, gates = _vectors_and_gates(system, batch)
        scores = vectors @ system.items.weight.T
        ranks = rank_of(scores, targets)
        allowed = ~seen_mask(data, split, users[part])
        if retriever is not None:
            allowed &= _retrieved(retriever, batch, count)
        # A repeated item is not in the funnel: the device removed it with all it has seen.
        present = allowed.gather(1, targets[:, None])[:, 0]
        found += int(present.sum())
        funnel = rank_of(scores.masked_fill(~allowed, -torch.inf), targets)
        rows.append((ranks, torch.where(present, funnel, 0), gates))
    full, funnels, paths = (torch.cat(part).numpy() for part in zip(*rows, strict=True))
    return Evaluation(
        full,
        funnels,
        paths.sum(1).astype(np.int64),
        paths.mean(0),
        found / len(full),
        count if retriever is not None else data.num_items,
    )


def _vectors_and_gates(system: ForwardOFA | DeviceRec, batch: Batch) -> tuple[Tensor, Tensor]:
    if isinstance(system, DeviceRec):
        vectors = system.vectors(batch)[:, 0]
        return vectors, torch.ones(len(vectors), system.backbone.config.blocks)
    adaptation = system.adapt(batch)
    return system.vectors(batch, adaptation)[:, 0], adaptation.gates


def _retrieved(retriever: ForwardOFA, batch: Batch, count: int) -> Tensor:
    """Booleans [B, N + 1]: the items that the cloud sends, computed from h alone."""
    scores = retriever.query(retriever.adapt(batch).interest) @ retriever.items.weight.T
    scores[:, 0] = -torch.inf
    best = scores.topk(count, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
