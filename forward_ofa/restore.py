"""A published version as a trainable module again, to be measured on another log.

The inverse of `export`: everything that decides how a version ranks is in its files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from forward_ofa.config import MethodConfig
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import evaluate
from forward_ofa.model import ForwardOFA
from forward_ofa_device.backbones.contract import BackboneConfig
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.errors import CorruptFile


@torch.no_grad()
def restore_system(version: Path) -> tuple[ForwardOFA, list[str]]:
    """The network of a version's folder, which the caller has verified, and its item ids:
    row i of its item table is item_ids[i - 1].

    Raises OSError, KeyError or ValueError for files that are not of a version.
    """
    manifest = json.loads((version / "manifest.json").read_text())
    raw = dict(manifest["backbone"])
    backbone = BackboneConfig(**{**raw, "dilations": tuple(raw["dilations"])})
    config = MethodConfig(backbone=backbone, extractor_history=manifest["extractor_history"])
    item_ids: list[str] = json.loads((version / "catalogue.json").read_text())["item_ids"]
    system = ForwardOFA(len(item_ids), config)
    system.items.weight[1:].copy_(load_file(version / "items.safetensors")["embeddings"])
    _restore_blocks(system, load_file(version / "mapper.safetensors"))
    query = load_file(version / "retrieval.safetensors")
    _fill(system.query, query, "query.")
    tensors = version / "bundle" / "tensors.safetensors"
    try:
        data = tensors.read_bytes()
        system.fusion.fill_(read_bundle(data).manifest.fusion)
    except CorruptFile as error:
        raise ValueError(f"{tensors}: {error}") from error
    bundle = load(data)
    for part, gru in (
        ("controller", system.controller.extractor.gru),
        ("extractor", system.mapper.extractor.gru),
    ):
        for name, value in gru.named_parameters():
            value.copy_(bundle[f"{part}.gru.{name.removesuffix('_l0')}"])
    _fill(system.controller.head, bundle, "controller.head.")
    for name, shared in system.shared_parameters().items():
        shared.copy_(bundle[f"shared.{name}"])
    return system.eval(), item_ids


def validation_ranks(
    system: ForwardOFA, item_ids: Sequence[str], data: SequenceDataset
) -> np.ndarray:
    """int64 [n]: rank of each validation target of `data` among the items that the system knows.

    0: not found, since the system does not know the target, or nothing of the history before.
    Unknown items of a history are skipped, as a device does.

    item_ids: external id of the system's item i at i - 1.
    """
    if list(item_ids) == list(data.item_ids):
        return evaluate(system, data, "validation").ranks
    row = {item: index for index, item in enumerate(item_ids, start=1)}
    known = np.array([0, *(row.get(item, 0) for item in data.item_ids)], dtype=np.int32)
    users, ends = data.held_out("validation")
    ranks = np.zeros(len(users), dtype=np.int64)
    found, sequences = [], []
    for index, (user, end) in enumerate(zip(users.tolist(), ends.tolist(), strict=True)):
        items = known[data.history(user)[: end + 1]]
        before, target = items[:-1], items[-1:]
        before = before[before > 0]
        if target[0] and len(before):
            found.append(index)
            sequences.append(np.concatenate([before, target]))
    if found:
        lengths = np.array([len(sequence) for sequence in sequences])
        seen = replace(
            data,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=np.concatenate(sequences),
            train_ends=(lengths - 1).astype(np.int32),
            test_starts=lengths.astype(np.int32),
            user_ids=[data.user_ids[users[index]] for index in found],
            item_ids=list(item_ids),
        )
        ranks[found] = evaluate(system, seen, "validation").ranks
    return ranks


def _restore_blocks(system: ForwardOFA, blocks: dict[str, Tensor]) -> None:
    for index in range(system.backbone.config.blocks):
        whole, hypernetwork = blocks[f"block.{index}"], system.hypernetwork(index)
        hypernetwork.weight.copy_(whole[:-1].T)
        hypernetwork.bias.copy_(whole[-1])


def _fill(module: torch.nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    for name, value in module.named_parameters():
        value.copy_(tensors[prefix + name])
