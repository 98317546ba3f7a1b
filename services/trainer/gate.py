"""The gate between a trained run and the registry.

Both networks, the new one and that of the version labelled `stable`, rank the validation targets
of the job's own log: same users, same split, full ranking. The figures in the stable version's
report are not used, for they are of the log as it was then.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.ports import Verdict
from services.registry.contract import STABLE, Registry

if TYPE_CHECKING:
    import numpy as np

    from forward_ofa.data import SequenceDataset
    from forward_ofa.model import ForwardOFA

METRICS = ("ndcg@10", "hit@10")
_LONGEST = 64
_RULE = re.compile(
    r"(?:(?P<metric>[a-z]+@10)\s*)?(?P<number>[+-]?\d+(?:\.\d+)?)(?P<percent>%?)", re.ASCII
)


@dataclass(frozen=True)
class Gate:
    """metric: on the validation split. gain: what it must be above that of `stable`, below if
    negative; relative: as a share of it. Without a stable version the metric must only be above
    0. None of it counts if not `closed`: everything passes.
    """

    metric: str = "ndcg@10"
    gain: float = 0.0
    relative: bool = True
    closed: bool = True

    def required(self, stable: float) -> float:
        """The least value that passes."""
        return stable * (1 + self.gain) if self.relative else stable + self.gain


def parse_gate(text: str) -> Gate:
    """ "off"; "+2%", "-1%": against stable's value; "+0.002": more; "hit@10 -1%": of another
    metric than ndcg@10. Raises ValueError."""
    if text.strip() == "off":
        return Gate(closed=False)
    found = _RULE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    metric = found and (found["metric"] or METRICS[0])
    if not found or metric not in METRICS:
        raise ValueError(
            f"gate {text[:_LONGEST]!r}: use off, a share such as -1% or +2%, or a difference such "
            f"as +0.002, with one of {', '.join(METRICS)} in front if it is not the first"
        )
    number = float(found["number"])
    relative = bool(found["percent"])
    gain = number / 100 if relative else number
    if abs(gain) > 1:
        raise ValueError(f"gate {text.strip()}: more than the whole metric")
    return Gate(metric, gain, relative)


def judge(gate: Gate, system: ForwardOFA, data: SequenceDataset, registry: Registry) -> Verdict:
    """Evaluates both. Raises what `registry.open` and its files raise."""
    from forward_ofa.evaluation import paired_interval
    from forward_ofa.restore import restore_system, validation_ranks

    ours = _values(gate.metric, validation_ranks(system, data.item_ids, data))
    candidate = float(ours.mean())
    stable = registry.current(STABLE)
    if stable is None:
        return _first(gate, candidate)
    published = registry.open(stable)
    published.verify()
    old, item_ids = restore_system(published.root)
    theirs = _values(gate.metric, validation_ranks(old, item_ids, data))
    value = float(theirs.mean())
    low, high = paired_interval(ours, theirs)
    required = gate.required(value) if gate.closed else 0.0
    # A network that knows nothing passes no gate, whatever may be lost.
    passed = not gate.closed or (candidate >= required and candidate > 0)
    said = "passed" if passed else "refused"
    reason = (
        f"{said}: {gate.metric} {candidate:.4f} on validation, stable {stable} has {value:.4f} "
        f"(difference {candidate - value:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}), "
        + (f"{required:.4f} required" if gate.closed else "the gate is off")
    )
    return Verdict(
        passed, gate.metric, candidate, required, value, stable, low, high, reason
    )  # fmt: skip


def _first(gate: Gate, candidate: float) -> Verdict:
    passed = not gate.closed or (math.isfinite(candidate) and candidate > 0)
    said = "passed" if passed else "refused"
    text = f"{said}: {gate.metric} {candidate:.4f} on validation; no version is labelled {STABLE}"
    return Verdict(passed, gate.metric, candidate, 0.0, reason=text)


def _values(metric: str, ranks: np.ndarray) -> np.ndarray:
    from forward_ofa.evaluation import hit, ndcg

    return ndcg(ranks) if metric == METRICS[0] else hit(ranks)
