"""Items from an interest: the index of a version's item embeddings.

Shape legend: N items, D hidden width, n retrieved items.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from forward_ofa_device.errors import CorruptFile
from forward_ofa_device.tensors import read_tensors
from services.errors import Fault, Reason
from services.registry.contract import ITEMS, RETRIEVAL, PublishedVersion

_INLINE_VALUES = 2**20


@dataclass(frozen=True)
class ItemIndex:
    """Exact retrieval: the n items whose products with a query made from h are highest.

    weight: [D, D], bias: [D] (query = weight @ h + bias). items: [N, D], memory-mapped.
    """

    weight: np.ndarray
    bias: np.ndarray
    items: np.ndarray

    @property
    def inline(self) -> bool:
        """Whether a search takes less than handing it to a thread and back: some 200 us."""
        return self.items.size <= _INLINE_VALUES

    def query(self, interest: np.ndarray) -> np.ndarray:
        """interest: [D]; returns [D], not finite if it overflows."""
        with np.errstate(over="ignore", invalid="ignore"):
            made: np.ndarray = self.weight @ interest + self.bias
        return made

    def search(self, interest: np.ndarray, count: int) -> np.ndarray:
        """Rows of `items`, best first; equal scores: the lower row. interest: [D].

        Raises Fault NON_FINITE_INTEREST if a score overflows float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            scores = self.items @ self.query(interest)
        return best_rows(scores, count)


class Index(Protocol):
    """Items by interest. inline: whether `search` is so fast that no thread is needed."""

    @property
    def inline(self) -> bool: ...

    @property
    def items(self) -> np.ndarray: ...

    def search(self, interest: np.ndarray, count: int) -> np.ndarray: ...


def best_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """The highest of scores [N], best first; equal ones: the lower row.

    Raises Fault NON_FINITE_INTEREST if one is not finite.
    """
    if not np.isfinite(scores).all():
        raise Fault(Reason.NON_FINITE_INTEREST, detail="retrieval scores overflow")
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        rows = np.flatnonzero(scores >= least)
    else:
        rows = np.arange(len(scores))
    return rows[np.argsort(-scores[rows], kind="stable")][:count]


def load_index(published: PublishedVersion) -> Index:
    """The index of a version. Raises Fault CORRUPT_VERSION."""
    manifest = published.manifest
    d = manifest.backbone.hidden
    head = _tensors(published, RETRIEVAL, {"query.weight": (d, d), "query.bias": (d,)})
    items = _tensors(published, ITEMS, {"embeddings": (manifest.items, d)})
    exact = ItemIndex(head["query.weight"], head["query.bias"], items["embeddings"])
    if not manifest.retrieval.is_approximate:
        return exact
    # Here, so that catalogues of usual size need no faiss.
    from services.controller.ivf import load_approximate

    return load_approximate(published, exact)


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
