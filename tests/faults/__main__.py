"""Two replicas of each service, a Redis, a balancer and clients that check every byte; then one
fault after the other, and what the clients noticed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.catalogue import catalogue
from tests.faults.report import HEADING, line, verdict
from tests.faults.rows import Row, make_row
from tests.faults.sandbox import run_inside
from tests.faults.stand import Stand, stand
from tests.support.stalls import Stalls


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--only", default="", help="comma list: faults whose name contains one of these texts"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--missing", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is None:
        return run_inside("tests.faults", sys.argv[1:])
    options.only = [text for text in options.only.split(",") if text]
    rows, broken = _run(options)
    if not rows:
        print(
            f"no fault's name contains any of {options.only}: see docs/faults.md", file=sys.stderr
        )
        return 2
    if options.json:
        report = {"machine": _machine(), "rows": [row.as_json() for row in rows], "logs": broken}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(verdict(rows, broken))
    return 1 if broken or any(row.bad for row in rows) else 0


def _run(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The rows, and what the processes logged that they should not have."""
    rows = []
    with Stalls() as stalls, stand(options.inside, options.missing) as system:
        print(HEADING, flush=True)
        for fault in catalogue(system):
            if not options.only or any(text in fault.name for text in options.only):
                rows.append(make_row(fault, system.load, stalls))
                print(line(rows[-1]), flush=True)
        broken = _tracebacks(system)
    return rows, broken


def _tracebacks(system: Stand) -> list[str]:
    logs = ((member.name, member.log()) for member in system.all_members())
    return [f"{name}\n{log[-4000:]}" for name, log in logs if "Traceback" in log]


def _machine() -> dict[str, Any]:
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
