"""Items from an interest: the index of a version's item embeddings.

Shape legend: N items, D hidden width, n retrieved items.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forward_ofa_device.errors import CorruptFile
from forward_ofa_device.tensors import read_tensors
from services.errors import Fault, Reason
from services.registry.contract import ITEMS, RETRIEVAL, PublishedVersion


@dataclass(frozen=True)
class ItemIndex:
    """Exact retrieval: the n items whose products with a query made from h are highest.

    weight: [D, D], bias: [D] (query = weight @ h + bias). items: [N, D], memory-mapped.
    """

    weight: np.ndarray
    bias: np.ndarray
    items: np.ndarray

    def search(self, interest: np.ndarray, count: int) -> np.ndarray:
        """Rows of `items`, best first; equal scores: the lower row. interest: [D].

        Raises Fault NON_FINITE_INTEREST if a score overflows float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self.items @ (self.weight @ interest + self.bias)
        if not np.isfinite(scores).all():
            raise Fault(Reason.NON_FINITE_INTEREST, detail="retrieval scores overflow")
        if count < len(scores):
            least = np.partition(scores, len(scores) - count)[len(scores) - count]
            rows = np.flatnonzero(scores >= least)
        else:
            rows = np.arange(len(scores))
        return rows[np.argsort(-scores[rows], kind="stable")][:count]


def load_index(published: PublishedVersion) -> ItemIndex:
    """The index of a version. Raises Fault CORRUPT_VERSION."""
    manifest = published.manifest
    d = manifest.backbone.hidden
    head = _tensors(published, RETRIEVAL, {"query.weight": (d, d), "query.bias": (d,)})
    items = _tensors(published, ITEMS, {"embeddings": (manifest.items, d)})
    return ItemIndex(head["query.weight"], head["query.bias"], items["embeddings"])


def _tensors(
    published: PublishedVersion, name: str, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """float32 views into the memory-mapped file."""
    try:
        tensors, _ = read_tensors(memoryview(_map(published.path(name))))
    except (CorruptFile, OSError, ValueError) as error:
        raise published.corrupt(name, error) from error
    if {key: value.shape for key, value in tensors.items()} != shapes:
        raise published.corrupt(name, "the tensors are not those of the manifest")
    if any(t.dtype != np.float32 or not np.isfinite(t).all() for t in tensors.values()):
        raise published.corrupt(name, "values are not finite float32")
    return tensors


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
