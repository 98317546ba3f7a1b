"""A log that is larger than what is held at once: memory does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data import write_log

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from forward_ofa.batches import batches, training_sessions
from forward_ofa.data import default_filter, load, load_dataset, prepare

log, cache, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if how == "streamed":
    data = load_dataset(str(log), cache)
else:
    raw = load(str(log), cache)
    data = prepare(raw, default_filter(raw))
rng = np.random.default_rng(0)
stream = batches(data, training_sessions(data, 1, rng), 256, 50, 5, rng)
for _ in range(20):
    next(stream)
status = Path("/proc/self/status").read_text().splitlines()
peak = next(line for line in status if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1000, data.fingerprint())
"""


def run(log: Path, cache: Path, how: str) -> tuple[int, str]:
    """(peak memory in MB, fingerprint) of a process of its own."""
    command = [sys.executable, "-c", SCRIPT, str(log), str(cache), how]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak, fingerprint = done.stdout.split()
    return int(peak), fingerprint


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    # Both are several times what is sorted at once: a smaller log does not fill the buffers.
    write_log(tmp_path / "small", 5_000_000)
    write_log(tmp_path / "large", 11_000_000)
    small, _ = run(tmp_path / "small", tmp_path / "c", "streamed")
    large, streamed = run(tmp_path / "large", tmp_path / "c", "streamed")
    _, held = run(tmp_path / "large", tmp_path / "c", "held")
    assert streamed == held
    # 6 million rows more are 170 MB of text, and 380 MB as columns of text; grows by 20 to 50.
    assert large < small + 150, f"{small} MB for 5 million rows, {large} MB for 11 million"


def test_a_generated_log_has_what_is_asked_for(tmp_path: Path) -> None:
    rows = 400_000  # enough for the filter, with as many items as there are
    assert write_log(tmp_path / "csv", rows) > 20 * rows
    write_log(tmp_path / "parquet", rows, "parquet")
    both = [run(tmp_path / form, tmp_path / "c", "streamed")[1] for form in ("csv", "parquet")]
    assert both[0] == both[1]
