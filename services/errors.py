"""Every error that the services answer with, in one catalogue.

A component raises `Fault(Reason.X, ...)`; the guard renders it as a gRPC
status with an `ErrorDetail`, clients turn that back into the same Fault. Only
the texts of this file reach callers; `Fault.detail` goes to the log.

`python -m services.errors` prints docs/errors.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

RetryMs = tuple[int, int]
"""(earliest, latest) milliseconds until a retry makes sense."""

MOST_TEXT = 1_000
"""Bytes of a Fault's text. It travels twice, once percent-encoded, which trebles what is not
ASCII, and from 8 KiB of metadata on gRPC may refuse an answer."""


class Reason(StrEnum):
    """Stable names, `ErrorDetail.reason` on the wire."""

    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    MALFORMED_INTEREST = "MALFORMED_INTEREST"
    NON_FINITE_INTEREST = "NON_FINITE_INTEREST"
    MALFORMED_PATH = "MALFORMED_PATH"
    EMPTY_PATH = "EMPTY_PATH"
    MALFORMED_SESSION = "MALFORMED_SESSION"
    UNKNOWN_SESSION = "UNKNOWN_SESSION"
    MISSING_VERSION = "MISSING_VERSION"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"
    UNKNOWN_ENCODING = "UNKNOWN_ENCODING"
    IMPOSSIBLE_BUDGET = "IMPOSSIBLE_BUDGET"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    UNKNOWN_PART = "UNKNOWN_PART"
    BAD_OFFSET = "BAD_OFFSET"
    TOO_LARGE = "TOO_LARGE"
    OVERLOADED = "OVERLOADED"
    RATE_LIMITED = "RATE_LIMITED"
    NO_TOKEN = "NO_TOKEN"
    BAD_TOKEN = "BAD_TOKEN"
    EXPIRED_TOKEN = "EXPIRED_TOKEN"
    NOT_ALLOWED = "NOT_ALLOWED"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    DEADLINE = "DEADLINE"
    CORRUPT_VERSION = "CORRUPT_VERSION"
    NO_VERSION = "NO_VERSION"
    BAD_JOB = "BAD_JOB"
    UNKNOWN_JOB = "UNKNOWN_JOB"
    UNCHECKED_JOB = "UNCHECKED_JOB"
    UNKNOWN_JOB_STATE = "UNKNOWN_JOB_STATE"
    BAD_PAGE = "BAD_PAGE"
    JOB_STATE = "JOB_STATE"
    TOO_MANY_JOBS = "TOO_MANY_JOBS"
    QUEUE_UNAVAILABLE = "QUEUE_UNAVAILABLE"
    REGISTRY_REFUSED = "REGISTRY_REFUSED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True)
class Entry:
    """How one reason is rendered.

    status: name of the gRPC status. text: what callers read, with {fields} of the
    Fault. action: what to do, one sentence. retry: when to try again unless the
    Fault says otherwise; None: trying the same again will not help.
    """

    status: str
    text: str
    action: str
    retry: RetryMs | None = None


CATALOGUE: Mapping[Reason, Entry] = {
    Reason.MALFORMED_MESSAGE: Entry(
        "INVALID_ARGUMENT",
        "the message is not what {method} reads",
        "Use stubs generated from protos/ or learn the API by server reflection.",
    ),
    Reason.MALFORMED_INTEREST: Entry(
        "INVALID_ARGUMENT",
        "the interest has {got} bytes, {expected} expected ({hidden} little-endian float32 values)",
        "Send the final state of this version's interest extractor, 4 bytes a value.",
    ),
    Reason.NON_FINITE_INTEREST: Entry(
        "INVALID_ARGUMENT",
        "the interest is not finite, or so large that parameters made from it are not",
        "Compute the interest again from the stored bundle; fetch the bundle anew if it persists.",
    ),
    Reason.MALFORMED_PATH: Entry(
        "INVALID_ARGUMENT",
        "{problem}",
        "Send ceil(L / 8) bytes, block l as bit l mod 8 of byte l div 8, all other bits 0.",
    ),
    Reason.EMPTY_PATH: Entry(
        "INVALID_ARGUMENT",
        "the path keeps no block",
        "Keep at least the block with the highest logit.",
    ),
    Reason.MALFORMED_SESSION: Entry(
        "INVALID_ARGUMENT",
        "the session id is not 8 to 64 of the characters A-Z a-z 0-9 _ -",
        "Choose a new random session id, for example 16 random bytes in URL-safe base64.",
    ),
    Reason.UNKNOWN_SESSION: Entry(
        "NOT_FOUND",
        "the session has no candidates of this version (it ended, or it never asked)",
        "Send the interest with the request.",
    ),
    Reason.MISSING_VERSION: Entry(
        "INVALID_ARGUMENT",
        "the request names no version",
        "Name the version of the bundle that computed path and interest.",
    ),
    Reason.UNKNOWN_VERSION: Entry(
        "FAILED_PRECONDITION",
        "version {version} is not served; the current one is {current_version}",
        "Fetch the bundle of the current version, compute path and interest with it, ask again.",
    ),
    Reason.UNKNOWN_ENCODING: Entry(
        "INVALID_ARGUMENT",
        "none of the encodings is known: {encodings}",
        "Accept ENCODING_FLOAT16 (2), ENCODING_INT8 (3) or ENCODING_FLOAT32 (1), or send no list.",
    ),
    Reason.IMPOSSIBLE_BUDGET: Entry(
        "INVALID_ARGUMENT",
        "no network fits the budget: one block needs {bytes} bytes and {flops} FLOPs",
        "Raise the budget to at least one block, or accept a smaller encoding.",
    ),
    Reason.BUDGET_EXCEEDED: Entry(
        "INVALID_ARGUMENT",
        "the path keeps {kept} blocks, the budget has room for {fit}",
        "Cut the path to the blocks that fit before computing the interest, then ask again.",
    ),
    Reason.UNKNOWN_PART: Entry(
        "NOT_FOUND",
        "version {version} has no such bundle part: {part}",
        "Ask for a part of BundlePart; the manifest in BUNDLE_PART_TENSORS names the shards.",
    ),
    Reason.BAD_OFFSET: Entry(
        "OUT_OF_RANGE",
        "offset {offset} lies beyond the {size} bytes of the part",
        "Drop what was fetched and start again at offset 0.",
    ),
    Reason.TOO_LARGE: Entry(
        "RESOURCE_EXHAUSTED",
        "{field} is longer than {limit}",
        "Send what the API describes; a valid request is far below every limit.",
    ),
    Reason.OVERLOADED: Entry(
        "RESOURCE_EXHAUSTED",
        "the service is full",
        "Keep the present network and ask again within the retry window.",
        (500, 3_000),
    ),
    Reason.RATE_LIMITED: Entry(
        "RESOURCE_EXHAUSTED",
        "this device asks more often than it may",
        "Keep the present network and ask again within the retry window.",
        (1_000, 2_000),
    ),
    Reason.NO_TOKEN: Entry(
        "UNAUTHENTICATED",
        "the call carries no token",
        "Send the metadata `authorization: Bearer TOKEN` with each call.",
    ),
    Reason.BAD_TOKEN: Entry(
        "UNAUTHENTICATED",
        "the token is not accepted",
        "Get a token from the operator of this service; a revoked one does not come back.",
    ),
    Reason.EXPIRED_TOKEN: Entry(
        "UNAUTHENTICATED",
        "the token has expired",
        "Fetch a new token from whoever issued this one, then ask again.",
    ),
    Reason.NOT_ALLOWED: Entry(
        "PERMISSION_DENIED",
        "the caller is known, but may not make this call",
        "Ask the operator for the scope or the certificate name that this service wants.",
    ),
    Reason.UPSTREAM_UNAVAILABLE: Entry(
        "UNAVAILABLE",
        "a service behind this one cannot be reached",
        "Keep the present network and ask again within the retry window.",
        (500, 3_000),
    ),
    Reason.DEADLINE: Entry(
        "DEADLINE_EXCEEDED",
        "the deadline passed before the answer was ready",
        "Ask again within the retry window, with a longer deadline if this happens often.",
        (500, 3_000),
    ),
    Reason.CORRUPT_VERSION: Entry(
        "DATA_LOSS",
        "version {version} is damaged on the server: {file}",
        "Ask again later; the operator must publish the version again or move the label.",
        (30_000, 120_000),
    ),
    Reason.NO_VERSION: Entry(
        "UNAVAILABLE",
        "no version is loaded yet",
        "Ask again within the retry window; the operator must publish and label a version.",
        (1_000, 5_000),
    ),
    Reason.BAD_JOB: Entry(
        "INVALID_ARGUMENT",
        "the job is not valid, nothing was queued: {problem}",
        "Correct the job and submit it again.",
    ),
    Reason.UNKNOWN_JOB: Entry(
        "NOT_FOUND",
        "there is no job {job}",
        "List the jobs; ended ones are forgotten after some time.",
    ),
    Reason.UNCHECKED_JOB: Entry(
        "RESOURCE_EXHAUSTED",
        "the job could not be checked, nothing was queued: {problem}",
        "Submit it again within the retry window; if this persists, look at the file system of "
        "the log.",
        (5_000, 20_000),
    ),
    Reason.UNKNOWN_JOB_STATE: Entry(
        "INVALID_ARGUMENT",
        "there is no job state {state}",
        "List by the numbers of JobState; no states mean all jobs.",
    ),
    Reason.BAD_PAGE: Entry(
        "INVALID_ARGUMENT",
        "there is no page to go on from: {problem}",
        "Send the id of the last job of the page before; none means from the newest.",
    ),
    Reason.JOB_STATE: Entry(
        "FAILED_PRECONDITION",
        "{problem}",
        "Look at the job's state, and choose what that state allows.",
    ),
    Reason.TOO_MANY_JOBS: Entry(
        "RESOURCE_EXHAUSTED",
        "{limit} jobs are queued or running already",
        "Submit again when some have ended, or cancel those that nobody needs.",
        (30_000, 120_000),
    ),
    Reason.QUEUE_UNAVAILABLE: Entry(
        "UNAVAILABLE",
        "the queue of jobs cannot be reached",
        "Ask again within the retry window; submitting again with the same submission id makes "
        "no second job.",
        (1_000, 5_000),
    ),
    Reason.REGISTRY_REFUSED: Entry(
        "FAILED_PRECONDITION",
        "{problem}",
        "Look at the versions and labels of the registry, then ask for what is there.",
    ),
    Reason.INTERNAL: Entry(
        "INTERNAL",
        "unexpected error; the request id is in the trailing metadata",
        "Report the request id to the operator; ask again within the retry window.",
        (10_000, 60_000),
    ),
}


OUR_FAULT = frozenset(
    {
        Reason.OVERLOADED,
        Reason.UPSTREAM_UNAVAILABLE,
        Reason.DEADLINE,
        Reason.CORRUPT_VERSION,
        Reason.NO_VERSION,
        Reason.INTERNAL,
    }
)
"""What counts against the availability that devices are promised; for the others, callers can
do something themselves."""


def clipped(text: str, most: int) -> str:
    """At most `most` bytes of UTF-8; what is cut ends with "..."."""
    raw = text.encode("utf-8", "replace")  # a file's name may hold what is no UTF-8
    if len(raw) > most:
        raw = raw[: most - 3].decode("utf-8", "ignore").encode() + b"..."
    return raw.decode()


class _Fields(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return "?"


class Fault(Exception):
    """A failure that callers are told about.

    `fields` fill the catalogue's text, which is cut after MOST_TEXT.
    `current_version`: the version to ask for instead, where that is what is wrong.
    `detail`: for the log only. `retry`: overrides the catalogue's window.
    """

    def __init__(
        self,
        reason: Reason,
        *,
        detail: str = "",
        retry: RetryMs | None = None,
        current_version: str = "",
        **fields: object,
    ) -> None:
        entry = CATALOGUE[reason]
        shown = current_version or "none"
        self.reason = reason
        self.status = entry.status
        whole = entry.text.format_map(_Fields(fields, current_version=shown)).rstrip(".")
        self.text = clipped(whole, MOST_TEXT)
        self.action = entry.action
        self.retry = retry or entry.retry
        self.current_version = current_version
        self.detail = detail
        super().__init__(f"{reason}: {self.text}" + (f" ({detail})" if detail else ""))

    @classmethod
    def received(
        cls, reason: Reason, text: str, retry: RetryMs | None, current_version: str
    ) -> Fault:
        """A Fault that another service answered with: its text, as it was rendered there."""
        fault = cls(reason, retry=retry, current_version=current_version)
        fault.text = clipped(text, MOST_TEXT)
        fault.args = (f"{reason}: {fault.text}",)
        return fault


def as_markdown() -> str:
    """docs/errors.md."""
    lines = [
        "# Errors",
        "",
        "Every failed call carries an `ErrorDetail` (see",
        "`protos/forward_ofa_api/types/v1/types.proto`) in the trailing metadata",
        "`grpc-status-details-bin`, with one of the reasons below, and the id of the request in",
        "`x-request-id` (but for OVERLOADED, if the call was refused unread).",
        "Three answers come from gRPC itself and carry no detail: RESOURCE_EXHAUSTED",
        "for a message above the server's limit, UNIMPLEMENTED for a method that it does not have,",
        "and CANCELLED for a call beyond `--max-waiting`, when more arrive than can be refused:",
        "treat it as OVERLOADED, and ask again after 1 to 5 seconds, at a random moment.",
        "",
        f'A text has {MOST_TEXT} bytes at most; a longer one is cut, and ends with "...".',
        "",
        "Retry: try again at a random moment of this window, in milliseconds; the answer's own",
        "window counts. No window: the same request will fail again.",
        "",
        "Generated from `services/errors.py` by `python -m services.errors > docs/errors.md`.",
        "",
        "| reason | gRPC status | text | what to do | retry |",
        "|---|---|---|---|---|",
    ]
    for reason, entry in CATALOGUE.items():
        retry = f"{entry.retry[0]} to {entry.retry[1]}" if entry.retry else ""
        lines.append(f"| `{reason}` | {entry.status} | {entry.text} | {entry.action} | {retry} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
