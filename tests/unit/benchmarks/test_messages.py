"""The hand-written protobuf of the load generator against the real one."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving import messages
from benchmarks.serving.messages import BadReply, Payloads
from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import BlockLayout, encode_block, write_artefact
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig

CONFIG = BackboneConfig(blocks=3, hidden=8, history=5, heads=2)
LAYOUT = BlockLayout.of(build(CONFIG).block_parameters())
PATH = (True, False, True)
TRUTH = np.random.default_rng(0).normal(0, 1, (3, LAYOUT.size)).astype(np.float32)


def reply(encoding: str, *, not_modified: bool = True) -> bytes:
    payloads = [encode_block(TRUTH[block], LAYOUT, encoding) for block in (0, 2)]
    data = write_artefact("v1", "sasrec", PATH, encoding, LAYOUT, payloads)
    return api.RequestNetworkResponse(
        version="v1",
        artefact=types.Artefact(data=data, sha256=b"x" * 32),
        candidates=types.Candidates(etag="etag", not_modified=not_modified),
        cost=types.Cost(artefact_bytes=len(data)),
        ttl_seconds=1800,
    ).SerializeToString()


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_payloads_are_found_and_are_right(encoding: str) -> None:
    payloads = messages.read_ours(reply(encoding))
    lying = Payloads(LAYOUT, encoding)
    assert len(lying.arrays(payloads, 2)) == 2
    lying.check(payloads, PATH, TRUTH)


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_the_parameters_of_another_interest_are_noticed(encoding: str) -> None:
    payloads = messages.read_ours(reply(encoding))
    with pytest.raises(BadReply, match="off by"):
        Payloads(LAYOUT, encoding).check(payloads, PATH, TRUTH + 0.5)


def test_a_missing_block_is_noticed() -> None:
    payloads = messages.read_ours(reply("float32"))
    with pytest.raises(BadReply, match="expected"):
        Payloads(LAYOUT, "float32").arrays(payloads, 3)


def test_not_modified_is_read() -> None:
    assert messages.read_not_modified(reply("float32"))
    assert not messages.read_not_modified(reply("float32", not_modified=False))
    assert messages.read_etag(reply("float32")) == "etag"


@given(st.integers(1, 2**29 - 1), st.one_of(st.binary(max_size=300), st.integers(0, 2**64 - 1)))
def test_a_field_is_read_as_it_was_written(number: int, value: bytes | int) -> None:
    written = messages.field(number, value)
    found = [(key, got if isinstance(got, int) else bytes(got))
             for key, got in messages.fields(memoryview(written))]  # fmt: skip
    assert found == [(number, value)]


@given(st.binary(max_size=200))
def test_rubbish_is_a_bad_reply_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(BadReply):
        list(messages.fields(memoryview(data)))


def test_a_later_session_id_wins() -> None:
    request = messages.our_request("v1", "first-session", b"\x05", bytes(32), "float16", "etag")
    read = api.RequestNetworkRequest.FromString(request + messages.field(2, "second-session"))
    assert (read.session_id, read.version, read.held_candidates_etag) == (
        "second-session",
        "v1",
        "etag",
    )


def test_kserve_text_is_unwrapped_once() -> None:
    inner = b"parameters"
    raw = len(inner).to_bytes(4, "little") + inner
    assert bytes(messages.read_kserve_text(messages.field(6, raw))) == inner
    with pytest.raises(BadReply, match="one element"):
        messages.read_kserve_text(messages.field(6, raw + raw))
