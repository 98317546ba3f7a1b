"""The device bundle: its definition, reader and writer.

One safetensors file with the tensors

    controller.gru.{weight_ih,weight_hh,bias_ih,bias_hh}   E   [3D, D], [3D, D], [3D], [3D]
    controller.head.{weight,bias}                          H   [L, D], [L]
    extractor.gru.{weight_ih,weight_hh,bias_ih,bias_hh}    E'  as E
    shared.{name}                                          the backbone's shared parameters
    query.{weight,bias}                                    [D, D], [D]; only if `fusion` is not 0

(gates in the order reset, update, new, as PyTorch's and ONNX's linear-before-reset GRU)
and the manifest below as JSON metadata. Item shards are files of their own:
`embeddings` [n, D] float16, row i for item_ids[i] of the metadata.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forward_ofa_device.artefact import BlockLayout
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import Backbone, BackboneConfig
from forward_ofa_device.errors import CorruptFile
from forward_ofa_device.tensors import read_tensors, write_tensors

FORMAT = "forward-ofa-bundle/1"
SHARD_FORMAT = "forward-ofa-items/1"
MAX_SIDE = 65_536
MOST_FUSION = 1000.0
_GRU = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True)
class BundleManifest:
    """What a device must know to use the tensors.

    extractor_history: items that E and E' read, at most. shard_starts: first item id of
    each shard from 1 on; ids are sorted as text. Shard 0 holds the most popular items.
    fusion: w of the vector that items are scored with, network's output + w query(h); 0: there is
    no query. block_parameters: (name, shape, kind) in wire order, for clients in other languages.
    """

    version: str
    backbone: BackboneConfig
    extractor_history: int
    shard_starts: tuple[str, ...]
    num_items: int
    fusion: float = 0.0

    def to_json(self) -> str:
        block = [
            (spec.name, list(spec.shape), spec.kind)
            for spec in build(self.backbone).block_parameters()
        ]
        return json.dumps({"format": FORMAT, **asdict(self), "block_parameters": block})

    @classmethod
    def from_json(cls, text: str) -> BundleManifest:
        """Raises CorruptFile for anything that is not a manifest of this format."""
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw.pop("format") != FORMAT:
                raise CorruptFile(f"this is not a {FORMAT} file; update the SDK")
            raw.pop("block_parameters")
            config = raw.pop("backbone")
            config["dilations"] = tuple(config["dilations"])
            _check_sizes(config)
            manifest = cls(
                version=str(raw["version"]),
                backbone=BackboneConfig(**config),
                extractor_history=int(raw["extractor_history"]),
                shard_starts=tuple(str(s) for s in raw["shard_starts"]),
                num_items=int(raw["num_items"]),
                fusion=_number(raw.get("fusion", 0.0)),
            )
            build(manifest.backbone)
            if not 0 <= manifest.fusion <= MOST_FUSION:
                raise ValueError("fusion is no sane weight")
        except (LookupError, TypeError, ArithmeticError, ValueError, AttributeError) as error:
            raise CorruptFile("the bundle's manifest is malformed") from error
        except RecursionError as error:
            raise CorruptFile("the bundle's manifest is nested too deeply") from error
        return manifest

    def shard_of(self, item_id: str) -> int:
        """The shard from 1 on that would hold an item that is not in shard 0; 0: none would."""
        return bisect.bisect_right(self.shard_starts, item_id)


@dataclass(frozen=True)
class DeviceBundle:
    """A bundle in memory."""

    manifest: BundleManifest
    backbone: Backbone
    layout: BlockLayout
    controller_gru: Mapping[str, np.ndarray]
    controller_head: Mapping[str, np.ndarray]
    extractor_gru: Mapping[str, np.ndarray]
    shared: Mapping[str, np.ndarray]
    query: Mapping[str, np.ndarray]


def _number(value: Any) -> float:
    if isinstance(value, bool | str):
        raise ValueError("text and booleans are no numbers")
    return float(value)


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Sizes become loops and allocations, so they must be sane before anything uses them."""
    sizes = [config[name] for name in ("blocks", "hidden", "history", "heads")]
    if not all(type(n) is int and n <= MAX_SIDE for n in (*sizes, *config["dilations"])):
        raise ValueError("sizes are not numbers of a backbone")


def write_bundle(manifest: BundleManifest, tensors: Mapping[str, np.ndarray]) -> bytes:
    """The file that devices fetch. Raises CorruptFile if tensors are missing or misshapen."""
    data = write_tensors(tensors, {"manifest": manifest.to_json()})
    read_bundle(data)
    return data


def read_bundle(data: bytes | memoryview) -> DeviceBundle:
    """Raises CorruptFile if anything is missing, misshapen or not finite."""
    tensors, metadata = read_tensors(data)
    manifest = BundleManifest.from_json(metadata.get("manifest", ""))
    backbone = build(manifest.backbone)
    expected = bundle_shapes(manifest, backbone)
    if {name: value.shape for name, value in tensors.items()} != expected:
        raise CorruptFile("the bundle's tensors are not those of its backbone")
    floats = {name: value.astype(np.float32) for name, value in tensors.items()}
    if not all(np.isfinite(value).all() for value in floats.values()):
        raise CorruptFile("the bundle has values that are not finite")
    return DeviceBundle(
        manifest,
        backbone,
        BlockLayout.of(backbone.block_parameters()),
        _under(floats, "controller.gru."),
        _under(floats, "controller.head."),
        _under(floats, "extractor.gru."),
        _under(floats, "shared."),
        _under(floats, "query."),
    )


def bundle_shapes(manifest: BundleManifest, backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a bundle."""
    d = manifest.backbone.hidden
    gru = dict(zip(_GRU, ((3 * d, d), (3 * d, d), (3 * d,), (3 * d,)), strict=True))
    shapes: dict[str, tuple[int, ...]] = {
        f"{part}.gru.{name}": shape
        for part in ("controller", "extractor")
        for name, shape in gru.items()
    }
    shapes["controller.head.weight"] = (manifest.backbone.blocks, d)
    shapes["controller.head.bias"] = (manifest.backbone.blocks,)
    for spec in backbone.shared_parameters():
        shapes[f"shared.{spec.name}"] = spec.shape
    if manifest.fusion:
        shapes |= {"query.weight": (d, d), "query.bias": (d,)}
    return shapes


def _under(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def write_shard(version: str, item_ids: Sequence[str], embeddings: np.ndarray) -> bytes:
    """Item ids and embeddings [n, D] as the file of one shard."""
    metadata = {"format": SHARD_FORMAT, "version": version, "item_ids": json.dumps(list(item_ids))}
    return write_tensors({"embeddings": embeddings.astype(np.float16)}, metadata)


def read_shard(data: bytes | memoryview) -> tuple[str, list[str], np.ndarray]:
    """(version, item ids, float32 embeddings [n, D]). Raises CorruptFile."""
    tensors, metadata = read_tensors(data)
    if metadata.get("format") != SHARD_FORMAT or set(tensors) != {"embeddings"}:
        raise CorruptFile(f"this is not a {SHARD_FORMAT} file")
    try:
        ids = json.loads(metadata.get("item_ids", ""))
    except (ValueError, RecursionError) as error:
        raise CorruptFile("the shard's item ids are malformed") from error
    embeddings = tensors["embeddings"].astype(np.float32)
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise CorruptFile("the shard's item ids are not text")
    if embeddings.ndim != 2 or len(ids) != len(embeddings) or not np.isfinite(embeddings).all():
        raise CorruptFile("the shard's embeddings are not one finite row an item")
    return metadata.get("version", ""), ids, embeddings
