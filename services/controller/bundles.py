"""Device bundles: the files of a version, streamed from disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

from services.errors import Fault, Reason
from services.registry.contract import (
    BUNDLE_BACKBONE,
    BUNDLE_EXTRACTOR,
    BUNDLE_TENSORS,
    PublishedVersion,
    shard_file,
)

CHUNK_BYTES = 256 * 1024
BundlePart = Literal["tensors", "items", "extractor_onnx", "backbone_onnx"]
_FILES = {
    "tensors": BUNDLE_TENSORS,
    "extractor_onnx": BUNDLE_EXTRACTOR,
    "backbone_onnx": BUNDLE_BACKBONE,
}


@dataclass(frozen=True)
class BundleChunk:
    """See GetDeviceBundleResponse. Version, total_bytes and sha256 in the first one only."""

    offset: int
    data: bytes
    version: str = ""
    total_bytes: int = 0
    sha256: bytes = b""


def bundle_file(published: PublishedVersion, part: BundlePart | None, shard: int) -> str:
    """The file of a part. None: a part that this build does not know.

    Raises Fault UNKNOWN_PART.
    """
    if part == "items" and shard < published.manifest.shards:
        return shard_file(shard)
    if part is not None and part != "items" and shard == 0 and published.has(_FILES[part]):
        return _FILES[part]
    shown = f"{part or 'unspecified'}, shard {shard}"
    raise Fault(Reason.UNKNOWN_PART, version=published.manifest.version, part=shown)


async def stream_file(
    published: PublishedVersion, name: str, offset: int
) -> AsyncGenerator[BundleChunk, None]:
    """A file from `offset` on. Raises Fault BAD_OFFSET, or CORRUPT_VERSION if it got lost."""
    entry = published.manifest.files[name]
    if offset > entry.bytes:
        raise Fault(Reason.BAD_OFFSET, offset=offset, size=entry.bytes)
    try:
        stream = await asyncio.to_thread(_open, published.root / name)
    except OSError as error:
        raise published.corrupt(name, error) from error
    with stream:
        handle = stream.fileno()
        data = await _read(published, name, handle, offset)
        yield BundleChunk(
            offset, data, published.manifest.version, entry.bytes, bytes.fromhex(entry.sha256)
        )
        offset += len(data)
        while offset < entry.bytes:
            data = await _read(published, name, handle, offset)
            yield BundleChunk(offset, data)
            offset += len(data)


def _open(path: Path) -> FileIO:
    # An object and no bare number: a caller who goes away meanwhile leaves nobody to close it.
    return FileIO(path)


async def _read(published: PublishedVersion, name: str, handle: int, offset: int) -> bytes:
    wanted = min(CHUNK_BYTES, published.manifest.files[name].bytes - offset)
    try:
        data = await asyncio.to_thread(os.pread, handle, wanted, offset)
    except OSError as error:
        raise published.corrupt(name, error) from error
    if wanted and not data:
        raise published.corrupt(name, "shorter than it was")
    return data
