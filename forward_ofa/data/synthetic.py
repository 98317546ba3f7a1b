"""A synthetic interaction log in which both lasting taste and the last steps matter.

Three kinds of structure are planted, so that each kind of model has something to find:

- Zipf popularity over items and over genres: what a popularity list finds.
- Every user has a lasting mix of a few genres: what a long history tells.
- Every user is of one hidden type, and the type decides which items follow which: a "loyal" type
  goes on within the genre, others change genre in their own way. The same last item has different
  successors for different types, so a network made for the user can beat one shared by all.

No item repeats within a user, as in a rating log.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forward_ofa.data.log import IntArray, InteractionLog
from forward_ofa.data.sorting import log_from_ids

TYPES = 4
_GENRES = 12
_MIN_LENGTH, _MEAN_LENGTH, _SPREAD = 20, 100, 0.7
_FOLLOW = 0.55  # share of steps that follow the type's transitions
_SUCCESSORS = 3
_SUCCESSOR_CDF = np.array([0.6, 0.85, 1.0])
_TRIES = 4
_START, _YEAR = 1_600_000_000, 365 * 86_400


@dataclass(frozen=True)
class _World:
    genre: IntArray  # [I] genre of an item
    cdf: NDArray[np.float64]  # [G, I] cumulative popularity within a genre
    successors: IntArray  # [TYPES, I, _SUCCESSORS]
    taste: NDArray[np.float64]  # [U, G] cumulative mix of genres
    types: IntArray  # [U]


def generate_log(users: int = 943, items: int = 1200, seed: int = 0) -> InteractionLog:
    """A synthetic log: about 100 interactions a user, 20 at least; equal for equal arguments.

    Raises ValueError below 2 users or 100 items, too few for genres and sequences without repeats.
    """
    if users < 2 or items < 100:
        raise ValueError("a synthetic log needs at least 2 users and 100 items")
    rng = np.random.default_rng(seed)
    world = _make_world(users, items, rng)
    who, what, when = _walk(world, rng)
    order = np.argsort(when, kind="stable")  # a log is written as things happen
    names = np.array([f"item-{number}" for number in range(1, items + 1)])
    people = np.array([f"user-{number}" for number in range(1, users + 1)])
    titles = {
        str(name): f"Synthetic Item {number} (genre {genre + 1})"
        for number, (name, genre) in enumerate(zip(names, world.genre, strict=True), start=1)
    }
    return log_from_ids(
        people[who[order]].tolist(), names[what[order]].tolist(), when[order], titles=titles,
        name="synthetic",
        source=f"a synthetic log with learnable sequences (users={users}, items={items}, "
        f"seed={seed})",
    )  # fmt: skip


def _make_world(users: int, items: int, rng: np.random.Generator) -> _World:
    genre = rng.permutation(np.arange(items) % _GENRES).astype(np.int32)
    weight = 1.0 / (1.0 + rng.permutation(items)) ** 0.8
    within = np.where(genre == np.arange(_GENRES)[:, None], weight, 0.0)
    cdf = np.cumsum(within / within.sum(axis=1, keepdims=True), axis=1)
    successors = np.empty((TYPES, items, _SUCCESSORS), dtype=np.int32)
    for kind in range(TYPES):  # type 0 stays in its genre, type k moves on by k genres
        to = (genre + kind) % _GENRES
        draws = rng.random((items, _SUCCESSORS))
        for column in range(_SUCCESSORS):
            successors[kind, :, column] = _pick(cdf[to], draws[:, column])
    genre_weight = 1.0 / (1.0 + np.arange(_GENRES)) ** 0.5
    taste = rng.gamma(0.35 * genre_weight / genre_weight.mean(), size=(users, _GENRES)) + 1e-6
    return _World(
        genre=genre,
        cdf=cdf,
        successors=successors,
        taste=np.cumsum(taste / taste.sum(axis=1, keepdims=True), axis=1),
        types=rng.integers(TYPES, size=users).astype(np.int32),
    )


def _pick(cdf: NDArray[np.float64], draws: NDArray[np.float64]) -> IntArray:
    """int32 [n]: for each row of a cumulative distribution [n, k], the index that a draw hits."""
    picked: IntArray = (cdf <= draws[:, None]).sum(axis=1).astype(np.int32)
    return np.minimum(picked, np.int32(cdf.shape[1] - 1))


def _walk(world: _World, rng: np.random.Generator) -> tuple[IntArray, IntArray, NDArray[np.int64]]:
    """(users, items, times), each [n]: all users walk in step, one item at a time."""
    users, items = len(world.types), len(world.genre)
    scale = np.log(_MEAN_LENGTH) - _SPREAD**2 / 2
    length = np.exp(rng.normal(scale, _SPREAD, users)).astype(np.int64)
    length = np.clip(length, _MIN_LENGTH, min(4 * _MEAN_LENGTH, items // 2))
    seen = np.zeros((users, items), dtype=np.bool_)
    clock = _START + rng.integers(_YEAR, size=users)
    current = np.full(users, -1, dtype=np.int32)
    who, what, when = [], [], []
    for step in range(int(length.max())):
        active = np.flatnonzero(length > step)
        current[active] = _step(world, rng, active, current[active], seen)
        seen[active, current[active]] = True
        pause = rng.random(len(active)) < 0.1  # a session ends about every tenth step
        clock[active] += np.where(pause, 86_400, 60) + rng.integers(1, 300, len(active))
        who.append(active.astype(np.int32))
        what.append(current[active].copy())
        when.append(clock[active].copy())
    return np.concatenate(who), np.concatenate(what), np.concatenate(when)


def _step(
    world: _World, rng: np.random.Generator, active: NDArray[np.int64], previous: IntArray,
    seen: NDArray[np.bool_],
) -> IntArray:  # fmt: skip
    """The next item, new to its user, of each active user."""
    chosen = _by_taste(world, rng, active)
    follow = (rng.random(len(active)) < _FOLLOW) & (previous >= 0)
    rank = np.searchsorted(_SUCCESSOR_CDF, rng.random(len(active)), side="right")
    chosen = np.where(follow, world.successors[world.types[active], previous, rank], chosen)
    for _ in range(_TRIES):
        old = seen[active, chosen]
        if not old.any():
            return chosen
        chosen[old] = _by_taste(world, rng, active[old])
    for row in np.flatnonzero(seen[active, chosen]):  # an exhausted taste: anything new
        chosen[row] = rng.choice(np.flatnonzero(~seen[active[row]]))
    return chosen


def _by_taste(world: _World, rng: np.random.Generator, users: NDArray[np.int64]) -> IntArray:
    genre = _pick(world.taste[users], rng.random(len(users)))
    return _pick(world.cdf[genre], rng.random(len(users)))
