"""What became of requests, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Tally:
    """What happened in a window. Seconds."""

    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def summary(self, seconds: float) -> dict[str, Any]:
        """Counts, requests a second, milliseconds."""
        return {
            "ok": len(self.latencies),
            "refused": len(self.refusals),
            "errors": sum(self.errors.values()),
            "error_texts": dict(self.errors.most_common(5)),
            "seconds": round(seconds, 4),
            "rps": round(len(self.latencies) / seconds, 2) if seconds else 0.0,
            "latency_ms": percentiles(self.latencies),
            "refusal_ms": percentiles(self.refusals),
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99, mean and max in milliseconds; empty for nothing."""
    if not seconds:
        return {}
    values = np.asarray(seconds) * 1e3
    shown = {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 95, 99)}
    shown |= {"mean": float(values.mean()), "max": float(values.max())}
    return {name: round(value, 4) for name, value in shown.items()}
