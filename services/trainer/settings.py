"""Settings of the trainer's processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from services.registry.location import local_folder
from services.registry.settings import CacheSettings
from services.runtime.checks import SettingsError
from services.sessions.address import parse_address

FORMS = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH?db=0"


def check_broker(url: str) -> str:
    """The URL as redis-py spells it. Raises SettingsError for what is no single Redis; the URL
    is not shown, since it may hold a password."""
    try:
        address = parse_address(url)
    except ValueError:
        raise SettingsError(f"broker: use {FORMS}") from None
    if address.kind != "single":
        raise SettingsError(f"broker: sentinels and clusters are not supported here, use {FORMS}")
    return address.url


@dataclass(frozen=True)
class TrainerSettings:
    """What all processes of one trainer share. They must see the same `home` and `registry`.

    broker: a Redis of its own, not that of the sessions: that one may forget.
    home: run folders, one a job, and the logs of the training processes.
    registry: where versions are published: a folder, or a URL such as s3://bucket/prefix.
    registry_cache: copies of versions, where the registry is a URL.
    cache: where public data sets are downloaded to.
    timeout_seconds: how long one question to Redis may take.
    max_jobs: that may be queued or running; more are refused.
    check_bytes: a log up to this size is read and filtered before a job is queued; of a larger
        one only that it is there.
    check_seconds: how long a submission may wait for its check and be checked. Less than callers
        wait, who are then told to submit again.
    """

    broker: str
    home: Path = Path("runs/trainer")
    registry: Path | str = Path("registry")
    registry_cache: CacheSettings = field(default_factory=CacheSettings)
    cache: Path = Path(".cache/data")
    timeout_seconds: float = 2.0
    max_jobs: int = 100
    check_bytes: int = 64 * 2**20
    check_seconds: float = 25.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "broker", check_broker(self.broker))
        _positive(self, "timeout_seconds", "check_seconds")
        if self.max_jobs < 1 or self.check_bytes < 0:
            raise SettingsError("max_jobs must be at least 1, check_bytes not negative")
        folder = local_folder(self.registry)
        for path in (self.home, *((folder,) if folder is not None else ())):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(f"{path} cannot be made: {error.strerror}") from error

    def folder(self, job_id: str) -> Path:
        """Of one job."""
        return self.home / "jobs" / job_id


@dataclass(frozen=True)
class WorkerSettings:
    """One worker process.

    slots: jobs at once. heartbeat_seconds: between two signs of life, which also carry the
    progress and fetch the wish to cancel. stop_seconds: what a training process gets to end
    its step before it is killed. stall_seconds: one that says nothing for so long is killed.
    max_seconds: of a job in one attempt. crashes: attempts in a row that may be lost without a
    new epoch before the job is given up.
    """

    slots: int = 1
    heartbeat_seconds: float = 1.0
    stop_seconds: float = 20.0
    stall_seconds: float = 3_600.0
    max_seconds: float = 7 * 24 * 3_600.0
    crashes: int = 3

    def __post_init__(self) -> None:
        if self.slots < 1 or self.crashes < 1:
            raise SettingsError("slots and crashes must be at least 1")
        _positive(self, "heartbeat_seconds", "stop_seconds", "stall_seconds", "max_seconds")


@dataclass(frozen=True)
class BeatSettings:
    """The process that looks after the queue.

    lease_seconds: a running job without a sign of life for so long is queued again; several
        heartbeats of the workers. tick_seconds: between two looks. resend_seconds: a queued job
        whose message is gone is announced again after so long. schedules: TOML file, see
        docs/trainer.md; read again when it changes. keep_jobs: ended jobs that are remembered,
        with their run folders. crashes: as for the workers.
    """

    lease_seconds: float = 15.0
    tick_seconds: float = 1.0
    resend_seconds: float = 5.0
    schedules: Path | None = None
    keep_jobs: int = 200
    crashes: int = 3

    def __post_init__(self) -> None:
        _positive(self, "lease_seconds", "tick_seconds", "resend_seconds")
        if self.lease_seconds < 2 * self.tick_seconds:
            raise SettingsError("lease_seconds must be at least twice tick_seconds")
        if self.keep_jobs < 1 or self.crashes < 1:
            raise SettingsError("keep_jobs and crashes must be at least 1")
        if self.schedules is not None and not self.schedules.is_file():
            raise SettingsError(f"there is no file {self.schedules} with schedules")


def _positive(settings: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise SettingsError(f"{name} must be a number above 0")
