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
    min_new_rows: so many more than when its last job was submitted; the first job needs so many
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
        if not 0 < self.look_seconds < math.inf or self.min_new_rows < 1:
            raise BadSchedules(
                f"{self.name}: look_seconds must be above 0 and min_new_rows at least 1"
            )
        if not 0 <= self.settle_seconds < math.inf:
            raise BadSchedules(f"{self.name}: settle_seconds must not be negative")

    def due(self, rows: int, rows_then: int | None) -> bool:
        """Whether the log has grown enough. rows_then: at the last job; None: there was none.
        A log with fewer rows than then was replaced, and counts from nothing."""
        before = rows_then or 0
        return rows - (before if rows >= before else 0) >= self.min_new_rows


def read_schedules(path: Path) -> list[Schedule]:
    """Raises BadSchedules. Relative paths of logs count from the file's folder."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadSchedules(f"{path} cannot be read: {error}") from error
    entries = raw.pop("schedule", [])
    if raw or not isinstance(entries, list):
        raise BadSchedules(f"{path} may only have [[schedule]] tables, not {', '.join(raw)}")
    found = [_schedule(entry, path) for entry in entries]
    names = [schedule.name for schedule in found]
    if len(set(names)) < len(names):
        raise BadSchedules(f"{path}: two schedules have the same name")
    return found


def _schedule(entry: Any, path: Path) -> Schedule:
    try:
        fields = dict(entry)
        name, job = str(fields.pop("name")), dict(fields.pop("job"))
        for part in ("settings", "log"):
            given = job.get(part, {})
            job[part] = {key: _text(value) for key, value in given.items()}
        log = (path.parent / Path(job["data"]).expanduser()).resolve()
        if log.exists() or "/" in job["data"]:
            job["data"] = str(log)
        parameters = JobParameters(**job)
        for field in dataclasses.fields(JobParameters):
            value, default = getattr(parameters, field.name), field.default
            if isinstance(default, (str, bool)) and not isinstance(value, type(default)):
                raise BadSchedules(f"{field.name} must be of the kind of {default!r}")
        # Without the log: it may not be there yet.
        plan.check(dataclasses.replace(parameters, data=plan.SYNTHETIC), 0, path.parent)
        return Schedule(name, parameters, **fields)
    except KeyError as error:
        raise BadSchedules(f"{path}: a schedule lacks {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BadSchedules(f"{path}: {error}") from error


def _text(value: Any) -> str:
    """TOML's true, 3 and 0.5 as a job spells them."""
    return str(value).lower() if isinstance(value, bool) else str(value)
