"""Figure 6: four users' paths, one user's recommendations from three networks, all users counted.

The users are drawn, not picked: the first four of a shuffle by the seed whose paths differ (of
all users, if fewer than four paths exist). P is the first; Y is the one of the other three whose
network keeps the most other blocks than P's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.kdd25.runner import CellError
from forward_ofa.data import SequenceDataset
from forward_ofa.evaluation import hit, ndcg, rank_of, user_batches
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa.ranking import RankingSystem
from forward_ofa.runs import Run

_USERS, _SHOWN, _BATCH = 4, 10, 256
RULE = (
    "The four users are the first with different paths in a shuffle of all users by the seed; P is "
    "the first of them, Y the one whose path differs most from P's. For all users, the other one "
    "is drawn at random, by the seed too."
)


def case_study(run: Run, data: SequenceDataset, seed: int) -> dict[str, Any]:
    """What Figure 6 shows, as plain JSON. Raises CellError for a run without DeviceRec."""
    if run.device_rec is None:
        raise CellError(f"{run.folder} has no DeviceRec to compare with: train it again")
    system, dense = run.forward_ofa, run.device_rec
    everyone = all_users(system, data)
    paths = _paths(system, everyone)
    shuffle = np.random.default_rng(seed).permutation(data.num_users)
    users = _different(shuffle, paths)
    differing = [int((paths[user] != paths[users[0]]).sum()) for user in users]
    other = int(np.argmax(differing[1:])) + 1
    letters = ["P", *("QRS"[: len(users) - 1])]
    letters[other] = "Y"
    donors = np.empty(data.num_users, dtype=np.int64)
    donors[shuffle] = np.roll(shuffle, 1)  # a cycle through all users: nobody is their own
    shown = zip(letters, users, strict=True)
    kept = {"own": paths[users[0]], "other": paths[users[other]]}
    networks = {"own": (system, None), "dense": (dense, None), "other": (system, donors)}
    pair = donors.copy()
    pair[users[0]] = users[other]
    lists = {
        name: {
            "blocks": int(kept[name].sum()) if name in kept else paths.shape[1],
            **_first(network, everyone, data, users[0], None if whose is None else pair),
        }
        for name, (network, whose) in networks.items()
    }
    return {
        "users": [_user(data, letter, user, paths[user]) for letter, user in shown],
        "target": _title(data, int(data.history(users[0])[-1])),
        "lists": lists,
        "all_users": {n: _quality(network, everyone, whose)
                      for n, (network, whose) in networks.items()},
        "rule": RULE,
    }  # fmt: skip


def all_users(system: RankingSystem, data: SequenceDataset) -> Batch:
    """The test split as one batch on the processor, in the order of users."""
    window = system.backbone.config.history
    parts = list(user_batches(data, "test", system.extractor_history, window))
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def users_of(everyone: Batch, rows: np.ndarray, system: RankingSystem) -> Batch:
    """Some users of `all_users`, where the system is."""
    chosen = torch.from_numpy(rows)
    return Batch(*(value[chosen] for value in vars(everyone).values())).to(system.device)


def _chunks(users: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + _BATCH, users)) for start in range(0, users, _BATCH)]


@torch.no_grad()
def _paths(system: ForwardOFA, everyone: Batch) -> np.ndarray:
    """Booleans [U, L]."""
    chunks = _chunks(len(everyone.lengths))
    gates = [system.adapt(users_of(everyone, rows, system)).gates.cpu() > 0 for rows in chunks]
    found: np.ndarray = torch.cat(gates).numpy()
    return found


def _different(shuffle: np.ndarray, paths: np.ndarray) -> list[int]:
    """Users in the shuffle's order: of each path the first, then others until there are enough."""
    first: dict[bytes, int] = {}
    for user in shuffle.tolist():
        first.setdefault(paths[user].tobytes(), user)
    chosen = list(first.values())[:_USERS]
    chosen += [user for user in shuffle.tolist() if user not in chosen]
    return chosen[:_USERS]


@torch.no_grad()
def _scores(
    system: RankingSystem, everyone: Batch, rows: np.ndarray, donors: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """Scores [B, N + 1] and targets [B]. donors: by whose behaviour each user's network is made."""
    batch = users_of(everyone, rows, system)
    if donors is None or not isinstance(system, ForwardOFA):
        vectors = system.vectors(batch)
    else:
        lent = system.adapt(users_of(everyone, donors[rows], system))
        vectors = system.vectors(batch, lent)
    return vectors[:, 0] @ system.items.weight.T, batch.targets[:, 0]


def _first(
    system: RankingSystem,
    everyone: Batch,
    data: SequenceDataset,
    user: int,
    donors: np.ndarray | None,
) -> dict[str, Any]:
    """The first items of one user's ranking, and where the target is."""
    scores, targets = _scores(system, everyone, np.array([user]), donors)
    rank = int(rank_of(scores, targets)[0])
    best = scores[0].topk(min(_SHOWN, data.num_items)).indices.tolist()
    return {"titles": [_title(data, item) for item in best], "rank": rank}


def _quality(system: RankingSystem, everyone: Batch, donors: np.ndarray | None) -> dict[str, float]:
    """NDCG@10 and Hit@10 over all users of the test split."""
    chunks = _chunks(len(everyone.lengths))
    parts = [rank_of(*_scores(system, everyone, rows, donors)).cpu() for rows in chunks]
    ranks = torch.cat(parts).numpy()
    return {"ndcg@10": float(ndcg(ranks).mean()), "hit@10": float(hit(ranks).mean())}


def _user(data: SequenceDataset, letter: str, user: int, path: np.ndarray) -> dict[str, Any]:
    """What a figure says about one user."""
    return {
        "letter": letter,
        "path": [bool(kept) for kept in path],
        "history": [_title(data, item) for item in data.history(user)[-6:-1].tolist()],
    }


def _title(data: SequenceDataset, item: int) -> str:
    """Its title, or its id where the log has none."""
    identifier = data.item_ids[item - 1]
    return data.titles.get(identifier, f"item {identifier}")
