"""Evaluation, three ways, all always reported.

Full ranking (the paper's): the target among all items of the catalogue, items
already seen not removed. The same without the items that the user has seen, as
most published figures of sequential recommendation are. The deployed funnel: the
cloud retrieves candidates by a query computed from h alone, the device removes
what it has seen, which it alone knows, and reranks the rest with its network.

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

from forward_ofa.batches import collate, last_item_sessions
from forward_ofa.cost import Costs
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.model import Batch
from forward_ofa.ranking import RankingSystem

TOP = 10
_BATCH = 256


@dataclass(frozen=True)
class Funnel:
    """The deployed funnel of one system.

    ranks: int64 [U] among retrieved unseen candidates, 0 = not among them.
    recall: share of targets among the candidates.
    """

    ranks: np.ndarray
    recall: float
    candidates: int

    def metrics(self) -> dict[str, Any]:
        return {
            f"funnel_ndcg@{TOP}": float(ndcg(self.ranks).mean()),
            f"funnel_hit@{TOP}": float(hit(self.ranks).mean()),
            "candidates": self.candidates,
            "retrieval_recall": self.recall,
        }


@dataclass(frozen=True)
class Evaluation:
    """One system on one split.

    ranks: int64 [U], full ranking. unseen_ranks: int64 [U], among the items that the user has not
    seen; 0 where the target is one that was seen before. kept: booleans [U, L], which blocks each
    network has. costs: of each user's network. funnel: None for a system without candidates.
    """

    ranks: np.ndarray
    unseen_ranks: np.ndarray
    kept: np.ndarray
    costs: Costs
    funnel: Funnel | None = None

    @property
    def ndcg(self) -> float:
        return float(ndcg(self.ranks).mean())

    @property
    def hit(self) -> float:
        return float(hit(self.ranks).mean())

    @property
    def kept_blocks(self) -> np.ndarray:
        """int64 [U]: how many blocks each network has."""
        counts: np.ndarray = self.kept.sum(1)
        return counts

    def metrics(self) -> dict[str, Any]:
        """For a report: stable keys, plain numbers. Those of the funnel only if there is one."""
        counts = np.bincount(self.kept_blocks, minlength=self.kept.shape[1] + 1)
        return {
            "users": len(self.ranks),
            f"ndcg@{TOP}": self.ndcg,
            f"hit@{TOP}": self.hit,
            f"unseen_ndcg@{TOP}": float(ndcg(self.unseen_ranks).mean()),
            f"unseen_hit@{TOP}": float(hit(self.unseen_ranks).mean()),
            "repeated_targets": float(np.mean(self.unseen_ranks == 0)),
            **(self.funnel.metrics() if self.funnel is not None else {}),
            "mean_kept_blocks": float(self.kept_blocks.mean()),
            "kept_blocks_histogram": counts.tolist(),
            "block_usage": self.kept.mean(0).tolist(),
            **self.costs.means(),
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


def user_batches(
    data: SequenceDataset, split: str, history: int, window: int, age: int | np.ndarray = 0
) -> Iterator[Batch]:
    """All users who have a target in that split, in order, one target each; age: see `collate`."""
    sessions = last_item_sessions(data, split)
    ages = np.broadcast_to(age, len(sessions))
    for start in range(0, len(sessions), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(sessions)))
        yield collate(data, sessions.take(rows), history, window, ages[rows])


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
    system: RankingSystem,
    data: SequenceDataset,
    split: str,
    candidates: int | None = None,
    retriever: RankingSystem | None = None,
    age: int | np.ndarray = 0,
) -> Evaluation:
    """One system on the "validation" or "test" split, on the device where its parameters are.

    candidates: how many the funnel has; None: no funnel. retriever: whose retrieval finds them;
    None: the system's own. Without either there is no funnel. age: items that users have met
    since candidates and network were made for them, one number or, int64 [U], each user's; the
    network's window is of now.
    """
    retriever = retriever or system
    system.eval()
    retriever.eval()
    window = system.backbone.config.history
    history = max(system.extractor_history, retriever.extractor_history)
    ranks: list[Tensor] = []
    unseen: list[Tensor] = []
    kept: list[Tensor] = []
    costs: list[Costs] = []
    funnel: list[Tensor] = []
    everyone, start = data.held_out(split)[0], 0
    for whole in user_batches(data, split, history, window, age):
        users = everyone[start : start + len(whole.targets)]
        start += len(users)
        batch = whole.to(system.device)
        networks = system.networks(batch.read(system.extractor_history))
        scores = networks.vectors[:, 0] @ system.items.weight.T
        targets = batch.targets[:, 0]
        ranks.append(rank_of(scores, targets).cpu())
        fresh = ~seen_mask(data, split, users).to(system.device)
        unseen.append(ranks_among(fresh, scores, targets).cpu())
        kept.append(networks.kept.cpu())
        costs.append(networks.costs)
        sent = _retrieved(retriever, batch, candidates)
        if sent is not None:
            funnel.append(ranks_among(sent & fresh, scores, targets).cpu())
    reranked = None
    if funnel:
        among = torch.cat(funnel).numpy()
        reranked = Funnel(among, float(np.mean(among > 0)), min(candidates or 0, data.num_items))
    places, fresh_places = torch.cat(ranks).numpy(), torch.cat(unseen).numpy()
    paths = torch.cat(kept).numpy()
    return Evaluation(places, fresh_places, paths, Costs.join(costs), reranked)


def ranks_among(allowed: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
    """Ranks [B] among allowed [B, N + 1] items; 0 for a target that is not.

    So a repeated item counts as missed: the device removes it with all it has seen.
    """
    present = allowed.gather(1, targets[:, None])[:, 0]
    return torch.where(present, rank_of(scores.masked_fill(~allowed, -torch.inf), targets), 0)


def _retrieved(retriever: RankingSystem, batch: Batch, count: int | None) -> Tensor | None:
    """Booleans [B, N + 1]: the items that the cloud sends; None: no funnel, or no retrieval."""
    if count is None:
        return None
    queries = retriever.queries(batch.read(retriever.extractor_history))
    if queries is None:
        return None
    scores = queries @ retriever.items.weight.T
    scores[:, 0] = -torch.inf
    best = scores.topk(min(count, scores.shape[1] - 1), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
