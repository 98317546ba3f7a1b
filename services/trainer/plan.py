"""From a job's parameters to a data set and a configuration: the one place that reads them.

The service checks with it before a job is queued, and the training process builds with it, so
that both mean the same. The table of systems loads torch: with the
first job, not with this module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from forward_ofa.config import RunConfig
from forward_ofa.data import (
    DATASETS,
    ColumnNames,
    DataError,
    FilterChoice,
    SequenceDataset,
    SplitConfig,
    generate_log,
    load_dataset,
    locate,
    prepare,
    user_path,
)
from forward_ofa.values import typed
from forward_ofa_device.backbones import build
from services.errors import clipped
from services.ports import JobParameters
from services.registry.contract import STABLE, is_label
from services.trainer.gate import parse_gate

SYNTHETIC = "synthetic"
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_SERVED = "forward-ofa"
_COLUMNS = ("user_column", "item_column", "time_column")
_FILTER = tuple(field.name for field in dataclasses.fields(FilterChoice))
_SPLIT = tuple(field.name for field in dataclasses.fields(SplitConfig) if field.name != "by")
T = TypeVar("T")
_LONGEST = 4096
_MOST_NAMED = 400
_MOST_ENTRIES = 10_000


class BadParameters(ValueError):
    """A job that makes no sense. The text is for its user, and says what to do."""


class NoDevice(Exception):
    """The job asks for a GPU, and there is none."""


def check(parameters: JobParameters, check_bytes: int, cache: Path) -> None:
    """All that can be known before a job runs. Raises BadParameters.

    check_bytes: logs on disk up to this size are read and filtered, unless they are of very many
    files. cache: as for `read`.
    """
    if not parameters.data:
        raise BadParameters(
            "data is missing: give the absolute path of a file or folder, the name of a public "
            f"data set (`forward-ofa data` lists them), or {SYNTHETIC}"
        )
    configure(parameters, 0)
    _check_rest(parameters)
    _rules(parameters.log)
    named = clipped(parameters.data, _MOST_NAMED)
    try:
        path = user_path(parameters.data)
        if parameters.data == SYNTHETIC or (parameters.data in DATASETS and not path.exists()):
            return
        if not path.exists():
            raise DataError(
                f"{named}: neither a file or folder that this service sees nor a named data set "
                "(`forward-ofa data` lists them). Check the path; it must be absolute."
            )
        if not path.is_absolute():
            raise DataError(f"{named}: give an absolute path, workers start elsewhere.")
        locate(parameters.data, cache, None, DATASETS)  # refuses pipes and devices
        if not is_larger(path, check_bytes):
            read(parameters, cache)
    except DataError as error:
        raise BadParameters(str(error)) from error
    except OSError as error:
        raise BadParameters(f"{named} cannot be read: {error.strerror}") from error


def is_larger(path: Path, most: int) -> bool:
    """Whether a file, or all files of a folder, have more than `most` bytes; also if the folder
    has too many entries to tell soon."""
    if path.is_file():
        return path.stat().st_size > most
    left, folders, size = _MOST_ENTRIES, [str(path)], 0
    while folders:
        with contextlib.suppress(PermissionError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                left -= 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file():
                    size += entry.stat().st_size
                if size > most or left < 0:
                    return True
    return False


def read(parameters: JobParameters, cache: Path) -> SequenceDataset:
    """The data set. cache: for downloads and prepared logs. Raises DataError or BadParameters."""
    columns, choice, split = _rules(parameters.log)
    if parameters.data == SYNTHETIC and not Path(SYNTHETIC).exists():
        log = generate_log()
        return prepare(log, choice.resolve(log), split)
    return load_dataset(parameters.data, cache, columns=columns, choice=choice, split=split)


def configure(parameters: JobParameters, interactions: int, users: int = 0) -> RunConfig:
    """The recipe, with single values replaced. Raises BadParameters."""
    from forward_ofa.recipes import recipe
    from forward_ofa.settings import require_used, with_settings

    if "compare" in parameters.settings:
        raise BadParameters(
            "'compare' is no setting of a job: it always trains DeviceRec to compare with, "
            "`forward-ofa train --no-compare` does without"
        )
    try:
        config = recipe(
            parameters.recipe, parameters.backbone, interactions, parameters.system, users
        )
        config = with_settings(config, parameters.settings)
        require_used(config, parameters.settings)
        build(config.method.backbone)
    except ValueError as error:
        raise BadParameters(str(error)) from error
    return config


def _check_rest(parameters: JobParameters) -> None:
    try:
        parse_gate(parameters.gate)
    except ValueError as error:
        raise BadParameters(str(error)) from error
    if parameters.publish and parameters.system != _SERVED:
        raise BadParameters(
            f"system {parameters.system} is there to be compared with, only {_SERVED} can be "
            "published: submit it with --no-publish"
        )
    if not _DEVICE.fullmatch(parameters.device):
        raise BadParameters(
            f"unknown device {parameters.device[:64]!r}: use auto, cpu, cuda or cuda:N"
        )
    if not parameters.label:
        if parameters.percent:
            raise BadParameters("percent needs a label: name one, for example canary")
        return
    if not is_label(parameters.label):
        raise BadParameters(
            f"{parameters.label[:64]!r} is no label: use lower-case letters, digits and -"
        )
    if not parameters.publish:
        raise BadParameters(f"label {parameters.label} needs a version: publish it, or no label")
    if not 0 <= parameters.percent <= 100 or (parameters.percent and parameters.label == STABLE):
        raise BadParameters(
            "percent is a canary's share of the sessions, 0 to 100; stable gets the rest"
        )


def _rules(log: Mapping[str, str]) -> tuple[ColumnNames, FilterChoice, SplitConfig]:
    """What the options of `forward-ofa train` say, here as texts. Raises BadParameters."""
    for name, text in log.items():
        _one_of("option of the log", name, (*_COLUMNS, "header", "split", *_FILTER, *_SPLIT))
        if len(text) > _LONGEST:
            raise BadParameters(f"{name} is longer than {_LONGEST} characters")
    given = dict(log)
    if "split" in given:
        given["by"] = given.pop("split")
    header = tuple(given["header"].split(",")) if "header" in given else None
    try:
        user, item, moment = (given.get(name) for name in _COLUMNS)
        columns = ColumnNames(user, item, moment, header)
        return columns, _built(FilterChoice, given), _built(SplitConfig, given)
    except ValueError as error:
        raise BadParameters(f"the log's options: {error}") from error


def _built(kind: type[T], texts: Mapping[str, str]) -> T:
    hints = typing.get_type_hints(kind)
    given = {name: typed(name, text, hints[name]) for name, text in texts.items() if name in hints}
    return kind(**given)


def _one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise BadParameters(f"unknown {what} {given[:64]!r}: there are {', '.join(known)}")
