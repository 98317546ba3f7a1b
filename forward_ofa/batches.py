"""Batches: which network is asked for when, and what it has to predict.

A device asks at the start of a session and uses the network until its interest
shifts. `Sessions` are such stretches of a user's history: E and E' read what
came before the stretch, the network then predicts each of its targets from the
window directly before that target. With one target a session this is the
paper's protocol, a fresh network for every prediction. No target is ever in
what E and E' read, so a generator cannot see what its network must predict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.model import Batch


@dataclass(frozen=True)
class Sessions:
    """users, starts, counts: int64 [S]; session s predicts positions starts .. starts + counts."""

    users: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Sessions:
        return Sessions(self.users[rows], self.starts[rows], self.counts[rows])


def training_sessions(data: SequenceDataset, targets: int, rng: np.random.Generator) -> Sessions:
    """All training targets, cut into sessions of at most `targets`.

    Where the cuts lie is drawn anew for each user, so that over the epochs a position is
    met as the first target of a session as well as a later one.
    """
    users, positions = data.train_positions()
    shift = rng.integers(0, targets, data.num_users)
    group = (positions - 1 + shift[users]) // targets
    first = np.ones(len(users), dtype=bool)
    first[1:] = (users[1:] != users[:-1]) | (group[1:] != group[:-1])
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, len(users)))
    return Sessions(users[starts], positions[starts], counts)


def last_item_sessions(data: SequenceDataset, split: str) -> Sessions:
    """One session of one target a user: the second-last item ("validation") or last ("test")."""
    positions = {"validation": data.validation_positions, "test": data.test_positions}
    users, ends = positions[split]()
    return Sessions(users, ends, np.ones_like(ends))


def collate(data: SequenceDataset, sessions: Sessions, history: int, window: int) -> Batch:
    """The batch of these sessions; M is the most targets that any of them has."""
    size, width = len(sessions), int(sessions.counts.max())
    slots = np.arange(width)
    used = slots < sessions.counts[:, None]
    ends = sessions.starts[:, None] + np.where(used, slots, 0)
    users = np.repeat(sessions.users, width)
    windows = data.windows(users, ends.ravel(), window).reshape(size, width, window)
    targets = np.where(used, data.targets(users, ends.ravel()).reshape(size, width), 0)
    lengths = np.minimum(sessions.starts, history)
    read = data.windows(sessions.users, sessions.starts, history)
    return Batch(
        padding_last(read, lengths),
        torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(windows.astype(np.int64)),
        torch.from_numpy(targets.astype(np.int64)),
    )


def padding_last(windows: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Windows [B, N] with padding first to int64 [B, N] with padding last.

    Recurrent extractors read from the left and stop at the length.
    """
    width = windows.shape[1]
    order = (np.arange(width) + width - lengths[:, None]) % width
    return torch.from_numpy(np.take_along_axis(windows, order, 1).astype(np.int64))


def batches(
    data: SequenceDataset,
    sessions: Sessions,
    size: int,
    history: int,
    window: int,
    rng: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Batches of `size` sessions, shuffled if `rng` is given."""
    order = np.arange(len(sessions)) if rng is None else rng.permutation(len(sessions))
    for start in range(0, len(order), size):
        yield collate(data, sessions.take(order[start : start + size]), history, window)
