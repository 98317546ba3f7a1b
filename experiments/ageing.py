"""How often must a device ask? Quality against requests, for rules of asking.

    python -m experiments.ageing --run-dir runs/ml-1m

A network is made from what a device had met when it asked, and runs on the items of now. Each user
walks through the items before the test item; at each, the device asks if the cosine distance of its
h from that of its last request is above a threshold (what `RefreshPolicy` does), after a number of
items, or both. The test item is ranked with the network that the device has by then.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import positive
from experiments.kdd25.markdown import table
from forward_ofa.data import DataError, SequenceDataset
from forward_ofa.evaluation import evaluate, ndcg, paired_interval, user_batches
from forward_ofa.model import ForwardOFA
from forward_ofa.runs import RunError, load_run
from forward_ofa_cli.console import console
from forward_ofa_cli.source import remembered


@dataclass(frozen=True)
class Rule:
    """When a device asks: above a cosine distance of h (2: never), or after so many items."""

    shift: float
    items: int

    @property
    def name(self) -> str:
        parts = [f"h has shifted by more than {self.shift:g}"] if self.shift < 2 else []
        parts += [f"after {self.items} items"] if self.items < MOST else []
        return " or ".join(parts)


MOST = 10_000
RULES = (
    *(Rule(2, items) for items in (1, 2, 4, 8, 16, 32)),
    *(Rule(shift, MOST) for shift in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)),
    *(Rule(0.15, items) for items in (4, 8, 16)),
)


@torch.no_grad()
def walk(
    system: ForwardOFA, data: SequenceDataset, rules: tuple[Rule, ...], length: int
) -> list[tuple[np.ndarray, float]]:
    """For each rule, the networks' ages int64 [U] at the test item, and requests an item.

    All have just asked `length` items before. With a rule of numbers alone they would ask at the
    same items from then on, so there each has asked a drawn number of items earlier.
    """
    rng = np.random.default_rng(0)
    users = len(data.held_out("test")[0])
    ages = [np.full(users, -1) for _ in rules]
    asked = [0] * len(rules)
    last: list[Tensor] = []
    for age in range(length, -1, -1):
        now = interests(system, data, age)
        if not last:
            last = [now.clone() for _ in rules]
            ages = [
                rng.integers(0, rule.items if rule.shift >= 2 and rule.items < MOST else 1, users)
                for rule in rules
            ]
            continue
        for n, rule in enumerate(rules):
            distance = 1 - F.cosine_similarity(now, last[n])
            ages[n] += 1
            asks = (distance.numpy() > rule.shift) | (ages[n] >= rule.items)
            last[n][torch.from_numpy(asks)] = now[torch.from_numpy(asks)]
            ages[n][asks] = 0
            asked[n] += int(asks.sum())
    return [(a, count / length / users) for a, count in zip(ages, asked, strict=True)]


def interests(system: ForwardOFA, data: SequenceDataset, age: int) -> Tensor:
    """h [U, D] of all users so many items before the test item."""
    stream = user_batches(data, "test", system.extractor_history, 1, age)
    return torch.cat([system.adapt(batch).interest for batch in stream])


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
        run = load_run(asked.run_dir)
        system = run.forward_ofa
        data = remembered(asked.run_dir, asked.data).load(console(stderr=True))
    except (RunError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    system.eval()
    fresh = ndcg(evaluate(system, data, "test").ranks)
    rows = []
    for rule, (ages, requests) in zip(RULES, walk(system, data, RULES, asked.walk), strict=True):
        found = evaluate(system, data, "test", age=ages)
        quality = ndcg(found.ranks)
        low, high = paired_interval(quality, fresh)
        rows.append([
            rule.name, f"{requests:.3f}", f"{ages.mean():.1f}", f"{quality.mean():.4f}",
            f"{low:+.4f} to {high:+.4f}", f"{ndcg(found.unseen_ranks).mean():.4f}",
        ])  # fmt: skip
    if run.device_rec is not None:
        found = evaluate(run.device_rec, data, "test")
        quality = ndcg(found.ranks)
        low, high = paired_interval(quality, fresh)
        rows.append([
            "never: DeviceRec", "0.000", "", f"{quality.mean():.4f}",
            f"{low:+.4f} to {high:+.4f}", f"{ndcg(found.unseen_ranks).mean():.4f}",
        ])  # fmt: skip
    header = ["asks when", "requests an item", "mean age", "NDCG@10", "to asking always, 95 %"]
    print("\n".join(table([*header, "NDCG@10, seen removed"], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
