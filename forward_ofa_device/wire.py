"""RequestNetwork's messages to and from what the device works with.

Nothing of a response is believed: version, digest, path, encoding, sizes and budget are
checked before any of it is used.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forward_ofa_api.controller.v1 import controller_pb2 as pb
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import Encoding, Network, pack_path, read_artefact
from forward_ofa_device.errors import CorruptFile, WrongVersion
from forward_ofa_device.extractor import Interest
from forward_ofa_device.partial import read_positions
from forward_ofa_device.policy import LONGEST_WAIT, Budget
from forward_ofa_device.release import Release
from forward_ofa_device.rows import decode_rows

ENCODING_IDS: dict[Encoding, types.Encoding.ValueType] = {
    "float32": types.ENCODING_FLOAT32,
    "float16": types.ENCODING_FLOAT16,
    "int8": types.ENCODING_INT8,
}
_ENCODINGS = {number: name for name, number in ENCODING_IDS.items()}


@dataclass(frozen=True)
class Cost:
    """What a request cost and what its network costs; see `Cost` and `StageTimes` in types.proto.

    FLOPs are multiply-accumulates, times microseconds.
    """

    paper_device_flops: int = 0
    true_device_flops: int = 0
    generation_flops: int = 0
    artefact_bytes: int = 0
    candidate_bytes: int = 0
    queue_us: int = 0
    map_us: int = 0
    assemble_us: int = 0
    retrieve_us: int = 0
    total_us: int = 0


@dataclass(frozen=True)
class Candidates:
    """Items to rerank, best first by retrieval. embeddings: float32 [n, D]."""

    etag: str
    item_ids: tuple[str, ...]
    embeddings: np.ndarray


@dataclass(frozen=True)
class Receipt:
    """When and for what a network was received. Times: seconds since the epoch.

    interest: the h that it was made for. current_version: what the cloud wants new
    sessions to use. welcome_at: the next request is welcome from then on, if nothing is
    urgent. ttl_seconds: 0: the cloud set none.
    """

    session_id: str
    received_at: float
    welcome_at: float
    ttl_seconds: int
    current_version: str
    interest: np.ndarray
    cost: Cost


@dataclass(frozen=True)
class LastGood:
    """The network that a device runs. artefact: its bytes as they came. offset: of the engine,
    for the interest that it was made from."""

    network: Network
    offset: np.ndarray
    artefact: bytes
    candidates: Candidates
    receipt: Receipt


@dataclass(frozen=True)
class Plan:
    """What a device is about to ask for. Computed with one release, asked of that one."""

    interest: Interest
    encodings: tuple[Encoding, ...]
    budget: Budget


def build_request(
    release: Release, plan: Plan, session_id: str, held: Candidates | None
) -> pb.RequestNetworkRequest:
    """`held`: candidates of this same release that are on the device."""
    request = pb.RequestNetworkRequest(
        version=release.version,
        session_id=session_id,
        path=types.Path(bits=pack_path(plan.interest.path)),
        interest=types.Interest(values=plan.interest.vector.astype("<f4").tobytes()),
        accepted_encodings=[ENCODING_IDS[encoding] for encoding in plan.encodings],
        held_candidates_etag=held.etag if held else "",
        accept_partial_candidates=held is not None,
    )
    if plan.budget != Budget():
        request.budget.max_artefact_bytes = plan.budget.max_artefact_bytes or 0
        request.budget.max_flops = plan.budget.max_flops or 0
    return request


def read_response(
    response: pb.RequestNetworkResponse,
    release: Release,
    plan: Plan,
    session_id: str,
    held: Candidates | None,
    now: float,
    rng: random.Random,
) -> LastGood:
    """`now`: seconds since the epoch; `rng` chooses a moment in the retry window.

    Raises WrongVersion or CorruptFile if the response is not what was asked for.
    """
    if response.version != release.version:
        raise WrongVersion(
            f"asked for a network of version {release.version!r}, got one of {response.version!r}"
        )
    network = _read_network(response.artefact, release, plan)
    candidates = _read_candidates(response.candidates, release, held)
    welcome = rng.uniform(response.retry.min_ms, response.retry.max_ms) / 1000
    receipt = Receipt(
        session_id=session_id,
        received_at=now,
        welcome_at=now + min(welcome, LONGEST_WAIT),
        ttl_seconds=response.ttl_seconds,
        current_version=response.current_version,
        interest=plan.interest.vector,
        cost=_read_cost(response.cost),
    )
    offset = release.engine.offset(plan.interest.vector)
    return LastGood(network, offset, response.artefact.data, candidates, receipt)


def _read_network(artefact: types.Artefact, release: Release, plan: Plan) -> Network:
    if hashlib.sha256(artefact.data).digest() != artefact.sha256:
        raise CorruptFile("the network arrived with another digest than announced")
    network = read_artefact(artefact.data, release.bundle.layout)
    release.engine.check(network)
    if network.path != plan.interest.path:
        raise CorruptFile("the network has other blocks than were asked for")
    if network.encoding not in plan.encodings:
        raise CorruptFile(f"the network is in {network.encoding}, which was not accepted")
    limit = plan.budget.max_artefact_bytes
    if limit is not None and len(artefact.data) > limit:
        raise CorruptFile(f"the network has {len(artefact.data)} bytes, the budget is {limit}")
    return network


def _read_candidates(
    message: types.Candidates, release: Release, held: Candidates | None
) -> Candidates:
    if message.not_modified:
        if held is None or held.etag != message.etag:
            raise CorruptFile("the candidates are said to be those held, but they are not held")
        return held
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        raise CorruptFile(f"the candidates are in the unknown encoding {message.encoding}")
    item_ids = tuple(message.item_ids)
    hidden = release.bundle.manifest.backbone.hidden
    rows = decode_rows(message.embeddings, encoding, len(item_ids), hidden)
    received = Candidates(message.etag, item_ids, rows)
    if message.base_etag or message.held_positions:
        received = _complete(received, message, held)
    if len(set(received.item_ids)) != len(received.item_ids):
        raise CorruptFile("the candidates name an item twice")
    return received


def _complete(new: Candidates, message: types.Candidates, held: Candidates | None) -> Candidates:
    """The whole list, of what is new and what is held."""
    if held is None or not held.etag or held.etag != message.base_etag:
        raise CorruptFile("the candidates build on a list that is not held")
    positions = read_positions(message.held_positions, len(held.item_ids), len(new.item_ids))
    is_new = positions < 0
    # Held items first, new ones behind them: then one index finds either.
    source = np.where(is_new, len(held.item_ids) + np.cumsum(is_new) - 1, positions)
    item_ids = (*held.item_ids, *new.item_ids)
    embeddings = np.concatenate([held.embeddings, new.embeddings])[source]
    return Candidates(new.etag, tuple(item_ids[at] for at in source.tolist()), embeddings)


def _read_cost(message: types.Cost) -> Cost:
    times = message.times
    return Cost(
        paper_device_flops=message.paper_device_flops,
        true_device_flops=message.true_device_flops,
        generation_flops=message.generation_flops,
        artefact_bytes=message.artefact_bytes,
        candidate_bytes=message.candidate_bytes,
        queue_us=times.queue_us,
        map_us=times.map_us,
        assemble_us=times.assemble_us,
        retrieve_us=times.retrieve_us,
        total_us=times.total_us,
    )


def check_encodings(encodings: Sequence[Encoding]) -> tuple[Encoding, ...]:
    """Raises ValueError unless there is at least one, and all are known."""
    unknown = set(encodings) - set(ENCODING_IDS)
    if unknown or not encodings or isinstance(encodings, str):
        raise ValueError(f"encodings is {encodings!r}: give some of {', '.join(ENCODING_IDS)}")
    return tuple(encodings)
