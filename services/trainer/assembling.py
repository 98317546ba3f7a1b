"""The parts of the trainer that its gRPC service and its beat share, put together."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from services.registry.contract import Registry
from services.trainer.broker import check_redis
from services.trainer.celery_app import Announcer, make_app
from services.trainer.domain import LocalTrainer
from services.trainer.pulse import Pulse
from services.trainer.records import RedisRecords, connect
from services.trainer.settings import TrainerSettings


@dataclass(frozen=True)
class Parts:
    """All on one connection pool."""

    records: RedisRecords
    announcer: Announcer
    trainer: LocalTrainer
    pulse: Pulse


def connected(settings: TrainerSettings, registry: Registry) -> Parts:
    """Redis may be away; a wrong one is refused. Raises SettingsError."""
    check_redis(settings.broker, settings.timeout_seconds)
    client = connect(settings.broker, settings.timeout_seconds)
    announcer = Announcer(make_app(settings.broker, settings.timeout_seconds), client)
    records = RedisRecords(client)

    def ask() -> bool:
        try:
            return bool(client.ping())
        except (redis.RedisError, OSError):
            return False

    trainer = LocalTrainer(settings, records, announcer, registry)
    return Parts(records, announcer, trainer, Pulse(ask))
