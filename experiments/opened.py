"""A trained run and its log, for experiments that look at one."""

from __future__ import annotations

from pathlib import Path

from forward_ofa.data import SequenceDataset
from forward_ofa.runs import Run, RunError, load_run
from forward_ofa_cli.console import console
from forward_ofa_cli.source import remembered


def open_run(folder: Path, data: str | None) -> tuple[Run, SequenceDataset]:
    """data: where the log is; None: where it was. Raises RunError, DataError or CommandError."""
    run = load_run(folder)
    log = remembered(folder, data).load(console(stderr=True))
    if log.fingerprint() != run.data_card["fingerprint"]:
        raise RunError(
            f"this log is not the one that {folder} was trained on "
            f"({run.data_card['source']}): give it with --data"
        )
    return run, log
