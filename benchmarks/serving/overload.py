"""`make overload`: five times what the service can do. Who is accepted keeps a short wait, the
rest is refused at once, and all is well again within seconds."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from rich.table import Table

from benchmarks.serving.load import SLICE_SECONDS
from benchmarks.serving.stand import MOST_REFUSED, Check, begin, conclude, standing
from benchmarks.serving.systems import Ask

_CONNECTIONS = 64
_LOAD = 0.8


def recovery_seconds(result: dict[str, Any], burst_end: float) -> float | None:
    """Seconds from the burst's end until two slices in a row have no refusal, no error and a
    p50 of at most twice the one before the burst; None if that never comes."""
    usual = 2 * result["phases"][0]["latency_ms"]["p50"]
    good = 0
    for start, each in sorted((float(at), part) for at, part in result["slices"].items()):
        if start < burst_end:
            continue
        calm = each["ok"] and not each["refused"] and not each["errors"]
        good = good + 1 if calm and each["latency_ms"]["p50"] <= usual else 0
        if good == 2:
            return max(0.0, start - SLICE_SECONDS - burst_end)
    return None


def checks(result: dict[str, Any], capacity: float, burst_end: float, a: Any) -> list[Check]:
    """What overload must show."""
    before, burst, _ = result["phases"]
    sent = (burst["ok"] + burst["refused"] + burst["errors"]) / burst["seconds"]
    answered = burst["answered_meanwhile_rps"]
    calm, hot = before["latency_ms"], burst["latency_ms"]
    refusal = burst["refusal_ms"].get("p95")
    early = before["refused"] / max(1, before["ok"] + before["refused"])
    back = recovery_seconds(result, burst_end)
    bound = a.accepted_factor * calm["p99"]
    return [
        Check("load that was really offered", f"{sent / capacity:.1f} x capacity",
              f">= {0.9 * a.factor:.1f} x", sent >= 0.9 * a.factor * capacity),
        Check("answered during the burst", f"{answered:.0f}/s = {answered / capacity:.0%}",
              "70 % to 150 % of capacity", 0.7 <= answered / capacity <= 1.5),
        Check("accepted: p99 in the burst", f"{hot.get('p99', 0):.1f} ms",
              f"<= {a.accepted_factor:g} x {calm['p99']:.1f} ms (p99 before)",
              bool(hot) and hot["p99"] <= bound),
        Check("refused: p95 until told", "none" if refusal is None else f"{refusal:.1f} ms",
              f"<= {a.refusal_ms:g} ms", refusal is not None and refusal <= a.refusal_ms),
        Check("recovery", "never" if back is None else f"{back:.1f} s", f"<= {a.recovery_s:g} s",
              back is not None and back <= a.recovery_s),
        Check("errors other than refusals", str(result["errors"]), "0", not result["errors"]),
        Check("refused before the burst", f"{early:.2%}", f"<= {MOST_REFUSED:.1%}",
              early <= MOST_REFUSED),
    ]  # fmt: skip


def phase_table(result: dict[str, Any]) -> Table:
    """A line a phase."""
    table = Table(title="Before, during and after the burst")
    names = (
        "wanted/s",
        "answered/s",
        "refused/s",
        "not sent",
        "p50 ms",
        "p99 ms",
        "refusal p95",
        "p99",
    )
    for name in ("phase", *names):
        table.add_column(name, justify="right")
    for name, each in zip(("before", "burst", "after"), result["phases"], strict=True):
        latency, refusal = each["latency_ms"], each["refusal_ms"]
        table.add_row(
            name,
            f"{each['wanted_rps']:.0f}",
            f"{each['answered_meanwhile_rps']:.0f}",
            f"{each['refused'] / each['seconds']:.0f}",
            str(each["not_sent"]),
            *(f"{latency[key]:.1f}" if latency else "" for key in ("p50", "p99")),
            *(f"{refusal[key]:.1f}" if refusal else "" for key in ("p95", "p99")),
        )
    return table


def main() -> int:
    """0 if all checks hold."""
    parser = argparse.ArgumentParser(
        prog="make overload ARGS=...",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--factor", type=float, default=5.0, help="times the capacity")
    add("--before", type=float, default=10.0, help="seconds at 80 %% before the burst")
    add("--burst", type=float, default=15.0, help="seconds of the burst")
    add("--after", type=float, default=20.0, help="seconds at 80 %% after it")
    add("--encoding", default="float32", choices=("float32", "float16", "int8"),
        help="of the networks; float32 leaves the load generator most room")  # fmt: skip
    add("--accepted-factor", type=float, default=5.0, help="p99 in the burst / p99 before")
    add("--refusal-ms", type=float, default=150.0, help="p95 of a refusal")
    add("--recovery-s", type=float, default=5.0, help="seconds until all is as before")
    a, console, settings = begin(parser)
    with standing(settings, Ask(a.encoding, held=True)) as stand:
        capacity = stand.capacity(32, min(2.0, a.before))
        console.print(f"capacity: {capacity:.0f} requests/s with 32 clients, {a.encoding}")
        easy = _LOAD * capacity
        phases = [(a.before, easy), (a.burst, a.factor * capacity), (a.after, easy)]
        job = replace(stand.job, op="open", clients=_CONNECTIONS, phases=phases)
        result = stand.loader.run(job)
    console.print(phase_table(result))
    console.print(f"requests left up to {result['lag_ms']['p99']:.1f} ms late (p99)")
    found = checks(result, capacity, a.before + a.burst, a)
    return conclude(console, "overload", found, {"capacity": capacity, **result}, a.out)


if __name__ == "__main__":
    sys.exit(main())
