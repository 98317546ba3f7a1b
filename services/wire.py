"""Between the API's messages and the values of `services.ports`: what servicers and
clients convert alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from forward_ofa_api.assembler.v1 import assembler_pb2
from forward_ofa_api.mapper.v1 import mapper_pb2
from forward_ofa_api.types.v1 import types_pb2
from services.errors import Fault, Reason
from services.ports import Buffer, Encoding, NetworkCost
from services.runtime.context import seconds_left

STATUS_DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
MAX_ENCODINGS = 16
TRACEPARENT_KEY = "traceparent"
_PAYLOAD = mapper_pb2.GenerateBlocksResponse.PAYLOAD_FIELD_NUMBER
_ARTEFACT = assembler_pb2.AssembleNetworkResponse.ARTEFACT_FIELD_NUMBER
_ARTEFACT_DATA = types_pb2.Artefact.DATA_FIELD_NUMBER

_NAMES: dict[int, Encoding] = {
    types_pb2.ENCODING_FLOAT32: "float32",
    types_pb2.ENCODING_FLOAT16: "float16",
    types_pb2.ENCODING_INT8: "int8",
}
_NUMBERS: dict[Encoding, types_pb2.Encoding.ValueType] = {
    "float32": types_pb2.ENCODING_FLOAT32,
    "float16": types_pb2.ENCODING_FLOAT16,
    "int8": types_pb2.ENCODING_INT8,
}


def time_left() -> float | None:
    """Seconds until the answer to the current request is useless; None outside of one."""
    left = seconds_left()
    return None if math.isinf(left) else left


def encoding_name(number: int) -> Encoding:
    """Raises Fault UNKNOWN_ENCODING."""
    if number not in _NAMES:
        raise Fault(Reason.UNKNOWN_ENCODING, encodings=number)
    return _NAMES[number]


def encoding_number(name: Encoding) -> types_pb2.Encoding.ValueType:
    """The API's number of an encoding."""
    return _NUMBERS[name]


def choose_encoding(accepted: Sequence[int]) -> Encoding:
    """The first one that is known; float16 if the caller has no wish.

    Numbers of encodings to come are passed over, so that a newer device can list them.
    Raises Fault UNKNOWN_ENCODING if none is known or one is ENCODING_UNSPECIFIED.
    """
    if not accepted:
        return "float16"
    if len(accepted) > MAX_ENCODINGS:
        raise Fault(Reason.TOO_LARGE, field="accepted_encodings", limit=f"{MAX_ENCODINGS} entries")
    known = [_NAMES[number] for number in accepted if number in _NAMES]
    if not known or types_pb2.ENCODING_UNSPECIFIED in accepted:
        raise Fault(Reason.UNKNOWN_ENCODING, encodings=", ".join(map(str, accepted)))
    return known[0]


def status_details(fault: Fault) -> bytes:
    """The value of `grpc-status-details-bin` for a Fault."""
    detail = types_pb2.ErrorDetail(
        reason=fault.reason, action=fault.action, current_version=fault.current_version
    )
    if fault.retry is not None:
        detail.retry.min_ms, detail.retry.max_ms = fault.retry
    packed = any_pb2.Any()
    packed.Pack(detail)
    code: int = grpc.StatusCode[fault.status].value[0]
    return types_pb2.StatusDetails(
        code=code, message=fault.text, details=[packed]
    ).SerializeToString()


def fault_from_details(value: bytes) -> Fault | None:
    """The Fault that another service sent; None if these are no details of ours."""
    try:
        details = types_pb2.StatusDetails.FromString(value)
        for packed in details.details:
            detail = types_pb2.ErrorDetail()
            if packed.Unpack(detail) and detail.reason in Reason.__members__:
                retry = (detail.retry.min_ms, detail.retry.max_ms)
                return Fault.received(
                    Reason(detail.reason),
                    details.message,
                    retry if detail.HasField("retry") else None,
                    detail.current_version,
                )
    except DecodeError:
        return None
    return None


def artefact_field(data: Sequence[Buffer], sha256: bytes, encoding: Encoding) -> Sequence[Buffer]:
    """Field `artefact` of RequestNetworkResponse, serialised around `data` without copying it.

    data: the artefact in pieces. The rest is a few bytes: tags and lengths as protobuf's
    encoding has them.
    """
    size = sum(len(piece) for piece in data)
    rest = types_pb2.Artefact(sha256=sha256, encoding=_NUMBERS[encoding]).SerializeToString()
    head = _tag(_ARTEFACT_DATA) + _varint(size)
    return [_tag(_ARTEFACT) + _varint(len(head) + size + len(rest)), head, *data, rest]


def parse_artefact(pieces: Sequence[Buffer]) -> types_pb2.Artefact:
    """The message that `artefact_field` or an assembler serialised."""
    return assembler_pb2.AssembleNetworkResponse.FromString(b"".join(pieces)).artefact


def split_payload(message: bytes) -> tuple[memoryview, mapper_pb2.GenerateBlocksResponse]:
    """A GenerateBlocksResponse: its payload as a view, and the message without it.

    Raises DecodeError.
    """
    start, end = _first_field(message, _PAYLOAD)
    rest = mapper_pb2.GenerateBlocksResponse.FromString(message[end:])
    return memoryview(message)[start:end], rest


def split_artefact(message: bytes) -> tuple[memoryview, assembler_pb2.AssembleNetworkResponse]:
    """An AssembleNetworkResponse: its field `artefact`, tag and length included, as a view, and
    the message without it. Raises DecodeError."""
    _, end = _first_field(message, _ARTEFACT)
    rest = assembler_pb2.AssembleNetworkResponse.FromString(message[end:])
    return memoryview(message)[:end], rest


def _first_field(message: bytes, number: int) -> tuple[int, int]:
    """Where the content of the first field starts and ends. Serialisers write fields in order
    of their numbers, so the large one is first."""
    if message[:1] != _tag(number):
        raise DecodeError(f"the message does not begin with field {number}")
    size = shift = 0
    for position in range(1, min(len(message), 11)):
        byte = message[position]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            start = position + 1
            if start + size > len(message):
                raise DecodeError("the message is truncated")
            return start, start + size
    raise DecodeError("the message is truncated")


def _tag(number: int) -> bytes:
    """Of a length-delimited field below 16."""
    return bytes([number << 3 | 2])


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def cost_message(cost: NetworkCost) -> types_pb2.Cost:
    """The API's message of a network's cost, without what only the controller knows."""
    return types_pb2.Cost(
        paper_device_flops=cost.paper_device_flops,
        true_device_flops=cost.true_device_flops,
        generation_flops=cost.generation_flops,
        artefact_bytes=cost.artefact_bytes,
        times=types_pb2.StageTimes(
            queue_us=cost.queue_us, map_us=cost.map_us, assemble_us=cost.assemble_us
        ),
    )
