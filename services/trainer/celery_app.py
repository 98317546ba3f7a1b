"""Celery: it brings a job's id to a free worker, nothing else.

A message is acknowledged as soon as a worker starts on it, since a job may run far longer than
Redis keeps an unacknowledged message back (a late one would be handed out again and again).
What happens when the worker then dies is the record's business, not the message's: see
`services.trainer.beat`.
"""

from __future__ import annotations

import json
from typing import Any

import redis
from celery import Celery

from services.ports import Job
from services.trainer.records import RecordsUnavailable

QUEUE = "forward-ofa-jobs"
TASK = "services.trainer.tasks.run_job"


def make_app(broker: str, timeout: float, stop_seconds: float = 20.0) -> Celery:
    """broker: as `settings.check_broker` gives it. Opens nothing."""
    app = Celery("forward-ofa-trainer", broker=_celery_url(broker), set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_publish_retry=False,
        # A job stays in Redis, and in sight, until a worker is free for it.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=stop_seconds,
        worker_enable_soft_shutdown_on_idle=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=timeout,
        broker_transport_options={
            "socket_timeout": max(timeout, 5.0),
            "socket_connect_timeout": timeout,
            "health_check_interval": 10,
        },
    )
    return app


def _celery_url(broker: str) -> str:
    """Celery has its own spelling of a Unix socket."""
    if not broker.startswith("unix://"):
        return broker
    return "redis+socket://" + broker.removeprefix("unix://").replace("db=", "virtual_host=")


class Announcer:
    """Puts the ids of queued jobs where workers find them."""

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        self._app, self._client = app, client

    def announce(self, job: Job) -> None:
        """Raises RecordsUnavailable. The message may be sent twice: one of them takes the job."""
        try:
            self._app.send_task(TASK, args=[job.id], queue=QUEUE, ignore_result=True)
        except Exception as error:
            # Celery passes on whatever kombu and redis-py raise, and wraps some of it.
            raise RecordsUnavailable(str(error)) from error

    def waiting(self) -> set[str]:
        """The ids of the jobs whose message no worker has taken. Raises RecordsUnavailable."""
        try:
            messages: Any = self._client.lrange(QUEUE, 0, -1)
        except (redis.RedisError, OSError) as error:
            raise RecordsUnavailable(str(error)) from error
        return {job_id for message in messages if (job_id := _job_id(message))}

    def oldest(self) -> bytes | None:
        """The message that is taken next, as it is in Redis; None: there is none. Raises
        RecordsUnavailable."""
        try:
            # Celery puts messages in at the left.
            message: Any = self._client.lindex(QUEUE, -1)
        except (redis.RedisError, OSError) as error:
            raise RecordsUnavailable(str(error)) from error
        return None if message is None else bytes(message)


def _job_id(message: bytes) -> str:
    """Out of Celery's header, which shows the arguments as text: "['ID']"."""
    try:
        shown = json.loads(message)["headers"]["argsrepr"]
        return str(shown).strip("[]'\"(), ")
    except (ValueError, KeyError, TypeError):
        return ""
