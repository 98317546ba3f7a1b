"""Fetches the parts of a bundle: resumable, and never usable before the digest is right."""

from __future__ import annotations

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_device.cloud import UNREACHABLE, Cloud
from forward_ofa_device.errors import CloudError, CorruptFile, WrongVersion
from forward_ofa_device.store import StateStore

MAX_PART_BYTES = 1 << 30
BUNDLE = "bundle"


def shard_name(shard: int) -> str:
    return f"items-{shard}"


def fetch_bundle(cloud: Cloud, store: StateStore, version: str = "", session_id: str = "") -> str:
    """Controller, extractor and shared parameters of `version` to disk; "": of the one that
    the session should use.

    Returns the version. An earlier, broken download is gone on with.
    Raises CloudError, CorruptFile, WrongVersion, StorageError.
    """
    begun = "" if version else store.partial_version(BUNDLE)
    part = pb.BUNDLE_PART_TENSORS
    if begun:
        try:
            return _fetch(cloud, store, BUNDLE, pb.GetDeviceBundleRequest(version=begun, part=part))
        except CloudError as error:
            if error.reason == UNREACHABLE or error.retry_ms is not None:
                raise
            # That version is gone: what we have of it is of no use.
            store.drop_partial(begun, BUNDLE)
    request = pb.GetDeviceBundleRequest(version=version, part=part)
    if not version:
        request.session_id = session_id
    return _fetch(cloud, store, BUNDLE, request)


def fetch_shard(cloud: Cloud, store: StateStore, version: str, shard: int) -> None:
    """One item shard of `version` to disk. Raises as `fetch_bundle`."""
    request = pb.GetDeviceBundleRequest(version=version, part=pb.BUNDLE_PART_ITEMS, shard=shard)
    _fetch(cloud, store, shard_name(shard), request)


def _fetch(cloud: Cloud, store: StateStore, name: str, request: pb.GetDeviceBundleRequest) -> str:
    while True:
        partial = store.partial(request.version, name) if request.version else None
        request.offset = partial.size if partial else 0
        try:
            return _receive(cloud, store, name, request)
        except _Restart:
            store.drop_partial(request.version, name)
        except CloudError as error:
            if error.code == "OUT_OF_RANGE" and request.offset:
                store.drop_partial(request.version, name)
                continue
            if error.reason != UNREACHABLE or not _grew(store, name, request):
                raise
            # A connection that carried bytes is worth going on with at once.


class _Restart(Exception):
    """What is there already belongs to another file."""


def _receive(cloud: Cloud, store: StateStore, name: str, request: pb.GetDeviceBundleRequest) -> str:
    """One stretch of a download. Sets request.version to what the stream says."""
    total = received = -1
    for chunk in cloud.get_bundle(request):
        if total < 0:
            received = _begin(store, name, request, chunk)
            total = chunk.total_bytes
        if chunk.offset != received or received + len(chunk.data) > total:
            store.drop_partial(request.version, name)
            raise CorruptFile(f"{name} arrived out of order: byte {chunk.offset} after {received}")
        if chunk.data:
            store.append_partial(request.version, name, chunk.data)
            received += len(chunk.data)
    if total < 0 or received < total:
        raise CloudError(f"the stream of {name} ended early", reason=UNREACHABLE)
    store.finish_partial(request.version, name)
    return request.version


def _begin(
    store: StateStore,
    name: str,
    request: pb.GetDeviceBundleRequest,
    first: pb.GetDeviceBundleResponse,
) -> int:
    """Checks the first message against what is there; the offset to go on from."""
    if not first.version or (request.version and first.version != request.version):
        raise WrongVersion(f"asked for {name} of {request.version!r}, got {first.version!r}")
    if len(first.sha256) != 32 or first.total_bytes > MAX_PART_BYTES:
        raise CorruptFile(f"{name} of version {first.version!r} has no digest or is too large")
    if request.offset:
        partial = store.partial(request.version, name)
        same = partial and (partial.sha256, partial.total) == (
            first.sha256.hex(),
            first.total_bytes,
        )
        if not same:
            raise _Restart
    else:
        request.version = first.version
        request.ClearField("session_id")
        store.begin_partial(first.version, name, first.sha256.hex(), first.total_bytes)
    return request.offset


def _grew(store: StateStore, name: str, request: pb.GetDeviceBundleRequest) -> bool:
    partial = store.partial(request.version, name) if request.version else None
    return partial is not None and partial.size > request.offset
