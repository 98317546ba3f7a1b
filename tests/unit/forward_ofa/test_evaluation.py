"""The ways of ranking, against a ranking by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import MethodConfig
from forward_ofa.data import FilterConfig, InteractionLog, SequenceDataset, prepare
from forward_ofa.evaluation import evaluate, hit, ndcg
from forward_ofa.model import Batch, ForwardOFA
from forward_ofa_device.backbones.contract import BackboneConfig

BACKBONE = BackboneConfig("sasrec", blocks=2, hidden=16, heads=2)


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    """60 users with 24 interactions among 40 items: about half of the targets were seen before."""
    log = InteractionLog(
        offsets=np.arange(0, 60 * 24 + 1, 24),
        items=np.random.default_rng(3).integers(0, 40, 60 * 24, dtype=np.int32),
        timestamps=np.tile(np.arange(24), 60),
        user_ids=[str(user) for user in range(60)],
        item_ids=[str(item) for item in range(40)],
        titles={},
        name="repeats",
        source="drawn",
        notes=(),
    )
    return prepare(log, FilterConfig())


@pytest.mark.parametrize(("split", "left"), [("validation", 2), ("test", 1)])
def test_ranks_with_and_without_what_was_seen(data: SequenceDataset, split: str, left: int) -> None:
    torch.manual_seed(0)
    system = DeviceRec(data.num_items, BACKBONE, 0.0)
    found = evaluate(system, data, split)
    repeated = 0
    for user in range(data.num_users):
        history, target = data.history(user)[:-left], int(data.history(user)[-left])
        window = torch.zeros(1, 1, BACKBONE.history, dtype=torch.long)
        last = torch.from_numpy(history[-BACKBONE.history :].astype(np.int64))
        window[0, 0, BACKBONE.history - len(last) :] = last
        scores = scores_of(system, window)
        above = {item for item in range(1, len(scores)) if scores[item] >= scores[target]}
        assert found.ranks[user] == len(above)
        seen = set(history.tolist())
        assert found.unseen_ranks[user] == (0 if target in seen else len(above - seen))
        repeated += target in seen
    assert 0 < repeated < data.num_users, "the log has targets of both kinds"
    figures = found.metrics()
    assert figures["repeated_targets"] == repeated / data.num_users
    assert figures["ndcg@10"] == ndcg(found.ranks).mean()
    assert figures["unseen_ndcg@10"] == ndcg(found.unseen_ranks).mean()
    assert figures["unseen_hit@10"] == hit(found.unseen_ranks).mean()


@torch.no_grad()
def scores_of(system: DeviceRec, window: torch.Tensor) -> np.ndarray:
    history = torch.zeros(1, 0, dtype=torch.long)
    batch = Batch(history, torch.zeros(1, dtype=torch.long), window, torch.ones(1, 1).long())
    return (system.eval().vectors(batch)[0, 0] @ system.items.weight.T).numpy()


def test_a_funnel_of_the_whole_catalogue_is_the_ranking_without_seen_items(
    data: SequenceDataset,
) -> None:
    torch.manual_seed(0)
    system = ForwardOFA(data.num_items, MethodConfig(BACKBONE, 10))
    found = evaluate(system, data, "test", candidates=data.num_items)
    assert found.funnel is not None
    assert np.array_equal(found.funnel.ranks, found.unseen_ranks)
