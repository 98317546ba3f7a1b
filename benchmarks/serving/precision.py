"""What bfloat16 products and small encodings cost in quality: NDCG@10 of a trained version.

    python -m benchmarks.serving.precision --registry runs/demo-ml-1m/registry --data ml-1m

The parts that run online: the SDK's extractor and engine in numpy, the mapper's products and
its encodings. Full ranking of the items that the user has not seen; the last item of
each user is the target, everything before it the history.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from forward_ofa.data import SequenceDataset, default_filter, load, prepare
from forward_ofa_device.artefact import BlockLayout, Encoding, decode_block
from forward_ofa_device.artefact import Network as DeviceNetwork
from forward_ofa_device.backbones import build
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.engine import NetworkEngine
from forward_ofa_device.extractor import InterestExtractor
from forward_ofa_device.tensors import read_tensors
from services.mapper.domain import MappedVersion
from services.mapper.hypernetworks import Precision
from services.registry.contract import BUNDLE_TENSORS, ITEMS, PublishedVersion
from services.registry.files import FileRegistry

WAYS: tuple[tuple[Precision, Encoding], ...] = (
    ("float32", "float32"),
    ("float32", "float16"),
    ("bfloat16", "float16"),
    ("float32", "int8"),
)
"""Of the products, and on the wire. The first is what the others are compared with."""


def gains(
    published: PublishedVersion,
    data: SequenceDataset,
    users: np.ndarray,
    precision: Precision,
    encoding: Encoding,
) -> np.ndarray:
    """1 / log2(1 + rank) of each user's target if it is among the first 10, else 0."""
    config = published.manifest.backbone
    layout = BlockLayout.of(build(config).block_parameters())
    bundle = read_bundle(published.path(BUNDLE_TENSORS).read_bytes())
    extractor, engine = InterestExtractor(bundle), NetworkEngine(bundle)
    tensors, _ = read_tensors(published.path(ITEMS).read_bytes())
    table = tensors["embeddings"]
    mapped = MappedVersion.load(published, precision)
    out = torch.empty(1, layout.size)
    found = []
    for user in users.tolist():
        items = data.history(user) - 1
        history, target = items[:-1], items[-1]
        wish = extractor.interest(table[history])
        row = torch.from_numpy(mapped.networks.row(wish.vector))[None]
        blocks = {}
        for block in np.flatnonzero(wish.path).tolist():
            with torch.inference_mode():
                made = mapped.networks.multiply(block, row, out)
                (payload,) = mapped.encoder.encode(made, encoding)
            blocks[block] = decode_block(payload, layout, encoding)
        network = DeviceNetwork(
            published.manifest.version, config.name, wish.path, encoding, blocks
        )
        scores = engine.scores(network, table[history], table, engine.offset(wish.vector))
        wanted = scores[target]
        scores[history] = -np.inf
        rank = 1 + int((scores > wanted).sum())
        found.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--users", type=int, default=1000, help="drawn at random, seed 0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    registry = FileRegistry(arguments.registry)
    published = registry.open(registry.current() or "")
    log = load(arguments.data, Path.home() / ".cache" / "forward-ofa")
    data = prepare(log, default_filter(log))
    ids = json.loads(published.path("catalogue.json").read_text())["item_ids"]
    if ids != data.item_ids:
        raise SystemExit(f"{arguments.data} is not the log that this version was trained on")
    users = np.random.default_rng(0).permutation(data.num_users)[: arguments.users]
    print(f"{len(users)} users; difference to the first line, paired, with its standard error")
    exact = gains(published, data, users, *WAYS[0])
    for precision, encoding in WAYS:
        found = gains(published, data, users, precision, encoding)
        difference = found - exact
        error = difference.std() / np.sqrt(len(difference))
        print(
            f"products {precision:8} wire {encoding:7} NDCG@10 {found.mean():.5f} "
            f"{difference.mean():+.5f} +- {error:.5f}"
        )


if __name__ == "__main__":
    main()
