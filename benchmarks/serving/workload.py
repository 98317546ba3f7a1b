"""What is asked: pairs of path and interest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving.version import BenchVersion
from forward_ofa.data import default_filter, load, prepare
from forward_ofa_device.artefact import pack_path
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.extractor import InterestExtractor
from forward_ofa_device.tensors import read_tensors
from services.registry.contract import BUNDLE_TENSORS, CATALOGUE, ITEMS
from services.registry.files import FileRegistry

DISTINCT = 64


@dataclass(frozen=True)
class Workload:
    """paths: packed bits. interests: 4 D bytes each. In memory only: an interest is personal."""

    paths: list[bytes]
    interests: list[bytes]

    @property
    def mean_kept(self) -> float:
        """Kept blocks of a request."""
        return float(np.mean([sum(byte.bit_count() for byte in path) for path in self.paths]))


def all_blocks(version: BenchVersion, count: int = DISTINCT) -> Workload:
    """Random interests, every block."""
    rng, config = np.random.default_rng(7), version.config
    rows = rng.uniform(-1, 1, (count, config.hidden)).astype("<f4")
    return Workload([pack_path([True] * config.blocks)] * count, [row.tobytes() for row in rows])


def real_devices(version: BenchVersion, data: str, count: int = 256) -> Workload:
    """Path and interest of real histories, computed as devices do, with the SDK's code.

    data: a log that has the version's items. Raises DataError, ValueError if none is known.
    """
    published = FileRegistry(version.registry).open(version.version)
    extractor = InterestExtractor(read_bundle(published.path(BUNDLE_TENSORS).read_bytes()))
    tensors, _ = read_tensors(published.path(ITEMS).read_bytes())
    ids = json.loads(published.path(CATALOGUE).read_text())["item_ids"]
    row = {item: index for index, item in enumerate(ids)}
    log = load(data, Path.home() / ".cache" / "forward-ofa")
    sequences = prepare(log, default_filter(log))
    users = np.random.default_rng(7).permutation(sequences.num_users)[:count]
    paths, interests = [], []
    for user in users:
        items = [sequences.item_ids[item - 1] for item in sequences.history(user)[:-1]]
        known = [row[item] for item in items if item in row]
        if known:
            wish = extractor.interest(tensors["embeddings"][known])
            paths.append(pack_path(wish.path))
            interests.append(wish.vector.astype("<f4").tobytes())
    if not paths:
        raise ValueError(
            f"{data} has no item of version {version.version}: give the log it was trained on"
        )
    return Workload(paths, interests)
