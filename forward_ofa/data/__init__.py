"""Interaction logs: find, read, filter, and cut into sequences.

    dataset = load_dataset("ml-100k", cache_dir)      # or a path, or None; of any size

    log = load("ml-100k", cache_dir)                  # the same by hand, in memory
    dataset = prepare(log, default_filter(log))

Every failure a user can cause is a DataError whose message says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from forward_ofa.data.cache import open_prepared
from forward_ofa.data.columns import ColumnNames
from forward_ofa.data.download import DownloadError, Progress, fetch
from forward_ofa.data.filtering import PAPER_FILTER, FilterChoice, FilterConfig, default_filter
from forward_ofa.data.folders import is_folder
from forward_ofa.data.log import DataError, InteractionLog
from forward_ofa.data.named import DATASETS, RemoteDataset, suggest
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
    "FilterChoice",
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
    "load_dataset",
    "locate",
    "log_from_ids",
    "prepare",
    "read_log",
    "user_path",
]

DEFAULT_DATASET = "ml-100k"
_UNREACHABLE = ("no network", "interrupted", "http status")


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
            if error.reason not in _UNREACHABLE:
                raise
            return _instead(generate_log(), error)
        return read_log(folder, columns)
    return read_log(locate(spec, cache_dir, progress, datasets), columns)


def load_dataset(
    spec: str | None,
    cache_dir: Path,
    *,
    columns: ColumnNames | None = None,
    choice: FilterChoice | None = None,
    split: SplitConfig | None = None,
    progress: Progress | None = None,
    datasets: Mapping[str, RemoteDataset] = DATASETS,
) -> SequenceDataset:
    """The log that a user means by `spec` (see `load`), filtered and split.

    Of whatever size: what is larger than memory is sorted on disk, and the result is kept in
    `cache_dir` for the next time (see `cache`). Raises DataError.
    """
    choice, split = choice or FilterChoice(), split or SplitConfig()
    try:
        named = DEFAULT_DATASET if spec is None else spec
        path = locate(named, cache_dir, progress, datasets)
    except DownloadError as error:
        if spec is not None or error.reason not in _UNREACHABLE:
            raise
        log = _instead(generate_log(), error)
        return prepare(log, choice.resolve(log), split)
    return open_prepared(path, cache_dir, columns or ColumnNames(), choice, split)


def locate(
    spec: str, cache_dir: Path, progress: Progress | None, datasets: Mapping[str, RemoteDataset]
) -> Path:
    """Where the log is on disk; a named data set is downloaded. Raises DataError."""
    path = user_path(spec)
    if path.exists():
        is_folder(path)  # or a file: at once, and not when it is opened
        return path
    if spec not in datasets:
        raise DataError(
            f"{spec}: neither a file or folder on disk nor a named data set "
            f"({suggest(datasets)}). Check the path."
        )
    return fetch(spec, cache_dir, progress=progress, datasets=datasets)


def user_path(text: str) -> Path:
    """A path as people write it, ~ and ~name for home folders. Raises DataError for an empty one,
    which a variable of a shell that is not set leaves, and for a name that nobody has."""
    if not text:
        raise DataError("the log's path is empty: give a file, a folder or the name of a data set")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{text}: {error} Check the name after ~.") from error


def _instead(log: InteractionLog, error: DownloadError) -> InteractionLog:
    why = f"{error.reason}: using {log.source}, because MovieLens-100K could not be downloaded. "
    return replace(log, source=why + str(error))
