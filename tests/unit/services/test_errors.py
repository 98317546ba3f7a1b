"""The catalogue is complete, documented, and survives the wire."""

from __future__ import annotations

import string
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest

from forward_ofa_api.types.v1 import types_pb2
from services.errors import CATALOGUE, MOST_TEXT, Fault, Reason, as_markdown, clipped
from services.wire import fault_from_details, status_details

ROOT = Path(__file__).parents[3]
STATUS = {
    "MALFORMED_MESSAGE": "INVALID_ARGUMENT",
    "MALFORMED_INTEREST": "INVALID_ARGUMENT",
    "NON_FINITE_INTEREST": "INVALID_ARGUMENT",
    "MALFORMED_PATH": "INVALID_ARGUMENT",
    "EMPTY_PATH": "INVALID_ARGUMENT",
    "MALFORMED_SESSION": "INVALID_ARGUMENT",
    "UNKNOWN_SESSION": "NOT_FOUND",
    "MISSING_VERSION": "INVALID_ARGUMENT",
    "UNKNOWN_VERSION": "FAILED_PRECONDITION",
    "UNKNOWN_ENCODING": "INVALID_ARGUMENT",
    "IMPOSSIBLE_BUDGET": "INVALID_ARGUMENT",
    "BUDGET_EXCEEDED": "INVALID_ARGUMENT",
    "UNKNOWN_PART": "NOT_FOUND",
    "BAD_OFFSET": "OUT_OF_RANGE",
    "TOO_LARGE": "RESOURCE_EXHAUSTED",
    "OVERLOADED": "RESOURCE_EXHAUSTED",
    "RATE_LIMITED": "RESOURCE_EXHAUSTED",
    "NO_TOKEN": "UNAUTHENTICATED",
    "BAD_TOKEN": "UNAUTHENTICATED",
    "EXPIRED_TOKEN": "UNAUTHENTICATED",
    "NOT_ALLOWED": "PERMISSION_DENIED",
    "UPSTREAM_UNAVAILABLE": "UNAVAILABLE",
    "DEADLINE": "DEADLINE_EXCEEDED",
    "CORRUPT_VERSION": "DATA_LOSS",
    "NO_VERSION": "UNAVAILABLE",
    "BAD_JOB": "INVALID_ARGUMENT",
    "UNKNOWN_JOB": "NOT_FOUND",
    "UNCHECKED_JOB": "RESOURCE_EXHAUSTED",
    "UNKNOWN_JOB_STATE": "INVALID_ARGUMENT",
    "BAD_PAGE": "INVALID_ARGUMENT",
    "JOB_STATE": "FAILED_PRECONDITION",
    "TOO_MANY_JOBS": "RESOURCE_EXHAUSTED",
    "QUEUE_UNAVAILABLE": "UNAVAILABLE",
    "REGISTRY_REFUSED": "FAILED_PRECONDITION",
    "INTERNAL": "INTERNAL",
}


def test_every_reason_has_an_entry_with_its_status():
    assert {reason: CATALOGUE[reason].status for reason in Reason} == STATUS
    assert set(CATALOGUE) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_entries_can_be_rendered(reason):
    entry = CATALOGUE[reason]
    assert entry.status in grpc.StatusCode.__members__
    assert entry.action.endswith(".")
    fields = {name for _, name, _, _ in string.Formatter().parse(entry.text) if name}
    fault = Fault(reason, **dict.fromkeys(fields - {"current_version"}, "X"))
    assert "{" not in fault.text
    assert "?" not in fault.text
    if entry.retry is not None:
        assert 0 < entry.retry[0] < entry.retry[1]


def test_statuses_that_mean_try_again_have_a_window():
    for reason, entry in CATALOGUE.items():
        if entry.status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"} or reason is Reason.OVERLOADED:
            assert entry.retry is not None
        if entry.status in {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}:
            assert entry.retry is None


def test_the_documentation_is_the_catalogue():
    assert (ROOT / "docs" / "errors.md").read_text() == as_markdown()


def test_private_detail_stays_out_of_the_public_text():
    fault = Fault(Reason.INTERNAL, detail="/srv/secret")
    assert "secret" not in fault.text
    assert b"secret" not in status_details(fault)
    assert "secret" in str(fault)


@pytest.mark.parametrize("reason", Reason)
def test_a_fault_survives_the_wire(reason):
    sent = Fault(reason, current_version="v2", retry=(7, 9), version="v1", detail="private")
    received = fault_from_details(status_details(sent))
    assert received is not None
    for name in ("reason", "status", "text", "action", "retry", "current_version"):
        assert getattr(received, name) == getattr(sent, name)
    assert received.detail == ""


@pytest.mark.parametrize("letter", ["x", "é", "漢", "\U0001f600", "\x1b", "\udcff"])
def test_a_long_text_is_cut_so_that_the_answer_arrives(letter):
    fault = Fault(Reason.BAD_JOB, problem=letter * 60_000)
    assert len(fault.text.encode()) <= MOST_TEXT
    assert fault.text.endswith("...")
    assert len(quote(fault.text)) + 4 / 3 * len(status_details(fault)) < 6_000
    received = fault_from_details(status_details(fault))
    assert received is not None and received.text == fault.text


def test_a_text_is_cut_between_characters():
    assert clipped("漢漢漢", 9) == "漢漢漢"
    assert clipped("漢漢漢", 8) == "漢..."
    assert Fault(Reason.BAD_JOB, problem="x").text.endswith(": x")


def test_foreign_details_are_no_fault():
    assert fault_from_details(b"\xff\xff\xff") is None
    assert fault_from_details(b"") is None
    other = types_pb2.StatusDetails(code=3, message="of something else")
    assert fault_from_details(other.SerializeToString()) is None
