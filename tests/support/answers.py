"""Requests that are never the same twice, and whether an answer is, to the last value, what the
version's weights make of just that request."""

from __future__ import annotations

import hashlib

import numpy as np

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import pack_path, read_artefact
from tests.support.versions import TinyVersion

# How far a value may be from the exact one: absolute, and relative to the largest of its tensor.
_CLOSE = {
    types.ENCODING_FLOAT32: 1e-6,
    types.ENCODING_FLOAT16: 1e-3,
    types.ENCODING_INT8: 1e-2,
}


def random_request(tiny: TinyVersion, rng: np.random.Generator) -> api.RequestNetworkRequest:
    """A good one: any session, path, interest and encoding."""
    path = rng.random(tiny.config.blocks) < 0.5
    path[rng.integers(tiny.config.blocks)] = True
    interest = rng.uniform(-1, 1, tiny.config.hidden).astype("<f4")
    return api.RequestNetworkRequest(
        version=tiny.version,
        session_id=rng.bytes(12).hex(),
        path=types.Path(bits=pack_path([bool(kept) for kept in path])),
        interest=types.Interest(values=interest.tobytes()),
        accepted_encodings=[int(rng.choice(list(_CLOSE)))],
    )


def mistake(
    tiny: TinyVersion, request: api.RequestNetworkRequest, reply: api.RequestNetworkResponse
) -> str:
    """What is wrong with an answer to one who holds no candidates; "" if nothing is."""
    return network_mistake(tiny, request, reply) or candidates_mistake(
        tiny, request, list(reply.candidates.item_ids)
    )


def network_mistake(
    tiny: TinyVersion, request: api.RequestNetworkRequest, reply: api.RequestNetworkResponse
) -> str:
    """What is wrong with the network of an answer; "" if nothing is."""
    data = reply.artefact.data
    if hashlib.sha256(data).digest() != reply.artefact.sha256:
        return "the digest is not the content's"
    if not reply.version == request.version == tiny.version:
        return f"version {reply.version}"
    if reply.artefact.encoding != request.accepted_encodings[0]:
        return f"encoding {reply.artefact.encoding}"
    network = read_artefact(data, tiny.layout)
    if network.version != tiny.version:
        return f"an artefact of version {network.version}"
    if pack_path(network.path) != request.path.bits:
        return f"path {network.path}"
    interest = np.frombuffer(request.interest.values, "<f4")
    close = _CLOSE[reply.artefact.encoding]
    for block, parameters in network.blocks.items():
        for name, wanted in tiny.layout.split(tiny.parameters(block, interest)).items():
            error = np.abs(parameters[name] - wanted).max()
            if not error <= close * (1 + np.abs(wanted).max()):
                return f"block {block} {name} is off by {error}"
    return ""


def candidates_mistake(
    tiny: TinyVersion, request: api.RequestNetworkRequest, items: list[str]
) -> str:
    """What is wrong with a complete list of candidates; "" if nothing is."""
    interest = np.frombuffer(request.interest.values, "<f4")
    if not items or items != tiny.best(interest, len(items)):
        return "the candidates are not this interest's"
    return ""
