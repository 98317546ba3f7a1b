"""What `publish` does so that a controller finds items fast: chooses, builds, measures."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from forward_ofa_device.tensors import read_tensors
from services.registry.contract import ITEMS, RETRIEVAL_INDEX, RegistryError, RetrievalPlan

DRAFT = "version.json"
Choice = Literal["auto", "exact", "approximate"]


@dataclass(frozen=True)
class IndexSettings:
    """choice: of the index; auto: exact up to `exact_up_to` items, approximate beyond.
    recall: share of the best `count` items that an approximate index has to find, on average.
    """

    choice: Choice = "auto"
    exact_up_to: int = 100_000
    recall: float = 0.98
    count: int = 200

    def __post_init__(self) -> None:
        if self.choice not in get_args(Choice):
            raise ValueError(f"the index is one of {', '.join(get_args(Choice))}")
        if self.exact_up_to < 0 or self.count < 1 or not 0 < self.recall <= 1:
            raise ValueError(
                "exact_up_to must not be negative, count at least 1, recall above 0 and at most 1"
            )

    def is_approximate(self, items: int) -> bool:
        return self.choice == "approximate" or (self.choice == "auto" and items > self.exact_up_to)


def add_index(staging: Path, queries: np.ndarray, settings: IndexSettings) -> RetrievalPlan:
    """Gives the staging folder of a version its index, and its draft the plan and the recall.

    queries: [Q, D], of real interests: those of users, after the query's linear layer. Raises
    RegistryError if there are none, OSError if the folder cannot be written.
    """
    draft = json.loads((staging / DRAFT).read_text())
    if not settings.is_approximate(draft["items"]):
        return RetrievalPlan()
    if not len(queries):
        raise RegistryError("without queries the recall of an approximate index is unknown")
    # Here, so that catalogues of usual size need no faiss.
    from services.controller import ivf

    with (staging / ITEMS).open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    items = read_tensors(memoryview(mapped))[0]["embeddings"]
    index = ivf.build(items)
    plan, recall = ivf.tune(index, items, queries, settings.count, settings.recall)
    ivf.write(index, staging / RETRIEVAL_INDEX)
    draft["retrieval"] = plan.as_json()
    draft["metrics"] = {
        **draft.get("metrics", {}),
        f"index_recall@{settings.count}": round(recall, 4),
        "index_recall_queries": len(queries),
    }
    (staging / DRAFT).write_text(json.dumps(draft))
    return plan
