"""How much memory, time and disk it takes to train on a log that is larger than memory.

    python -m benchmarks.data                      # 5, 10, 25 and 50 million interactions
    python -m benchmarks.data --rows 5 --format parquet --folder /tmp/logs

For each size a log is generated on disk, in parts, in the order of time, so that every user is
scattered over all of it: the hardest case for sorting. A process of its own then does what
`forward-ofa train` does: read, filter, split, prepare; open it again as a second run would; draw an
epoch's batches; make the first optimiser steps of the paper's recipe. Its peak memory is the
kernel's own figure (VmHWM: all pages resident, memory-mapped files included; it starts no child).
Processor time stands beside elapsed time: it says the same on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.arguments import above_zero

ITEMS = 50_000
ROWS_A_USER = 50
ROWS_A_PART = 2_000_000
BATCHES = 200
HEADER = """\
| million rows | log MB | users | prepare s (CPU) | CPU us a row | peak MB | disk MB: peak / kept |\
 open again s (CPU) | CPU ms a batch | peak MB in training steps |
|---|---|---|---|---|---|---|---|---|---|"""
BACKBONE = "sasrec"


def write_log(folder: Path, rows: int, form: str = "csv", seed: int = 0) -> int:
    """A log of `rows` interactions in parts; returns the bytes written.

    User ids are text, item ids numbers; both are drawn with a few very active or popular ones.
    """
    rng = np.random.default_rng(seed)
    users = max(rows // ROWS_A_USER, 2)
    folder.mkdir(parents=True)
    for part, start in enumerate(range(0, rows, ROWS_A_PART)):
        count = min(ROWS_A_PART, rows - start)
        # Half of all users' rows are spread evenly, the other half fall to the first users mostly.
        draw = rng.random(count) ** np.where(rng.random(count) < 0.5, 1.0, 3.0)
        frame = pl.DataFrame(
            {
                "user_id": "user-" + pl.Series((draw * users).astype(np.int64)).cast(pl.String),
                "item_id": (rng.random(count) ** 2 * ITEMS).astype(np.int64),
                "rating": rng.integers(1, 6, count),
                "timestamp": 1_500_000_000 + start + np.sort(rng.integers(0, count, count)),
            }
        )
        path = folder / f"part-{part}.{form}"
        if form == "csv":
            frame.write_csv(path)
        else:
            frame.write_parquet(path)
    return _bytes(folder)


def measure(log: Path, cache: Path) -> dict[str, Any]:
    """What the steps take in this process, which should do nothing else."""
    from forward_ofa.batches import batches, training_sessions
    from forward_ofa.data import load_dataset
    from forward_ofa.recipes import recipe
    from forward_ofa.tasks import ForwardOFATask
    from forward_ofa.training import fit_seconds

    told: dict[str, Any] = {"start": {"peak_mb": _peak_mb()}}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        _reset_peak()
        started, worked = time.monotonic(), time.process_time()
        yield
        told[name] = {
            "seconds": round(time.monotonic() - started, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
            "peak_mb": _peak_mb(),
        }

    with _watched(cache) as disk, phase("prepare"):
        data = load_dataset(str(log), cache)
    with phase("open again"):
        data = load_dataset(str(log), cache)
    with phase("batches"):
        rng = np.random.default_rng(0)
        sessions = training_sessions(data, 1, rng)
        stream = batches(data, sessions, 256, 50, 5, rng)
        for _ in range(BATCHES):
            next(stream)
    with phase("steps"):
        config = recipe("paper", BACKBONE, data.num_interactions)
        fit_seconds(ForwardOFATask(data, config.method, config.training))
    return {
        "phases": told,
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "sessions": len(sessions),
        "disk_peak_mb": round(max(disk) / 1e6),
        "disk_kept_mb": round(_bytes(cache) / 1e6),
        "peak_mb": max(entry["peak_mb"] for entry in told.values()),
    }


def _peak_mb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1000


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def _watched(folder: Path) -> Iterator[list[int]]:
    """Bytes in a folder, looked at five times a second."""
    sizes, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            sizes.append(_bytes(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # removed just now
            continue
    return total


def in_process(log: Path, cache: Path) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.data", "--measure", str(log), str(cache)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument(
        "--rows", type=above_zero, nargs="+", default=[5, 10, 25, 50], help="millions"
    )
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--folder", type=Path, help="where logs are generated; left out: temporary")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    print(HEADER)
    for millions in given.rows:
        place = Path(tempfile.mkdtemp(prefix="forward-ofa-log-", dir=given.folder))
        try:
            size = write_log(place / "log", int(millions * 1e6), given.format)
            found = in_process(place / "log", place / "cache")
        finally:
            shutil.rmtree(place, ignore_errors=True)
        print(_row(millions, size, found), flush=True)


def _row(millions: float, size: int, found: dict[str, Any]) -> str:
    phases = found["phases"]
    prepare, again = phases["prepare"], phases["open again"]
    cells = (
        f"{millions:g}",
        f"{size / 1e6:.0f}",
        f"{found['users']:,}",
        f"{prepare['seconds']:.0f} ({prepare['cpu_seconds']:.0f})",
        f"{prepare['cpu_seconds'] / millions:.2f}",
        f"{prepare['peak_mb']:,}",
        f"{found['disk_peak_mb']:,} / {found['disk_kept_mb']:,}",
        f"{again['seconds']:.2f} ({again['cpu_seconds']:.2f})",
        f"{phases['batches']['cpu_seconds'] / BATCHES * 1e3:.2f}",
        f"{phases['steps']['peak_mb']:,}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
