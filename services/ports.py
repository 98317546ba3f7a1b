"""What each component promises, and the values they exchange. Read this first.

One Protocol a component. In one process a component gets the real thing, split
over processes it gets a client from `services.clients` that keeps the same
Protocol over gRPC; only `services.wiring` knows which. Failures are
`services.errors.Fault` on both ways.

Byte strings are as `types.proto` says: an interest is 4 D bytes of
little-endian float32, a path is packed bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Encoding = Literal["float32", "float16", "int8"]
Buffer = bytes | memoryview
"""Bytes that are passed on unread; a memoryview keeps what it was cut from alive."""


@dataclass(frozen=True)
class GenerationRequest:
    """One network to generate. timeout: seconds left to the caller, None: no deadline."""

    version: str
    path: bytes
    interest: bytes
    encoding: Encoding
    timeout: float | None = None


@dataclass(frozen=True)
class GeneratedBlocks:
    """payload: the kept blocks, ascending, encoded, in any number of pieces. Times in
    microseconds."""

    payload: Sequence[Buffer]
    generation_flops: int
    queue_us: int
    map_us: int


class Mapper(Protocol):
    """The L block hypernetworks: W_k = H'_k(h) for the kept blocks (Eq. 9)."""

    async def generate(self, request: GenerationRequest) -> GeneratedBlocks: ...


@dataclass(frozen=True)
class NetworkCost:
    """FLOPs are multiply-accumulates, times microseconds; see `Cost` in types.proto."""

    paper_device_flops: int
    true_device_flops: int
    generation_flops: int
    artefact_bytes: int
    queue_us: int
    map_us: int
    assemble_us: int


@dataclass(frozen=True)
class AssembledNetwork:
    """artefact: the whole field `artefact` of RequestNetworkResponse, serialised, in pieces: what
    the device gets, untouched from here on. `wire.parse_artefact` reads it."""

    artefact: Sequence[Buffer]
    cost: NetworkCost


class Assembler(Protocol):
    """Kept blocks' parameters to one sparse sub-model."""

    async def assemble(self, request: GenerationRequest) -> AssembledNetwork: ...


@dataclass(frozen=True)
class SessionCandidates:
    """What a session was last sent. rows: of the version's item table, best first,
    little-endian uint32. Ids and embeddings follow from them, since a version never changes.

    Never the interest: it is personal, and a store outlives the request.
    """

    version: str
    rows: bytes

    @property
    def etag(self) -> str:
        """Names the version and the list: 32 hexadecimal digits."""
        named = self.version.encode() + b"\0" + self.rows
        return hashlib.sha256(named).hexdigest()[:32]


class SessionStore(Protocol):
    """Candidates by session. May forget at any time; never fails a request for it."""

    async def get(self, session_id: str) -> SessionCandidates | None:
        """What was put last by this process, or an earlier state of what others put. The
        session's time to live starts anew."""

    def put(self, session_id: str, candidates: SessionCandidates) -> None:
        """Returns at once; `get` and `swap` of this process know it from here on."""

    async def swap(
        self, session_id: str, candidates: SessionCandidates
    ) -> SessionCandidates | None:
        """As put; what was there before, as get."""

    async def close(self) -> None:
        """After what was put is written, or has failed."""
