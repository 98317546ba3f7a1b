"""Tiny real versions on disk: random weights in the formats that an export writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from forward_ofa_device.artefact import BlockLayout, pack_path
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.bundle import BundleManifest, write_bundle, write_shard
from forward_ofa_device.tensors import write_tensors
from services.controller.indexing import IndexSettings, add_index
from services.registry.contract import FORMAT, Registry

CONFIG = BackboneConfig(blocks=4, hidden=8, history=5, heads=2)
ITEMS = 60
SHARDS = 3


@dataclass(frozen=True)
class TinyVersion:
    """The numbers behind a version that was published."""

    version: str
    config: BackboneConfig
    weights: list[np.ndarray]
    biases: list[np.ndarray]
    query_weight: np.ndarray
    query_bias: np.ndarray
    items: np.ndarray
    item_ids: list[str]

    @property
    def layout(self) -> BlockLayout:
        return BlockLayout.of(build(self.config).block_parameters())

    def parameters(self, block: int, interest: np.ndarray) -> np.ndarray:
        """weight @ h + bias in float64, to compare with."""
        return self.weights[block].astype(float) @ interest.astype(float) + self.biases[block]

    def best(self, interest: np.ndarray, count: int) -> list[str]:
        scores = self.items @ (self.query_weight @ interest + self.query_bias)
        return [self.item_ids[row] for row in np.argsort(-scores, kind="stable")[:count]]

    def interest(self, seed: int = 0) -> np.ndarray:
        draw = np.random.default_rng(seed).uniform(-1, 1, self.config.hidden)
        return draw.astype("<f4")

    def queries(self, count: int) -> np.ndarray:
        """What retrieval searches for with interests 0 to count - 1: [count, D]."""
        interests = np.stack([self.interest(seed) for seed in range(count)])
        return (interests @ self.query_weight.T + self.query_bias).astype(np.float32)

    def path(self, *kept: int) -> bytes:
        return pack_path([block in kept for block in range(self.config.blocks)])


def write_staging(
    folder: Path,
    version: str,
    *,
    config: BackboneConfig = CONFIG,
    items: int = ITEMS,
    seed: int = 1,
    table: np.ndarray | None = None,
) -> TinyVersion:
    """All files of a version but the manifest, as an export leaves them.

    table: the item embeddings [items, hidden], instead of random ones; then a query is the
    interest itself.
    """
    rng = np.random.default_rng(seed)
    backbone, d = build(config), config.hidden
    size = BlockLayout.of(backbone.block_parameters()).size

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    tiny = TinyVersion(
        version,
        config,
        [draw(size, d) for _ in range(config.blocks)],
        [draw(size) for _ in range(config.blocks)],
        draw(d, d),
        draw(d),
        draw(items, d),
        [f"item-{index}" for index in range(items)],
    )
    if table is not None:
        zeros = np.zeros(d, np.float32)
        tiny = replace(tiny, items=table, query_weight=np.eye(d, dtype="f4"), query_bias=zeros)
    mapper = {}
    for block in range(config.blocks):
        mapper[f"block.{block}"] = np.vstack([tiny.weights[block].T, tiny.biases[block]])
    query = {"query.weight": tiny.query_weight, "query.bias": tiny.query_bias}
    (folder / "bundle").mkdir(parents=True)
    (folder / "mapper.safetensors").write_bytes(write_tensors(mapper, {}))
    (folder / "retrieval.safetensors").write_bytes(write_tensors(query, {}))
    (folder / "items.safetensors").write_bytes(write_tensors({"embeddings": tiny.items}, {}))
    titles = {item: f"Title of {item}" for item in tiny.item_ids}
    (folder / "catalogue.json").write_text(
        json.dumps({"item_ids": tiny.item_ids, "titles": titles})
    )
    (folder / "report.json").write_text(json.dumps({"ndcg@10": 0.1}))
    _write_bundle_files(folder / "bundle", tiny, draw)
    (folder / "version.json").write_text(
        json.dumps(
            {
                "format": FORMAT,
                "version": version,
                "created": f"2026-01-01T00:00:{seed:02d}+00:00",
                "backbone": asdict(config),
                "extractor_history": 20,
                "items": items,
                "shards": SHARDS,
                "protocol": {"filter": "5-core"},
                "metrics": {"ndcg@10": 0.1},
            }
        )
    )
    return tiny


def _write_bundle_files(folder: Path, tiny: TinyVersion, draw) -> None:
    d, blocks = tiny.config.hidden, tiny.config.blocks
    gru = {
        "weight_ih": (3 * d, d),
        "weight_hh": (3 * d, d),
        "bias_ih": (3 * d,),
        "bias_hh": (3 * d,),
    }
    tensors = {
        f"{part}.gru.{name}": draw(*shape)
        for part in ("controller", "extractor")
        for name, shape in gru.items()
    }
    tensors["controller.head.weight"] = draw(blocks, d)
    tensors["controller.head.bias"] = draw(blocks)
    for spec in build(tiny.config).shared_parameters():
        tensors[f"shared.{spec.name}"] = draw(*spec.shape)
    row_of = {item: row for row, item in enumerate(tiny.item_ids)}
    rest = sorted(tiny.item_ids[20:])
    halves = [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
    starts = tuple(half[0] for half in halves)
    manifest = BundleManifest(tiny.version, tiny.config, 20, starts, len(tiny.item_ids))
    (folder / "tensors.safetensors").write_bytes(write_bundle(manifest, tensors))
    for shard, ids in enumerate([tiny.item_ids[:20], *halves]):
        rows = tiny.items[[row_of[item] for item in ids]]
        data = write_shard(tiny.version, ids, rows)
        (folder / f"items-{shard:04d}.safetensors").write_bytes(data)
    # Opaque to the services: only devices and their tests read ONNX. Longer than one chunk.
    (folder / "extractor.onnx").write_bytes(bytes(range(256)) * 2500)


def publish(
    registry: Registry,
    version: str,
    *,
    label: str | None = "stable",
    index: IndexSettings | None = None,
    queries: np.ndarray | None = None,
    **options,
) -> TinyVersion:
    """A tiny version in a registry, labelled. index: with the index that these settings choose,
    tuned on `queries` [Q, D]."""
    staging = registry.staging()
    tiny = write_staging(staging, version, **options)
    if index is not None:
        add_index(staging, tiny.queries(64) if queries is None else queries, index)
    assert registry.publish(staging) == version
    if label is not None:
        registry.label(label, version)
    return tiny
