"""The foundation: item embeddings and one sequence extractor, learned from whole histories.

A GRU over a user's whole history that predicts each next item from all before
it, with full softmax cross-entropy (GRU4Rec). One pass over a history gives a
target at every position, so an epoch costs seconds where an epoch of generated
networks costs minutes. What it leaves:

* item embeddings, from which every system starts, DeviceRec and Forward-OFA alike;
* E and E', which start as its GRU, and the cloud's retrieval query, which starts
  as its output layer: both then learn on with the rest.

The paper starts from nothing (`--recipe paper` does so too).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forward_ofa.batches import padding_last
from forward_ofa.config import FoundationConfig
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.data.shuffle import shuffled
from forward_ofa.evaluation import rank_of
from forward_ofa.model import ForwardOFA, item_table
from forward_ofa.objectives import next_item_loss


class Foundation(nn.Module):
    """items [N + 1, D]; a GRU; query: Linear(D, D)."""

    def __init__(self, items: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.items = item_table(items, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.query = nn.Linear(hidden, hidden)
        self.dropout = dropout

    def loss(self, sequences: Tensor) -> Tensor:
        """sequences [B, S + 1] items, padding last: predicts 2 .. S + 1 from what is before."""
        embeddings = F.dropout(self.items(sequences[:, :-1]), self.dropout, self.training)
        states, _ = self.gru(embeddings)
        queries = self.query(F.dropout(states, self.dropout, self.training))
        return next_item_loss(queries, self.items.weight, sequences[:, 1:])

    @torch.no_grad()
    def ranks(self, histories: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Ranks [B] of targets [B] after histories [B, N] (padding last) of lengths [B]."""
        states, _ = self.gru(self.items(histories))
        rows = torch.arange(len(lengths), device=lengths.device)
        queries = self.query(states[rows, lengths - 1])
        return rank_of(queries @ self.items.weight.T, targets)

    @torch.no_grad()
    def start(self, system: ForwardOFA) -> None:
        """Gives E, E' and the retrieval query their first values."""
        for extractor in system.extractors():
            extractor.gru.load_state_dict(self.gru.state_dict())
        system.query.load_state_dict(self.query.state_dict())


def piece_counts(data: SequenceDataset, length: int) -> np.ndarray:
    """int64 [U]: pieces of at most `length` targets; 0 for a user without a training target."""
    return -(-data.target_counts() // length)


def sequence_batches(
    data: SequenceDataset, config: FoundationConfig, rng: np.random.Generator
) -> Iterator[Tensor]:
    """All training histories, cut into pieces of at most `length` targets: [B, S + 1].

    Pieces overlap by one item, so each training target is met exactly once an epoch.
    """
    pieces = np.cumsum(piece_counts(data, config.length))
    for rows in shuffled(int(pieces[-1]), config.training.batch_size, rng):
        users = np.searchsorted(pieces, rows, side="right")
        before = np.where(users > 0, pieces[users - 1], 0)
        ends = data.train_ends[users] - (rows - before) * config.length
        windows = data.windows(users, ends, config.length + 1)
        lengths = np.minimum(ends, config.length + 1)
        width = int(lengths.max())
        yield padding_last(windows, lengths)[:, :width]
