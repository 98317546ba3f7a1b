"""How often must a device ask? Quality against requests, for rules of asking.

    python -m experiments.ageing --run-dir runs/ml-1m

A network is made from what a device had met when it asked, and runs on the items of now. The test
item is ranked with the network that the device has by then, if it asks

* after a number of items: the mean over all ages that its network may have;
* when the cosine distance of its h from that of its last request is above a threshold, as
  `RefreshPolicy` does within a session (which also asks at a new session, for a new version, after
  a day, and never twice in half a minute: a log has no such times). Each user walks through the
  last items before the test item, or as many as there are.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import positive
from experiments.kdd25.markdown import table
from experiments.opened import open_run
from forward_ofa.batches import last_item_sessions
from forward_ofa.data import DataError, SequenceDataset
from forward_ofa.evaluation import Evaluation, evaluate, ndcg, paired_interval, user_batches
from forward_ofa.model import ForwardOFA
from forward_ofa.runs import RunError
from forward_ofa_cli.errors import CommandError

COUNTS = (1, 2, 4, 8, 16, 32)
SHIFTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)

Quality = tuple[np.ndarray, np.ndarray]
"""NDCG@10 of each user, with seen items ranked and without them."""


@torch.no_grad()
def walk(
    system: ForwardOFA, data: SequenceDataset, shifts: tuple[float, ...], length: int
) -> list[tuple[np.ndarray, float]]:
    """For each threshold, the networks' ages int64 [U] at the test item, and requests an item.

    All have just asked `length` items before it, or at their first item. Items that a user has not
    got are no chances to ask, and not counted.
    """
    before = last_item_sessions(data, "test").starts
    ages = [np.zeros(len(before), dtype=np.int64) for _ in shifts]
    asked, chances = [0] * len(shifts), 0
    last: list[Tensor] = []
    for age in range(length, -1, -1):
        now = interests(system, data, age)
        if not last:
            last = [now.clone() for _ in shifts]
            continue
        met = before - age >= 2  # an item since the one that the walk, or the user, began with
        chances += int(met.sum())
        for n, shift in enumerate(shifts):
            distance = 1 - F.cosine_similarity(now, last[n]).numpy()
            asks = met & (distance > shift)
            last[n][torch.from_numpy(asks)] = now[torch.from_numpy(asks)]
            ages[n] = np.where(asks, 0, ages[n] + met)
            asked[n] += int(asks.sum())
    return [(a, count / max(1, chances)) for a, count in zip(ages, asked, strict=True)]


def interests(system: ForwardOFA, data: SequenceDataset, age: int) -> Tensor:
    """h [U, D] of all users so many items before the test item."""
    stream = user_batches(data, "test", system.extractor_history, 1, age)
    return torch.cat([system.adapt(batch).interest for batch in stream])


def rules(
    system: ForwardOFA, data: SequenceDataset, length: int
) -> list[tuple[str, float, float, Quality]]:
    """Each rule, requests an item, mean age, and what devices that follow it have."""

    @cache
    def aged(age: int) -> Quality:
        return quality(evaluate(system, data, "test", age=age))

    found = []
    for items in COUNTS:
        each = [aged(age) for age in range(items)]
        mean = (np.mean([q[0] for q in each], 0), np.mean([q[1] for q in each], 0))
        found.append((f"after {items} items", 1 / items, (items - 1) / 2, mean))
    for shift, (ages, asks) in zip(SHIFTS, walk(system, data, SHIFTS, length), strict=True):
        own = quality(evaluate(system, data, "test", age=ages))
        found.append((f"h has shifted by more than {shift:g}", asks, float(ages.mean()), own))
    return found


def quality(found: Evaluation) -> Quality:
    return ndcg(found.ranks), ndcg(found.unseen_ranks)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="experiments.ageing", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--run-dir", type=Path, required=True, help="a run of forward-ofa")
    parser.add_argument("--data", help="where its log is now, if it is no longer where it was")
    parser.add_argument("--walk", type=positive, default=40, help="items before the test item")
    asked = parser.parse_args()
    try:
        run, data = open_run(asked.run_dir, asked.data)
        if not isinstance(run.system, ForwardOFA):
            raise RunError(f"{asked.run_dir} is a run of {run.config.system}: no networks to age")
    except (RunError, DataError, CommandError) as error:
        print(error, file=sys.stderr)
        return 1
    told = rules(run.system, data, asked.walk)
    if run.device_rec is not None:
        dense = quality(evaluate(run.device_rec, data, "test"))
        told.append(("never: DeviceRec", 0.0, float("nan"), dense))
    always = told[0][3]
    rows = []
    for name, asks, age, own in told:
        row = [name, f"{asks:.3f}", "" if np.isnan(age) else f"{age:.1f}"]
        for ours, theirs in zip(own, always, strict=True):
            low, high = paired_interval(ours, theirs)
            row += [f"{ours.mean():.4f}", f"{low:+.4f} to {high:+.4f}"]
        rows.append(row)
    header = ["asks", "requests an item", "mean age", "NDCG@10", "to asking always, 95 %"]
    print("\n".join(table([*header, "NDCG@10, seen removed", header[-1]], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
