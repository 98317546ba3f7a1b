"""What is passed on unread is what protobuf would have read."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from forward_ofa_api.assembler.v1 import assembler_pb2
from forward_ofa_api.controller.v1 import controller_pb2
from forward_ofa_api.mapper.v1 import mapper_pb2
from forward_ofa_api.types.v1 import types_pb2
from services.wire import artefact_field, parse_artefact, split_artefact, split_payload

pieces = st.lists(st.binary(max_size=300), min_size=1, max_size=4)
digests = st.binary(min_size=32, max_size=32)


@given(pieces, digests, st.sampled_from(["float32", "float16", "int8"]))
def test_an_artefact_in_pieces_is_a_field_of_both_replies(data, digest, encoding):
    field = artefact_field(data, digest, encoding)
    message = parse_artefact(field)
    assert (message.data, message.sha256) == (b"".join(data), digest)
    rest = controller_pb2.RequestNetworkResponse(version="v1", ttl_seconds=5)
    raw = b"".join(field) + rest.SerializeToString()
    whole = controller_pb2.RequestNetworkResponse.FromString(raw)
    assert whole.artefact == message
    assert (whole.version, whole.ttl_seconds) == ("v1", 5)


@given(st.binary(max_size=40_000), digests, st.integers(0, 2**40))
def test_replies_of_any_serialiser_are_split(data, digest, flops):
    message = assembler_pb2.AssembleNetworkResponse(
        artefact=types_pb2.Artefact(data=data, sha256=digest),
        cost=types_pb2.Cost(generation_flops=flops),
    )
    field, rest = split_artefact(message.SerializeToString())
    assert parse_artefact([field]) == message.artefact
    assert rest.cost == message.cost


@given(st.binary(min_size=1, max_size=40_000), st.integers(0, 2**40))
def test_payloads_are_split(payload, flops):
    message = mapper_pb2.GenerateBlocksResponse(payload=payload, generation_flops=flops)
    view, rest = split_payload(message.SerializeToString())
    assert view == payload
    assert rest == mapper_pb2.GenerateBlocksResponse(generation_flops=flops)


@given(st.binary(max_size=50))
def test_rubbish_is_a_decode_error_or_a_message(raw):
    for split in (split_payload, split_artefact):
        with contextlib.suppress(DecodeError):
            split(raw)


@pytest.mark.parametrize("raw", [b"", b"\x0a", b"\x0a\x05abc", b"\x0a" + b"\xff" * 12, b"\x22\x00"])
def test_truncated(raw):
    with pytest.raises(DecodeError):
        split_payload(raw)
