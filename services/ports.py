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
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

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


class JobState(StrEnum):
    """QUEUED: waits for a worker. RUNNING: a worker has it. DONE: trained, and published where
    that was asked for. REFUSED: trained, but the gate did not let it pass. FAILED: see
    `Job.failure`. CANCELLED: somebody said so."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def live(self) -> bool:
        """Whether something will still happen by itself."""
        return self in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class JobParameters:
    """What to train, and what to do with it. `services.trainer.plan` says what is valid.

    data: a file or folder as the workers see it, the name of a public data set, or "synthetic".
    log: columns, filter and split, by the names of `forward-ofa train`'s options, for example
        {"min_user": "5", "split": "time"}; left out: by the log.
    recipe, backbone, system: as for `forward-ofa train`.
    settings: single values of the configuration in place of the recipe's, for example
        {"device_rec.epochs": "3", "method.backbone.blocks": "4"}.
    device: "cpu", "cuda", or "auto": a GPU where the worker has one.
    publish: False: only train and evaluate.
    gate: what a version must reach to be published, see `services.trainer.gate`.
    label: points at the version once it is published; "": none. percent: of the sessions, for
        a label other than `stable`.
    """

    data: str
    log: Mapping[str, str] = field(default_factory=dict)
    recipe: str = "default"
    backbone: str = "sasrec"
    system: str = "forward-ofa"
    settings: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    publish: bool = True
    gate: str = "-1%"
    label: str = ""
    percent: float = 0.0


@dataclass(frozen=True)
class JobProgress:
    """Where a running job is. stage: prepare, the system that is trained, gate, or publish.

    step, steps: of the stage, 0 and 0 where it has none. loss: of the last step, None before it.
    eta_seconds: until the stage ends.
    """

    stage: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    steps_per_second: float = 0.0
    eta_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What the gate said. metric: its name. candidate, stable: its values on the validation
    split of the job's log; stable_version: "" if there was none, and `stable` is 0 then.

    required: least value of `candidate`. low, high: 95 % interval of candidate - stable over
    the users. reason: one sentence.
    """

    passed: bool
    metric: str
    candidate: float
    required: float
    stable: float = 0.0
    stable_version: str = ""
    low: float = 0.0
    high: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class JobFailure:
    """reason: stable, upper snake case, see docs/trainer.md. text: what is wrong and what to do."""

    reason: str
    text: str


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job. time: seconds since 1970."""

    time: float
    text: str


@dataclass(frozen=True)
class Job:
    """The record of a job. Times are seconds since 1970, 0: not yet.

    id: also the id of the version that it publishes. revision: grows with every change.
    queued: since when it waits, or waited, for a worker. attempt: how often a worker took it; only
    the newest attempt may write. crashes: attempts in a row that were lost before they got an
    epoch further. beats: signs of life. cancelling: somebody wants it to stop.
    committed: it is being published, nothing stops it now. epochs: one record an epoch, as
    `forward-ofa train` prints them, with its stage. metrics: of the report, test split.
    submission: the caller's own id. submitted_gate: the gate that came with it, which resuming
    does not change; None: a record of before this was kept.
    schedule: its name; rows: interactions of the log when the schedule submitted it.
    retry_of: the job whose parameters these are.
    """

    id: str
    parameters: JobParameters
    created: float
    state: JobState = JobState.QUEUED
    revision: int = 0
    queued: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    attempt: int = 0
    crashes: int = 0
    beats: int = 0
    worker: str = ""
    cancelling: bool = False
    committed: bool = False
    progress: JobProgress | None = None
    epochs: Sequence[Mapping[str, Any]] = ()
    verdict: Verdict | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    failure: JobFailure | None = None
    events: Sequence[JobEvent] = ()
    submission: str = ""
    schedule: str = ""
    rows: int = 0
    retry_of: str = ""
    submitted_gate: str | None = None


class Trainer(Protocol):
    """Training as a service: jobs that outlive their workers. All raise Fault."""

    async def submit(self, parameters: JobParameters, submission: str = "") -> Job:
        """Checked before anything is queued. With the same `submission` again: the same job, or
        Fault BAD_JOB if it was not submitted like this."""

    async def get(self, job_id: str) -> Job: ...

    async def page(self, states: Sequence[JobState], limit: int, before: str) -> Sequence[Job]:
        """Newest first; states: none means all; before: the last job of the page before."""

    def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The job now and after every change, until it has ended."""

    async def cancel(self, job_id: str) -> Job: ...

    async def resume(self, job_id: str, gate: str = "") -> Job:
        """A failed, cancelled or refused job goes on from where it was. gate: in place of its
        own; "": as it was."""

    async def retry(self, job_id: str, submission: str = "") -> Job:
        """A new job with the same parameters, from the start. submission: as for `submit`."""

    async def label(self, label: str, version: str, percent: float) -> None:
        """Let a label of the registry point at a version."""

    async def roll_back(self, label: str) -> str:
        """Let a label point where it pointed before; the version."""
