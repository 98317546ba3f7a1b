"""One version as a device holds it: bundle, extractor, engine and item embeddings.

Everything that must not be mixed between versions hangs on one of these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from forward_ofa_device.bundle import DeviceBundle, read_bundle, read_shard, write_shard
from forward_ofa_device.download import BUNDLE, shard_name
from forward_ofa_device.engine import NetworkEngine
from forward_ofa_device.errors import CorruptFile
from forward_ofa_device.extractor import InterestExtractor
from forward_ofa_device.store import StateStore

KNOWN = "known"
KNOWN_LIMIT = 2000
"""Embeddings kept of past candidates, besides those of the device's own history."""


class ItemTable:
    """The item embeddings that are on the device: shards, and candidates it was sent.

    Reads are safe beside one writer: what is added appears at once or not at all.
    """

    def __init__(self, hidden: int) -> None:
        self._hidden = hidden
        self._shards: dict[int, tuple[dict[str, int], np.ndarray]] = {}
        self._known: dict[str, np.ndarray] = {}

    @property
    def shards(self) -> Collection[int]:
        return self._shards.keys()

    def add_shard(self, shard: int, item_ids: Sequence[str], rows: np.ndarray) -> None:
        """Rows [n, D] for n items."""
        positions = {item_id: position for position, item_id in enumerate(item_ids)}
        self._shards = {**self._shards, shard: (positions, rows)}

    def add_known(
        self, item_ids: Iterable[str], rows: np.ndarray, keep: Collection[str] = ()
    ) -> None:
        """Rows [n, D] of candidates. The oldest beyond KNOWN_LIMIT go, but for those in `keep`."""
        new = {i: r for i, r in zip(item_ids, rows, strict=True) if not self._in_shard(i)}
        merged = {**{i: r for i, r in self._known.items() if i not in new}, **new}
        surplus = max(0, len(merged) - KNOWN_LIMIT)
        for item_id in [i for i in merged if i not in keep and i not in new][:surplus]:
            del merged[item_id]
        self._known = merged

    def known(self) -> tuple[list[str], np.ndarray]:
        """What `add_known` gave, the oldest first: ids and rows [n, D]."""
        rows = list(self._known.values())
        stacked = np.stack(rows) if rows else np.zeros((0, self._hidden), np.float32)
        return list(self._known), stacked

    def row(self, item_id: str) -> np.ndarray | None:
        """The embedding [D]; None: not on the device."""
        for positions, rows in self._shards.values():
            if item_id in positions:
                row: np.ndarray = rows[positions[item_id]]
                return row
        return self._known.get(item_id)

    def window(self, item_ids: Sequence[str], count: int) -> np.ndarray:
        """Embeddings [n, D], n <= count, of the last items that are known; the rest is skipped."""
        found: list[np.ndarray] = []
        for item_id in reversed(item_ids):
            if len(found) == count:
                break
            row = self.row(item_id)
            if row is not None:
                found.append(row)
        if not found:
            return np.zeros((0, self._hidden), np.float32)
        return np.stack(found[::-1])

    def _in_shard(self, item_id: str) -> bool:
        return any(item_id in positions for positions, _ in self._shards.values())


class Release:
    """See the module."""

    def __init__(self, bundle: DeviceBundle) -> None:
        self.bundle = bundle
        self.version = bundle.manifest.version
        self.extractor = InterestExtractor(bundle)
        self.engine = NetworkEngine(bundle)
        self.items = ItemTable(bundle.manifest.backbone.hidden)
        self.unavailable: set[int] = set()
        """Shards that the cloud could not give; not asked for again."""

    @classmethod
    def open(cls, store: StateStore, version: str) -> Release | None:
        """What the disk has of a version; None if its bundle is absent or damaged.

        Damaged files are set aside. Damaged shards are fetched again when they are needed.
        """
        stored = store.read(version, BUNDLE)
        if stored is None:
            return None
        try:
            release = cls(read_bundle(stored.data))
            if release.version != version:
                raise CorruptFile(f"the bundle says it is of version {release.version!r}")
        except CorruptFile:
            store.set_aside(version, BUNDLE)
            return None
        for name in store.names(version):
            if name.startswith("items-") and name[6:].isdigit():
                release.load_shard(store, int(name[6:]))
        release._load_known(store)
        return release

    def load_shard(self, store: StateStore, shard: int) -> bool:
        """Takes a shard from disk. False if it is absent or damaged (then set aside)."""
        stored = store.read(self.version, shard_name(shard))
        if stored is None:
            return False
        try:
            self.items.add_shard(shard, *self._rows(stored.data))
        except CorruptFile:
            store.set_aside(self.version, shard_name(shard))
            return False
        return True

    def save_known(self, store: StateStore) -> None:
        """Writes the candidates' embeddings, in float16 as they came by default."""
        item_ids, rows = self.items.known()
        limit = float(np.finfo(np.float16).max)
        data = write_shard(self.version, item_ids, rows.clip(-limit, limit))
        store.write(self.version, KNOWN, data, {})

    def shards_of(self, item_ids: Iterable[str]) -> list[int]:
        """Shards to fetch: the popular items, then those that would hold these ids, in order."""
        wanted: Mapping[int, None] = {
            0: None,
            **{
                self.bundle.manifest.shard_of(item_id): None
                for item_id in item_ids
                if self.items.row(item_id) is None
            },
        }
        have = {*self.items.shards, *self.unavailable}
        return [shard for shard in wanted if shard not in have]

    def _load_known(self, store: StateStore) -> None:
        stored = store.read(self.version, KNOWN)
        if stored is None:
            return
        try:
            self.items.add_known(*self._rows(stored.data))
        except CorruptFile:
            store.set_aside(self.version, KNOWN)

    def _rows(self, data: bytes) -> tuple[list[str], np.ndarray]:
        version, item_ids, rows = read_shard(data)
        if version != self.version or rows.shape[1] != self.bundle.manifest.backbone.hidden:
            raise CorruptFile(f"the items are not those of version {self.version!r}")
        return item_ids, rows
