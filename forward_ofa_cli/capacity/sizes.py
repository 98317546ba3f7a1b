"""Bytes, by the formats themselves: messages and files are made, with zeros in them, and measured.

Shape legend: L blocks, D hidden width, P values of a block, N items.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import BlockLayout, Encoding, artefact_bytes, pack_path
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.bundle import (
    MAX_SIDE,
    BundleManifest,
    bundle_shapes,
    write_bundle,
    write_shard,
)
from forward_ofa_device.history import MAX_ID_LENGTH
from services.ports import SessionCandidates
from services.registry.contract import (
    BUNDLE_TENSORS,
    CATALOGUE,
    MANIFEST,
    MAPPER,
    PublishedVersion,
    shard_file,
)
from services.sessions.codec import encode

SHARD_ITEMS = 4096
"""As an export cuts the catalogue: the most popular items, then shards of at least so many."""
_MOST_ITEMS, _MOST_HIDDEN = 10**8, 1024
"""What is computed makes some of a version's messages: so they stay below a gigabyte."""
_VERSION = "20250131-120000-0a1b2c3d"
_SESSION = "A" * 20
_KEY = "forward-ofa:session:"
_ETAG = "0" * 32 + "-float16"
ENCODINGS: dict[Encoding, types.Encoding.ValueType] = {
    "float32": types.ENCODING_FLOAT32,
    "float16": types.ENCODING_FLOAT16,
    "int8": types.ENCODING_INT8,
}

# What carries a message. IPv4 20, TCP 20, timestamps 12, for each 1,448 bytes; a TLS 1.3 record of
# at most 16 KiB has 22 more; an HTTP/2 frame of at most 16 KiB has 9; gRPC has 5 a message, and
# some 60 of compressed header fields and trailers once a connection is warm.
_SEGMENT, _SEGMENT_HEADER = 1448, 52
_RECORD, _RECORD_HEADER, _FRAME_HEADER = 16_384, 22, 9
_CALL_BYTES = 65
HANDSHAKE_BYTES = 3_000
"""What a server sends for a TLS 1.3 handshake with a chain of two ECDSA certificates."""


@dataclass(frozen=True)
class Shape:
    """What a version is, as far as sizes go.

    id_bytes: of an item's id, on average. tensors, popular, shard: files that a device fetches: the
    bundle's tensors, shard 0, another shard. mapper: the hypernetworks' file. whole: all files.
    source: for people.
    """

    config: BackboneConfig
    items: int
    id_bytes: float
    tensors: int
    popular: int
    shard: int
    shards: int
    mapper: int
    whole: int
    source: str

    @classmethod
    def of(cls, config: BackboneConfig, items: int, id_bytes: int) -> Shape:
        """Of a version that is not there, by the formats. Raises ValueError."""
        for name, value, most in (
            ("items", items, _MOST_ITEMS),
            ("id-bytes", id_bytes, MAX_ID_LENGTH),
            ("hidden", config.hidden, _MOST_HIDDEN),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"--{name} is {value}: use a number from 1 to {most:,}")
        backbone, d = build(config), config.hidden
        layout = BlockLayout.of(backbone.block_parameters())
        more = max(0, (items - SHARD_ITEMS) // SHARD_ITEMS)
        first = SHARD_ITEMS if more else items
        starts = tuple("0" * id_bytes for _ in range(more))
        manifest = BundleManifest(_VERSION, config, 50, starts, items, fusion=1.0)
        zeros = {
            name: np.zeros(shape, np.float32)
            for name, shape in bundle_shapes(manifest, backbone).items()
        }
        tensors = len(write_bundle(manifest, zeros))
        popular = _shard(first, id_bytes, d)
        shard = _shard(-(-(items - first) // more), id_bytes, d) if more else 0
        mapper = 4 * config.blocks * (d + 1) * layout.size
        catalogue = items * (id_bytes + 4)
        whole = mapper + 4 * items * d + catalogue + tensors + popular + more * shard
        return cls(
            config, items, float(id_bytes), tensors, popular, shard, more + 1, mapper, whole,
            "computed from the formats; titles and ONNX programs not counted",
        )  # fmt: skip

    @classmethod
    def published(cls, version: PublishedVersion) -> Shape:
        """Of a version in a registry. Raises Fault CORRUPT_VERSION."""
        manifest = version.manifest
        sizes = {name: entry.bytes for name, entry in manifest.files.items()}
        _check_backbone(version)
        ids = _item_ids(version)
        others = [sizes[shard_file(n)] for n in range(1, manifest.shards)]
        return cls(
            manifest.backbone,
            manifest.items,
            sum(len(item.encode()) for item in ids) / len(ids),
            sizes[BUNDLE_TENSORS],
            sizes[shard_file(0)],
            round(sum(others) / len(others)) if others else 0,
            manifest.shards,
            sizes[MAPPER],
            sum(sizes.values()),
            f"version {manifest.version}",
        )

    @cached_property
    def layout(self) -> BlockLayout:
        """Of a block."""
        return BlockLayout.of(build(self.config).block_parameters())

    @property
    def weights(self) -> int:
        """Values of the hypernetworks: L (D + 1) P."""
        return self.config.blocks * (self.config.hidden + 1) * self.layout.size

    def artefact(self, kept: float, encoding: Encoding) -> float:
        """Bytes of a network with so many blocks; between two whole numbers: of their mixture."""
        low = max(1, int(kept))
        part = kept - low
        sizes = [self._artefact(number, encoding) for number in (low, low + (part > 0))]
        return sizes[0] * (1 - part) + sizes[1] * part

    def _artefact(self, kept: int, encoding: Encoding) -> int:
        path = (True,) * kept + (False,) * (self.config.blocks - kept)
        return artefact_bytes(_VERSION, self.config.name, path, encoding, self.layout)

    def request(self, encoding: Encoding) -> int:
        """Bytes of a RequestNetworkRequest that names a list it holds."""
        message = api.RequestNetworkRequest(
            version=_VERSION,
            session_id=_SESSION,
            path=types.Path(bits=pack_path((True,) * self.config.blocks)),
            interest=types.Interest(values=bytes(4 * self.config.hidden)),
            accepted_encodings=[ENCODINGS[encoding]],
            held_candidates_etag=_ETAG,
            accept_partial_candidates=True,
        )
        return message.ByteSize()

    def candidates(self, count: int, new: int, encoding: Encoding) -> int:
        """Bytes of a list of `count` items of which `new` are sent; new == count: a whole list."""
        width = {"float32": 4 * self.config.hidden, "float16": 2 * self.config.hidden}
        row = width.get(encoding, 2 + self.config.hidden)
        message = types.Candidates(
            etag=_ETAG,
            item_ids=["0" * max(1, round(self.id_bytes))] * new,
            encoding=ENCODINGS[encoding],
            embeddings=bytes(row * new),
        )
        if new < count:
            message.base_etag, message.held_positions = _ETAG, bytes(2 * count)
        return message.ByteSize()

    def session(self, count: int) -> int:
        """Bytes of a session's key and value in Redis, without what Redis adds."""
        highest = min(self.items, 2**32) - 1
        rows = np.full(count, highest, "<u4").tobytes()
        value = encode(_SESSION, SessionCandidates(_VERSION, rows))
        return len(_KEY) + len(_SESSION) + len(value)


def mean_kept_blocks(version: PublishedVersion) -> float | None:
    """As measured when the version was made; None if it was not. Raises Fault CORRUPT_VERSION."""
    manifest = version.manifest
    mean, blocks = manifest.metrics.get("mean_kept_blocks"), manifest.backbone.blocks
    if mean is None:
        return None
    if isinstance(mean, bool) or not isinstance(mean, int | float) or not 1 <= mean <= blocks:
        raise version.corrupt(MANIFEST, f"mean_kept_blocks is no number from 1 to {blocks}")
    return float(mean)


def _check_backbone(version: PublishedVersion) -> None:
    """A manifest of other sizes than the files would be planned with in all good faith."""
    config, files = version.manifest.backbone, version.manifest.files
    sides = (config.blocks, config.hidden, config.history, config.heads, *config.dilations)
    layout = BlockLayout.of(build(config).block_parameters())
    values = config.blocks * (config.hidden + 1) * layout.size
    known = all(type(side) is int and side <= MAX_SIDE for side in sides)
    if not known or 4 * values > files[MAPPER].bytes:
        raise version.corrupt(MANIFEST, "the backbone is not that of its files")


def _item_ids(version: PublishedVersion) -> list[str]:
    try:
        ids = json.loads(version.path(CATALOGUE).read_text())["item_ids"]
        good = len(ids) == version.manifest.items and all(isinstance(one, str) for one in ids)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise version.corrupt(CATALOGUE, error) from error
    if not good:
        raise version.corrupt(CATALOGUE, "not as many item ids as the manifest says")
    return list(ids)


@lru_cache(maxsize=64)
def _shard(items: int, id_bytes: int, hidden: int) -> int:
    ids = ["0" * id_bytes] * items
    return len(write_shard(_VERSION, ids, np.zeros((items, hidden), np.float16)))


def reply_rest() -> int:
    """Bytes of a RequestNetworkResponse beside artefact and candidates."""
    message = api.RequestNetworkResponse(
        version=_VERSION,
        artefact=types.Artefact(sha256=bytes(32), encoding=types.ENCODING_FLOAT16),
        candidates=types.Candidates(),
        cost=types.Cost(
            paper_device_flops=600_000,
            true_device_flops=600_000,
            generation_flops=8_000_000,
            artefact_bytes=250_000,
            candidate_bytes=26_000,
            times=types.StageTimes(
                queue_us=500, map_us=3_000, assemble_us=400, retrieve_us=400, total_us=6_000
            ),
        ),
        ttl_seconds=1_800,
        retry=types.RetryWindow(min_ms=1_000, max_ms=3_000),
        current_version=_VERSION,
    )
    return message.ByteSize()


def on_the_wire(message: float, *, tls: bool) -> float:
    """Bytes of IP packets for one message of a gRPC call in one direction, without resends."""
    size = message + _CALL_BYTES
    size += -(-size // _RECORD) * (_FRAME_HEADER + (_RECORD_HEADER if tls else 0))
    return size + -(-size // _SEGMENT) * _SEGMENT_HEADER
