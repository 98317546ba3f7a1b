"""A trained run as the files of a version, ready to be published.

See services/registry for what a version's folder holds. Everything is written
into a staging folder; nobody sees it before the registry has renamed it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from forward_ofa.checkpoint import save_tensors
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import user_batches
from forward_ofa.model import ForwardOFA
from forward_ofa.onnx_export import export_onnx
from forward_ofa.runs import Run, write_json
from forward_ofa_device.bundle import BundleManifest, write_bundle, write_shard

FORMAT = "forward-ofa-version/2"
POPULAR_ITEMS = 4096
"""Items of shard 0, which every device fetches: enough for most of a real history."""
SHARD_ITEMS = 4096
"""Items of the other shards: many, so that asking for one does not say which item is meant."""


def export_version(run: Run, data: SequenceDataset, staging: Path, version: str = "") -> str:
    """Writes all files of a version into the empty folder `staging`; returns the version's id.

    version: the id; "": one made of the time and the weights.

    Raises OSError when it cannot be written.
    """
    system = run.forward_ofa.to("cpu").eval()
    created = datetime.datetime.now(datetime.UTC)
    version = version or f"{created:%Y%m%d-%H%M%S}-{_weights_digest(system)[:8]}"
    (staging / "bundle").mkdir(parents=True)
    _write_cloud(system, staging)
    shards = item_shards(data)
    starts = tuple(ids[0] for ids, _ in shards[1:])
    config = system.config
    manifest = BundleManifest(
        version, config.backbone, config.extractor_history, starts, data.num_items,
        float(system.fusion),
    )  # fmt: skip
    bundle = write_bundle(manifest, _device_tensors(system))
    (staging / "bundle" / "tensors.safetensors").write_bytes(bundle)
    embeddings = system.items.weight.detach()[1:].numpy()
    for index, (ids, rows) in enumerate(shards):
        shard = write_shard(version, ids, embeddings[rows])
        (staging / "bundle" / f"items-{index:04d}.safetensors").write_bytes(shard)
    export_onnx(system, staging / "bundle" / "extractor.onnx", staging / "bundle" / "backbone.onnx")
    write_json(staging / "catalogue.json", {"item_ids": data.item_ids, "titles": data.titles})
    write_json(staging / "report.json", run.report)
    write_json(
        staging / "version.json",
        {
            "format": FORMAT,
            "version": version,
            "created": created.isoformat(timespec="seconds"),
            "backbone": asdict(config.backbone),
            "extractor_history": config.extractor_history,
            "items": data.num_items,
            "shards": len(shards),
            "data": run.data_card,
            "protocol": run.report["protocol"],
            "metrics": run.report["systems"][run.config.system],
        },
    )
    return version


@torch.no_grad()
def retrieval_queries(run: Run, data: SequenceDataset, limit: int) -> np.ndarray:
    """What the cloud would search for with the interests of the first `limit` users, as they
    were before their last two items: float32 [Q, D]."""
    system = run.forward_ofa.to("cpu").eval()
    config = system.config
    found: list[np.ndarray] = []
    batches = user_batches(data, "validation", config.extractor_history, config.backbone.history)
    for batch in batches:
        found.append(system.query(system.adapt(batch).interest).numpy())
        if sum(map(len, found)) >= limit:
            break
    return np.concatenate(found)[:limit]


def item_shards(data: SequenceDataset) -> list[tuple[list[str], np.ndarray]]:
    """(item ids, their rows in the item table) of each shard.

    Shard 0: the most popular items. The others: the rest sorted by id, as text, in shards of
    equal size within one item, each at least SHARD_ITEMS; a rest smaller than that joins shard 0.
    """
    order = np.argsort(-data.popularity()[1:], kind="stable")
    rest = sorted(order[POPULAR_ITEMS:].tolist(), key=lambda row: data.item_ids[row])
    shards = len(rest) // SHARD_ITEMS
    popular = order if shards == 0 else order[:POPULAR_ITEMS]
    groups = [popular, *(np.array_split(np.array(rest), shards) if shards else [])]
    return [([data.item_ids[row] for row in rows], rows) for rows in groups]


def _write_cloud(system: ForwardOFA, staging: Path) -> None:
    blocks = {}
    for index in range(system.backbone.config.blocks):
        hypernetwork = system.hypernetwork(index)
        # [h, 1] times this is the whole of Eq. 9, read in the order in which it lies on disk.
        blocks[f"block.{index}"] = torch.cat([hypernetwork.matrix().T, hypernetwork.bias[None]])
    save_tensors(staging / "mapper.safetensors", blocks)
    save_tensors(staging / "retrieval.safetensors", _query(system))
    save_tensors(staging / "items.safetensors", {"embeddings": system.items.weight[1:]})


def _query(system: ForwardOFA) -> dict[str, torch.Tensor]:
    return {f"query.{name}": value.detach() for name, value in system.query.named_parameters()}


def _device_tensors(system: ForwardOFA) -> dict[str, np.ndarray]:
    grus = {"controller": system.controller.extractor.gru, "extractor": system.mapper.extractor.gru}
    tensors = {
        f"{part}.gru.{name.removesuffix('_l0')}": value.detach()
        for part, gru in grus.items()
        for name, value in gru.named_parameters()
    }
    for name, value in system.controller.head.named_parameters():
        tensors[f"controller.head.{name}"] = value.detach()
    tensors |= {f"shared.{n}": v.detach() for n, v in system.shared_parameters().items()}
    if system.fusion:
        tensors |= _query(system)
    return {name: value.numpy() for name, value in tensors.items()}


def _weights_digest(system: ForwardOFA) -> str:
    digest = hashlib.sha256(json.dumps(asdict(system.config), sort_keys=True).encode())
    for name, value in sorted(system.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
