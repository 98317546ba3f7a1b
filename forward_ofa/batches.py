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
from typing import Protocol

import numpy as np
import torch

from forward_ofa.data.log import forget
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.data.shuffle import shuffled
from forward_ofa.model import Batch

_FORGET_EVERY = 8
"""Batches after which the pages of a mapped log are let go: each touches hundreds."""


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


class SessionSource(Protocol):
    """Numbered sessions that can be made when they are needed."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Sessions:
        """The sessions of these numbers, int64 [S]."""


@dataclass(frozen=True)
class TrainingSessions:
    """All training targets, cut into sessions of at most `targets`, by user, then time.

    Nothing here has an entry an interaction: a session is computed from its number.

    last: int64 [U], the last target position of each user. shift: int64 [U], 0 .. targets - 1, how
    many targets the first session of a user is short of. ends: int64 [U], sessions of this user
    and all users before.
    """

    targets: int
    last: np.ndarray
    shift: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, rows: np.ndarray) -> Sessions:
        users = np.searchsorted(self.ends, rows, side="right")
        last, shift = self.last[users], self.shift[users]
        first = rows - np.where(users > 0, self.ends[users - 1], 0)
        begin = first * self.targets - shift + 1
        starts = np.maximum(begin, 1)
        counts = np.minimum(begin + self.targets, last + 1) - starts
        return Sessions(users, starts, counts)


def training_sessions(
    data: SequenceDataset, targets: int, rng: np.random.Generator
) -> TrainingSessions:
    """All training targets, cut into sessions of at most `targets`.

    Where the cuts lie is drawn anew for each user, so that over the epochs a position is
    met as the first target of a session as well as a later one.
    """
    last = data.target_counts()
    shift = rng.integers(0, targets, data.num_users)
    sessions = np.where(last > 0, (last - 1 + shift) // targets + 1, 0)
    return TrainingSessions(targets, last, shift, np.cumsum(sessions))


def last_item_sessions(data: SequenceDataset, split: str) -> Sessions:
    """One session of one target a user, of "validation" or "test".

    Leave one out: the second-last and the last item. By time: see `data.splitting`.
    """
    users, ends = data.held_out(split)
    return Sessions(users, ends, np.ones_like(ends))


def collate(
    data: SequenceDataset,
    sessions: Sessions,
    history: int,
    window: int,
    age: int | np.ndarray = 0,
) -> Batch:
    """The batch of these sessions; M is the most targets that any of them has.

    age: by how many items what E and E' read ends before the session, of all sessions or, int64
    [S], of each; one item is left to read. Raises ValueError for a negative one: what is to be
    predicted would be read.
    """
    if np.min(age) < 0:
        raise ValueError("age must not be negative")
    size, width = len(sessions), int(sessions.counts.max())
    slots = np.arange(width)
    used = slots < sessions.counts[:, None]
    ends = sessions.starts[:, None] + np.where(used, slots, 0)
    users = np.repeat(sessions.users, width)
    windows = data.windows(users, ends.ravel(), window).reshape(size, width, window)
    targets = np.where(used, data.targets(users, ends.ravel()).reshape(size, width), 0)
    made = np.maximum(sessions.starts - age, 1)
    lengths = np.minimum(made, history)
    read = data.windows(sessions.users, made, history)
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
    sessions: SessionSource,
    size: int,
    history: int,
    window: int,
    rng: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Batches of `size` sessions, shuffled (see `data.shuffle`) if `rng` is given."""
    for number, rows in enumerate(shuffled(len(sessions), size, rng)):
        yield collate(data, sessions.take(rows), history, window)
        if number % _FORGET_EVERY == 0:
            forget(data.items)
