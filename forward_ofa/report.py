"""The report of a run: protocol, figures of its system and of DeviceRec, and the difference."""

from __future__ import annotations

from typing import Any

import numpy as np

from forward_ofa.config import MethodConfig, RunConfig, TrainingConfig
from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.evaluation import TOP, Evaluation, evaluate, hit, ndcg, paired_interval
from forward_ofa.ranking import RankingSystem
from forward_ofa.systems import DEVICE_REC, SYSTEMS


def describe(
    data: SequenceDataset,
    config: RunConfig,
    system: RankingSystem,
    device_rec: RankingSystem | None,
    split: str,
    age: int = 0,
) -> dict[str, Any]:
    """A run's system and, if it has one, its DeviceRec on one split, under stable keys.

    "systems" has an entry for each by name; "difference" is there if DeviceRec is another system.
    The funnel, if the system retrieves, reranks the same candidates with both: those that the
    system's cloud retrieves. age: of the networks (see `evaluate`).
    """
    ours = evaluate(system, data, split, config.candidates, age=age)
    modules = system.device_modules()
    found: dict[str, Any] = {
        "split": split,
        "system": config.system,
        "protocol": protocol(data, config),
        "systems": {config.system: ours.metrics()},
        "device_modules": {
            "parameters": modules.parameters,
            "flops_per_request": modules.flops.true,
            "extractor_history": system.extractor_history,
        },
    }
    if device_rec is not None and config.system != DEVICE_REC:
        theirs = evaluate(device_rec, data, split, config.candidates, system, age)
        found["systems"][DEVICE_REC] = theirs.metrics()
        found["difference"] = _differences(ours, theirs)
    return found


def protocol(data: SequenceDataset, config: RunConfig) -> list[str]:
    """The protocol card: what one must know to compare a figure with another."""
    method, system = config.method, SYSTEMS[config.system]
    backbone = method.backbone
    lines = [
        f"system: {system.title}, {system.about}",
        f"data: {data.name}, {data.num_users:,} users, {data.num_items:,} items, "
        f"{data.num_interactions:,} interactions",
        f"filter: {data.filter.describe()}",
        f"split: {data.split.describe()}; best epoch by validation NDCG@{TOP}, tested once",
        f"backbone: {backbone.name}, L = {backbone.blocks}, d = {backbone.hidden}, "
        f"T = {backbone.history}"
        + (f", norm {backbone.norm}" if backbone.name == "sasrec" else "")
        + f", dropout {method.dropout:g}",
        "ranking: all items, seen ones not removed, and once more with them removed, where a "
        "repeated target is missed; ties count against the target",
        "loss: full softmax cross-entropy on the next item, and what the system adds to it",
        _foundation_line(config),
    ]
    lines += _method_lines(config, system.reads)
    if config.options is not None:
        values = ", ".join(
            f"{name} {_plain(value)}" for name, value in vars(config.options).items()
        )
        lines.append(f"{system.title}: {values}")
    if system.own_steps and config.system != DEVICE_REC:
        start = ", started from the trained DeviceRec" if config.warm_start else ""
        lines.append(f"{system.title}: {_training(config.training)}{start}")
    if any(stage.name == DEVICE_REC for stage in system.stages(config)):
        lines.append(f"DeviceRec: {_training(config.device_rec)}")
    return lines


def _method_lines(config: RunConfig, reads: tuple[str, ...]) -> list[str]:
    """What only systems with a structure or generated parameters have."""
    method = config.method
    lines = []
    if "extractor_history" in reads:
        lines.append(
            f"extractors: the last {method.extractor_history} items, at each refresh, not at each "
            "ranking"
        )
    if "retrieval_weight" in reads:
        apart = ", which teaches only its own layer" if method.retrieval_apart else ""
        lines.append(
            f"funnel: {config.candidates} candidates from h, seen ones removed on the device; "
            f"{method.retrieval_weight:g} times the loss of the cloud's query{apart}; generated "
            f"matrices ({_form(method)} hypernetworks) spread by {method.spread:g} at first"
            + (
                "; that query added to the networks' outputs, by a weight chosen on validation"
                if method.fusion
                else ""
            )
        )
    if "compact_weight" in reads:
        first, last = method.structure_from, method.structure_until
        between = "" if (first, last) == (0, 1) else f"from {first:.0%} to {last:.0%} of training, "
        lines.append(
            f"structure: {between}lambda {method.compact_weight:g}, grown over "
            f"{method.compact_warmup:.0%}; "
            f"tau {method.temperature:g}, first logit {method.keep_bias:g}, budget cuts drawn for "
            f"{method.cut_probability:g} of devices"
        )
    return lines


def _form(method: MethodConfig) -> str:
    return f"{method.bases}-base" if method.bases else "full"


def _training(config: TrainingConfig) -> str:
    return (
        f"{_count(config.epochs, 'epoch')} of batches of {config.batch_size}, "
        f"{_count(config.targets_per_network, 'target')} a network, "
        f"learning rate {config.learning_rate:g}, seed {config.seed}"
    )


def _plain(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _foundation_line(config: RunConfig) -> str:
    if config.foundation is None:
        return "foundation: none; every system starts from nothing"
    training = config.foundation.training
    return (
        f"foundation: GRU over whole histories, {_count(training.epochs, 'epoch')}, learning rate "
        f"{training.learning_rate:g}, seed {training.seed}; every system starts from its item "
        "embeddings, extractors from its GRU"
    )


def _differences(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    """The system's figures less DeviceRec's, with intervals."""
    found = {
        f"ndcg@{TOP}": _difference(ndcg(ours.ranks), ndcg(theirs.ranks)),
        f"hit@{TOP}": _difference(hit(ours.ranks), hit(theirs.ranks)),
        f"unseen_ndcg@{TOP}": _difference(ndcg(ours.unseen_ranks), ndcg(theirs.unseen_ranks)),
    }
    if ours.funnel is not None and theirs.funnel is not None:
        own, other = ndcg(ours.funnel.ranks), ndcg(theirs.funnel.ranks)
        found[f"funnel_ndcg@{TOP}"] = _difference(own, other)
    return found


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    low, high = paired_interval(ours, theirs)
    return {"mean": float((ours - theirs).mean()), "low": low, "high": high}
