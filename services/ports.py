"""What each component promises, and the values they exchange. Read this first.

One Protocol a component. In one process a component gets the real thing, split
over processes it gets a client from `services.clients` that keeps the same
Protocol over gRPC; only `services.wiring` knows which. Failures are
`services.errors.Fault` on both ways.

Byte strings are as `types.proto` says: an interest is 4 D bytes of
little-endian float32, a path is packed bits.
"""

from __future__ import annotations

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
    """What a session was last sent. indices: rows of the version's item table, best first.

    Never the interest: it is personal, and a store outlives the request.
    """

    version: str
    indices: Sequence[int]
    etag: str


class SessionStore(Protocol):
    """Candidates by session. May forget at any time; never fails a request for it."""

    async def get(self, session_id: str) -> SessionCandidates | None: ...

    async def put(self, session_id: str, candidates: SessionCandidates) -> None: ...

    async def close(self) -> None: ...
