"""What each stage of a request costs, and how often it copies the parameters.

    python -m benchmarks.serving.stages [--encoding float16]

CPU milliseconds a request of SASRec with six blocks of 64 (the paper's), one thread, medians.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable

import numpy as np
import torch

from forward_ofa_api.controller.v1 import controller_pb2 as api
from forward_ofa_api.mapper.v1 import mapper_pb2
from forward_ofa_api.types.v1 import types_pb2 as types
from forward_ofa_device.artefact import ENCODINGS, BlockLayout, artefact_header, pack_path
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig
from services.checks import check_interest, check_path, check_session_id
from services.controller.retrieval import ItemIndex
from services.mapper.encoding import BlockEncoder
from services.mapper.hypernetworks import BlockHypernetworks
from services.ports import Encoding
from services.wire import artefact_field, split_artefact, split_payload

ROUNDS = 200
BATCH = 32
ITEMS = 3_011


def cost(work: Callable[[], object], per: int = 1) -> float:
    """Median CPU milliseconds of one of `per` requests that `work` does."""
    times = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return sorted(times[ROUNDS // 10 :])[(ROUNDS - ROUNDS // 10) // 2] * 1000 / per


def measure(encoding: Encoding) -> list[tuple[str, str, float]]:
    """(stage, copies of the parameters, CPU milliseconds)."""
    config = BackboneConfig()
    layout = BlockLayout.of(build(config).block_parameters())
    rng = np.random.default_rng(0)
    weights = {
        block: torch.from_numpy(
            rng.normal(0, 0.1, (config.hidden + 1, layout.size)).astype(np.float32)
        )
        for block in range(config.blocks)
    }
    networks, encoder = BlockHypernetworks(layout, weights), BlockEncoder(layout)
    interest = rng.normal(0, 1, config.hidden).astype("<f4")
    path = tuple([True] * config.blocks)
    d = config.hidden
    index = ItemIndex(
        rng.normal(0, 0.1, (d, d)).astype(np.float32),
        np.zeros(d, np.float32),
        rng.normal(0, 0.1, (ITEMS, d)).astype(np.float32),
    )
    request = api.RequestNetworkRequest(
        version="20260101-000000-abcdef12",
        session_id="s" * 22,
        path=types.Path(bits=pack_path(path)),
        interest=types.Interest(values=interest.tobytes()),
    ).SerializeToString()

    def check() -> None:
        message = api.RequestNetworkRequest.FromString(request)
        check_session_id(message.session_id)
        check_path(message.path.bits, config.blocks)
        networks.row(check_interest(message.interest.values, config.hidden))

    rows = torch.from_numpy(np.tile(networks.row(interest), (BATCH, 1)))
    out = torch.empty(BATCH, layout.size)

    def product(n: int) -> None:
        for block in range(config.blocks):
            networks.multiply(block, rows[:n], out[:n])

    def encode(n: int) -> None:
        for _ in range(config.blocks):
            encoder.encode(out[:n], encoding)

    product(BATCH)
    payloads = [encoder.encode(out[:1], encoding)[0] for _ in range(config.blocks)]
    header = artefact_header("20260101-000000-abcdef12", config.name, path, encoding, layout)
    data = [header, *payloads]
    digest = hashlib.sha256(b"".join(data)).digest()
    field = artefact_field(data, digest, encoding)
    rest = api.RequestNetworkResponse(version="20260101-000000-abcdef12").SerializeToString()
    reply = b"".join([*field, rest])
    generated = mapper_pb2.GenerateBlocksResponse(payload=b"".join(payloads), map_us=1)
    blocks = generated.SerializeToString()

    def hash_all() -> None:
        hashing = hashlib.sha256()
        for piece in data:
            hashing.update(piece)
        hashing.digest()

    with torch.inference_mode():
        return [
            ("read and check the request", "", cost(check)),
            ("product, alone", "written", cost(lambda: product(1))),
            (f"product, {BATCH} together", "written", cost(lambda: product(BATCH), BATCH)),
            ("encode, alone", "1", cost(lambda: encode(1))),
            (f"encode, {BATCH} together", "1", cost(lambda: encode(BATCH), BATCH)),
            ("SHA-256", "", cost(hash_all)),
            (f"retrieval among {ITEMS:,} items", "", cost(lambda: index.search(interest, 200))),
            ("frame", "", cost(lambda: artefact_field(data, digest, encoding))),
            ("join to one reply", "1", cost(lambda: b"".join([*field, rest]))),
            ("split a mapper's reply (apart)", "", cost(lambda: split_payload(blocks))),
            ("split an assembler's reply (apart)", "", cost(lambda: split_artefact(reply))),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoding", choices=ENCODINGS, default="float16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'stage':40} {'copies':>8} {'CPU ms':>8}")
    for stage, copies, milliseconds in measure(arguments.encoding):
        print(f"{stage:40} {copies:>8} {milliseconds:8.3f}")


if __name__ == "__main__":
    main()
