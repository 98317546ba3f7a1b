"""Interaction logs: find, read, filter, and cut into sequences.

    log = load("ml-100k", cache_dir)                  # or a path, or None
    dataset = prepare(log, default_filter(log))

Every failure a user can cause is a DataError whose message says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from forward_ofa.data.columns import ColumnNames
from forward_ofa.data.download import DATASETS, DownloadError, Progress, RemoteDataset, fetch
from forward_ofa.data.filtering import PAPER_FILTER, FilterConfig, default_filter
from forward_ofa.data.log import DataError, InteractionLog
from forward_ofa.data.preparation import prepare
from forward_ofa.data.readers import read_log
from forward_ofa.data.sequences import PADDING, SequenceDataset
from forward_ofa.data.sorting import log_from_ids
from forward_ofa.data.splitting import Split, SplitConfig
from forward_ofa.data.synthetic import generate_log

__all__ = [
    "DATASETS",
    "PADDING",
    "PAPER_FILTER",
    "ColumnNames",
    "DataError",
    "DownloadError",
    "FilterConfig",
    "InteractionLog",
    "RemoteDataset",
    "SequenceDataset",
    "Split",
    "SplitConfig",
    "default_filter",
    "fetch",
    "generate_log",
    "load",
    "log_from_ids",
    "prepare",
    "read_log",
]

DEFAULT_DATASET = "ml-100k"


def load(
    spec: str | None,
    cache_dir: Path,
    *,
    columns: ColumnNames | None = None,
    progress: Progress | None = None,
    datasets: Mapping[str, RemoteDataset] = DATASETS,
) -> InteractionLog:
    """The log that a user means by `spec`.

    spec: a path on disk; else the name of a public data set, which is downloaded; None means
    MovieLens-100K or, where its server cannot be reached, a synthetic log whose `source` says so.

    Raises DataError (DownloadError among them). A wrong checksum never falls back to another log.
    """
    if spec is None:
        try:
            folder = fetch(DEFAULT_DATASET, cache_dir, progress=progress, datasets=datasets)
        except DownloadError as error:
            if error.reason not in ("no network", "interrupted", "http status"):
                raise
            return _instead(generate_log(), error)
        return read_log(folder, columns)
    path = Path(spec).expanduser()
    if spec in datasets and not path.exists():
        return read_log(fetch(spec, cache_dir, progress=progress, datasets=datasets), columns)
    if not path.exists():
        raise DataError(
            f"{spec}: neither a file or folder on disk nor a named data set "
            f"({', '.join(datasets)}). Check the path."
        )
    return read_log(path, columns)


def _instead(log: InteractionLog, error: DownloadError) -> InteractionLog:
    why = f"{error.reason}: using {log.source}, because MovieLens-100K could not be downloaded. "
    return replace(log, source=why + str(error))
