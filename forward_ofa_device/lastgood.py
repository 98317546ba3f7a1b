"""The last good network on disk."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from forward_ofa_device.artefact import read_artefact
from forward_ofa_device.errors import CorruptFile, WrongVersion
from forward_ofa_device.release import Release
from forward_ofa_device.store import StateStore
from forward_ofa_device.tensors import read_tensors, write_tensors
from forward_ofa_device.wire import Candidates, Cost, LastGood, Receipt

NETWORK, CANDIDATES, CURRENT = "network", "candidates", "current.json"
KEPT_VERSIONS = 2
"""Bundles on disk. While the cloud tries a version on a share of the sessions, sessions of one
device alternate between two, and neither should be downloaded twice."""


def current_version(store: StateStore) -> str:
    """The version of the last good network, or of any bundle that is there; "": none."""
    saved = (store.read_json(CURRENT) or {}).get("version")
    if isinstance(saved, str):
        return saved
    with_bundle = [v for v in store.versions() if "bundle" in store.names(v)]
    return with_bundle[-1] if with_bundle else ""


def save(store: StateStore, release: Release, last: LastGood) -> None:
    """Writes what is new of it; the last step makes it current. Raises StorageError."""
    etag = last.candidates.etag
    held = store.read(release.version, CANDIDATES)
    if held is None or not etag or held.info.get("etag") != etag:
        candidates = write_tensors(
            {"embeddings": last.candidates.embeddings.astype(np.float32)},
            {"item_ids": json.dumps(last.candidates.item_ids)},
        )
        release.save_known(store)
        store.write(release.version, CANDIDATES, candidates, {"etag": etag})
    store.write(release.version, NETWORK, last.artefact, _note(last.receipt))
    recent = _recent(store)
    if recent[:1] != [release.version]:
        recent = [release.version, *(v for v in recent if v != release.version)][:KEPT_VERSIONS]
        store.write_json(CURRENT, {"version": release.version, "recent": recent})
    # The next version may be on its way already.
    store.keep_only({*recent, last.receipt.current_version})


def load(store: StateStore, release: Release) -> LastGood | None:
    """The last good network of a release; None if it is absent or damaged (then set aside)."""
    network, candidates = (store.read(release.version, n) for n in (NETWORK, CANDIDATES))
    if network is None or candidates is None:
        return None
    try:
        decoded = read_artefact(network.data, release.bundle.layout)
        release.engine.check(decoded)
        receipt = _receipt(network.info, release)
        return LastGood(
            decoded,
            release.engine.offset(receipt.interest),
            network.data,
            _candidates(candidates.data, candidates.info, release),
            receipt,
        )
    except (CorruptFile, WrongVersion):
        store.set_aside(release.version, NETWORK)
        return None


def _recent(store: StateStore) -> list[str]:
    """The versions used last, newest first."""
    saved = store.read_json(CURRENT) or {}
    recent = saved.get("recent", [saved.get("version")])
    return [v for v in recent if isinstance(v, str)] if isinstance(recent, list) else []


def _note(receipt: Receipt) -> dict[str, Any]:
    fields = {f.name: getattr(receipt, f.name) for f in dataclasses.fields(receipt)}
    return {
        **fields,
        "interest": receipt.interest.astype("<f4").tobytes().hex(),
        "cost": dataclasses.asdict(receipt.cost),
    }


def _receipt(note: dict[str, Any], release: Release) -> Receipt:
    try:
        interest = np.frombuffer(bytes.fromhex(note["interest"]), "<f4")
        receipt = Receipt(
            session_id=str(note["session_id"]),
            received_at=float(note["received_at"]),
            welcome_at=float(note["welcome_at"]),
            ttl_seconds=int(note["ttl_seconds"]),
            current_version=str(note["current_version"]),
            interest=interest,
            cost=Cost(**{name: int(value) for name, value in note["cost"].items()}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile("the note beside the network is malformed") from error
    if interest.shape != (release.bundle.manifest.backbone.hidden,):
        raise CorruptFile("the interest beside the network has another length")
    return receipt


def _candidates(data: bytes, info: dict[str, Any], release: Release) -> Candidates:
    tensors, metadata = read_tensors(data)
    try:
        item_ids = tuple(str(item_id) for item_id in json.loads(metadata.get("item_ids", "")))
        embeddings = tensors["embeddings"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile("the candidates are malformed") from error
    if embeddings.shape != (len(item_ids), release.bundle.manifest.backbone.hidden):
        raise CorruptFile("the candidates are not one row an item")
    return Candidates(str(info.get("etag", "")), item_ids, embeddings)
