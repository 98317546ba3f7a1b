"""The report of a run: protocol, figures of both systems, and the difference."""

from __future__ import annotations

from typing import Any

import numpy as np

from forward_ofa.baselines.device_rec import DeviceRec
from forward_ofa.config import RunConfig
from forward_ofa.cost import device_modules_cost, mean_network_cost
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import TOP, Evaluation, evaluate, hit, ndcg, paired_interval
from forward_ofa.model import ForwardOFA
from forward_ofa_device.artefact import ENCODINGS, BlockLayout
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig


def describe(
    data: SequenceDataset,
    config: RunConfig,
    device_rec: DeviceRec,
    forward_ofa: ForwardOFA,
    split: str,
) -> dict[str, Any]:
    """Both systems on one split, under stable keys.

    The funnel of both reranks the same candidates: those that Forward-OFA's cloud retrieves.
    """
    ours = evaluate(forward_ofa, data, split, config.candidates)
    theirs = evaluate(device_rec, data, split, config.candidates, retriever=forward_ofa)
    backbone = config.method.backbone
    modules = device_modules_cost(backbone, config.method.extractor_history)
    return {
        "split": split,
        "protocol": protocol(data, config),
        "systems": {
            "forward-ofa": _system(ours, backbone),
            "device-rec": _system(theirs, backbone),
        },
        "difference": {
            f"ndcg@{TOP}": _difference(ndcg(ours.ranks), ndcg(theirs.ranks)),
            f"hit@{TOP}": _difference(hit(ours.ranks), hit(theirs.ranks)),
            f"funnel_ndcg@{TOP}": _difference(ndcg(ours.funnel_ranks), ndcg(theirs.funnel_ranks)),
        },
        "device_modules": {
            "parameters": modules.parameters,
            "flops_per_request": modules.flops.true,
            "extractor_history": config.method.extractor_history,
        },
    }


def protocol(data: SequenceDataset, config: RunConfig) -> list[str]:
    """The protocol card: what one must know to compare a figure with another."""
    method, ours, theirs = config.method, config.forward_ofa, config.device_rec
    backbone = method.backbone
    return [
        f"data: {data.name}, {data.num_users:,} users, {data.num_items:,} items, "
        f"{data.num_interactions:,} interactions",
        f"filter: {data.filter.describe()}",
        f"split: {data.split.describe()}; best epoch by validation NDCG@{TOP}, tested once",
        f"backbone: {backbone.name}, L = {backbone.blocks}, d = {backbone.hidden}, "
        f"T = {backbone.history}"
        + (f", norm {backbone.norm}" if backbone.name == "sasrec" else ""),
        f"extractors E and E': the last {method.extractor_history} items, at each refresh, "
        "not at each ranking",
        "ranking: all items, seen ones not removed; ties count against the target",
        f"funnel: {config.candidates} candidates from h, seen ones removed on the device",
        "loss: full softmax cross-entropy on the next item; Forward-OFA also lambda times the "
        f"compact loss, and {method.retrieval_weight:g} times that of the cloud's query",
        f"drawn: dropout {method.dropout:g}, budget cuts {method.cut_probability:g} of devices; "
        f"first logit {method.keep_bias:g}, spread {method.spread:g}",
        _foundation_line(config),
        f"Forward-OFA: lambda {method.compact_weight:g} (grown over {method.compact_warmup:.0%}), "
        f"tau {method.temperature:g}, {_count(ours.epochs, 'epoch')}, "
        f"{_count(ours.targets_per_network, 'target')} a network, "
        f"learning rate {ours.learning_rate:g}, seed {ours.seed}"
        + (", started from the trained DeviceRec" if config.warm_start else ""),
        f"DeviceRec: {_count(theirs.epochs, 'epoch')}, learning rate {theirs.learning_rate:g}, "
        f"seed {theirs.seed}",
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _foundation_line(config: RunConfig) -> str:
    if config.foundation is None:
        return "foundation: none; both systems start from nothing"
    training = config.foundation.training
    return (
        f"foundation: GRU over whole histories, {_count(training.epochs, 'epoch')}, learning rate "
        f"{training.learning_rate:g}, seed {training.seed}; both systems start from its item "
        "embeddings, Forward-OFA's extractors from its GRU"
    )


def _system(evaluation: Evaluation, backbone: BackboneConfig) -> dict[str, Any]:
    kept = float(evaluation.kept.mean())
    paper_mflops, true_mflops, paper_mbit = mean_network_cost(backbone, kept)
    layout = BlockLayout.of(build(backbone).block_parameters())
    return {
        **evaluation.metrics(),
        "paper_mflops": paper_mflops,
        "true_mflops": true_mflops,
        "paper_mbit": paper_mbit,
        "payload_bytes": {e: kept * layout.encoded_bytes(e) for e in ENCODINGS},
    }


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    low, high = paired_interval(ours, theirs)
    return {"mean": float((ours - theirs).mean()), "low": low, "high": high}
