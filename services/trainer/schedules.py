"""Schedules: a TOML file that says which logs to train on again when they have grown.

    [[schedule]]
    name = "shop"
    look_seconds = 600
    min_new_rows = 50000
    [schedule.job]
    data = "/data/shop"
    label = "canary"
    percent = 5
    [schedule.job.settings]
    "device_rec.epochs" = 3

`job` takes the fields of JobParameters.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forward_ofa.data import DATASETS, DataError, user_path
from services.ports import JobParameters
from services.trainer import plan

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


class BadSchedules(ValueError):
    """The file cannot be used. The text says where and what to do."""


@dataclass(frozen=True)
class Schedule:
    """One log that is watched.

    name: of the schedule, small letters, digits and -. job: what is submitted.
    look_seconds: between two looks at the log.
    min_new_rows: so many that came since its last job was submitted; the first job needs so many
        in all. settle_seconds: a log that changed within this time is still being written.
    """

    name: str
    job: JobParameters
    look_seconds: float = 600.0
    min_new_rows: int = 1
    settle_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadSchedules(f"{self.name!r} is no name: use small letters, digits and -")
        for field in ("look_seconds", "settle_seconds"):
            value = getattr(self, field)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise BadSchedules(f"{field} must be a number of seconds, not {value!r}")
        if self.look_seconds == 0:
            raise BadSchedules("look_seconds must be above 0")
        if type(self.min_new_rows) is not int or self.min_new_rows < 1:
            raise BadSchedules(
                f"min_new_rows must be a whole number, at least 1, not {self.min_new_rows!r}"
            )


def read_schedules(path: Path) -> list[Schedule]:
    """Raises BadSchedules. Relative paths of logs count from the file's folder."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadSchedules(f"{path} cannot be read: {error}") from error
    entries = raw.pop("schedule", [])
    if raw or not isinstance(entries, list):
        others = ", ".join(raw) or f"schedule = {entries!r}"
        raise BadSchedules(f"{path} may only have [[schedule]] tables, not {others}")
    found = [_schedule(entry, path) for entry in entries]
    names = [schedule.name for schedule in found]
    if len(set(names)) < len(names):
        raise BadSchedules(f"{path}: two schedules have the same name")
    return found


def _schedule(entry: Any, path: Path) -> Schedule:
    where = f"{path}: {entry.get('name', 'a schedule')}" if isinstance(entry, dict) else str(path)
    try:
        return _checked(entry, path)
    except KeyError as error:
        raise BadSchedules(f"{where} lacks {error}") from error
    except (TypeError, ValueError, AttributeError, DataError) as error:
        raise BadSchedules(f"{where}: {error}") from error


def _checked(entry: Any, path: Path) -> Schedule:
    fields = dict(entry)
    name, job = str(fields.pop("name")), dict(fields.pop("job"))
    _known("the schedule", fields, Schedule)
    _known("its job", job, JobParameters)
    for part in ("settings", "log"):
        given = job.get(part, {})
        if not isinstance(given, dict):
            raise BadSchedules(f"{part} must be a table, not {given!r}")
        job[part] = {key: _text(value) for key, value in given.items()}
    for field in dataclasses.fields(JobParameters):
        kind, given = _KINDS.get(str(field.type)), job.get(field.name)
        if kind is not None and given is not None and type(given) not in kind[0]:
            raise BadSchedules(f"{field.name} must be {kind[1]}, not {given!r}")
    log = (path.parent / user_path(job["data"])).resolve()
    if job["data"] in (*DATASETS, plan.SYNTHETIC) and not log.exists():
        raise BadSchedules(f"{job['data']} is no log that grows: give the path of a file or folder")
    job["data"] = str(log)  # it may not be there yet
    parameters = JobParameters(**job)
    # Without the log: it may not be there yet.
    plan.check(dataclasses.replace(parameters, data=plan.SYNTHETIC), 0, path.parent)
    return Schedule(name, parameters, **fields)


_KINDS = {
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
    "float": ((int, float), "a number"),
}


def _known(what: str, given: dict[str, Any], kind: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in names:
            raise BadSchedules(f"{what} has an unknown key {name!r}: there are {', '.join(names)}")


def _text(value: Any) -> str:
    """TOML's true, 3 and 0.5 as a job spells them."""
    return str(value).lower() if isinstance(value, bool) else str(value)
