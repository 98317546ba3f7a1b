"""Approximate retrieval for large catalogues: an inverted file over 8-bit codes, rescored exactly.

The items are parted by k-means; a search looks into the parts whose centres have the highest
products with the query, finds more items there than are wanted, by codes of one byte a value, and
orders them by exact products with the item table. Written when a version is published, memory-
mapped where it is served. See docs/adr/0011.

Shape legend: N items, D hidden width, Q queries, n items wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from services.controller.retrieval import ItemIndex, best_rows
from services.errors import Fault, Reason
from services.registry.contract import RETRIEVAL_INDEX, PublishedVersion, RetrievalPlan

_TRAINING_ITEMS = 40
"""Items a list that k-means looks at; faiss wants 39 at least."""
_ITERATIONS = 10


@dataclass(frozen=True)
class ApproximateIndex:
    """Keeps the promise of ItemIndex.search, but may miss some of the best.

    exact: the same items, for the order and for what the lists do not have enough of.
    lists: faiss's IndexIVFScalarQuantizer.
    """

    exact: ItemIndex
    lists: Any
    oversample: int

    inline = False

    @property
    def items(self) -> np.ndarray:
        return self.exact.items

    def search(self, interest: np.ndarray, count: int) -> np.ndarray:
        """Rows of `items`, best first; equal scores: the lower row. interest: [D].

        Raises Fault NON_FINITE_INTEREST if a score overflows float32.
        """
        # A setting of the thread, of which there are several; costs less than asking.
        faiss.omp_set_num_threads(1)
        query = self.exact.query(interest)
        if not np.isfinite(query).all():
            raise Fault(Reason.NON_FINITE_INTEREST, detail="the retrieval query overflows")
        rows = self.listed(query, count)
        if len(rows) < min(count, len(self.items)):
            return self.exact.search(interest, count)
        return rows

    def listed(self, query: np.ndarray, count: int) -> np.ndarray:
        """What the lists have, best first; may be fewer than `count`. query: [D]."""
        fetched = min(count * self.oversample, len(self.items))
        rows: np.ndarray = self.lists.search(query[None], fetched)[1][0]
        rows = np.sort(rows[rows >= 0])
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self.items[rows] @ query
        ordered: np.ndarray = rows[best_rows(scores, count)]
        return ordered


def load_approximate(published: PublishedVersion, exact: ItemIndex) -> ApproximateIndex:
    """The index of a version, mapped into memory. Raises Fault CORRUPT_VERSION."""
    plan, path = published.manifest.retrieval, published.path(RETRIEVAL_INDEX)
    try:
        lists = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise published.corrupt(RETRIEVAL_INDEX, "faiss cannot read it") from error
    expected = (faiss.IndexIVFScalarQuantizer, *exact.items.shape, plan.lists)
    if not isinstance(lists, faiss.IndexIVF) or expected != (
        type(lists), lists.ntotal, lists.d, lists.nlist
    ):  # fmt: skip
        raise published.corrupt(RETRIEVAL_INDEX, "the index is not that of the manifest")
    lists.nprobe = plan.probes
    # Else each search starts 32 threads that read ahead, for lists that are in memory anyway.
    mapped: Any = faiss.downcast_InvertedLists(lists.invlists)  # type: ignore[arg-type]
    mapped.prefetch_nthread = 0
    return ApproximateIndex(exact, lists, plan.oversample)


def build(items: np.ndarray, seed: int = 0) -> Any:
    """faiss's index of items [N, D]; seconds for a million."""
    lists = max(1, round(len(items) ** 0.5))
    # The square root of N: a search looks at as many centres as at items of one list.
    index: Any = faiss.index_factory(items.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.seed = _ITERATIONS, seed
    # It warns on stderr of less than 39, which catalogues below 1,600 items have.
    index.cp.min_points_per_centroid = 1
    rng = np.random.default_rng(seed)
    sample = rng.choice(len(items), min(len(items), lists * _TRAINING_ITEMS), replace=False)
    index.train(np.ascontiguousarray(items[np.sort(sample)]))
    index.add(np.ascontiguousarray(items))
    return index


def tune(
    index: Any,
    items: np.ndarray,
    queries: np.ndarray,
    count: int,
    recall: float,
    oversample: int = 2,
) -> tuple[RetrievalPlan, float]:
    """The fewest probes of 1, 2, 3, 4, 6, 8, 12, ... with this recall on queries [Q, D], and the
    recall.

    Recall: the share of the exact best `count` items that the lists have, mean over queries.
    """
    identity = np.eye(items.shape[1], dtype=np.float32)
    exact = ItemIndex(identity, np.zeros(items.shape[1], np.float32), items)
    truth = [set(exact.search(query, count).tolist()) for query in queries]
    approximate = ApproximateIndex(exact, index, oversample)
    probes, reached = 1, 0.0
    while True:
        index.nprobe = probes
        found = [set(approximate.listed(query, count).tolist()) for query in queries]
        reached = float(np.mean([len(a & b) / len(b) for a, b in zip(found, truth, strict=True)]))
        if reached >= recall or probes == index.nlist:
            return RetrievalPlan("ivf-sq8", index.nlist, probes, oversample), reached
        probes = min(_more(probes), index.nlist)


def _more(probes: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, ..."""
    is_power = probes & (probes - 1) == 0
    return max(probes + 1, probes * 3 // 2 if is_power else probes * 4 // 3)


def write(index: Any, path: Path) -> None:
    """The index in faiss's own format."""
    faiss.write_index(index, str(path))
