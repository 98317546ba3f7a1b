"""When a service counts as recovered."""

from __future__ import annotations

from typing import Any

from benchmarks.serving.overload import recovery_seconds


def part(ok: int, p50: float, refused: int = 0) -> dict[str, Any]:
    return {"ok": ok, "refused": refused, "errors": 0, "latency_ms": {"p50": p50}}


def result(*after: dict[str, Any]) -> dict[str, Any]:
    slices = {"0.0": part(9, 10.0), "0.5": part(9, 900.0, 50)}
    slices |= {str(1.0 + index / 2): each for index, each in enumerate(after)}
    return {"phases": [{"latency_ms": {"p50": 10.0}}], "slices": slices}


def test_at_once() -> None:
    assert recovery_seconds(result(part(9, 11.0), part(9, 12.0)), 1.0) == 0.0


def test_after_the_last_refusal() -> None:
    after = (part(9, 11.0), part(9, 11.0, 1), part(9, 25.0), part(9, 19.0), part(9, 12.0))
    assert recovery_seconds(result(*after), 1.0) == 1.5


def test_never() -> None:
    assert recovery_seconds(result(part(9, 21.0), part(9, 21.0)), 1.0) is None
