"""`python -m services.trainer up|worker|beat`: the processes of the trainer.

up      everything on this machine: Redis if none is named, gRPC service, beat, worker; options
        that it does not know are those of the service (`forward-ofa serve --help`)
worker  runs jobs; as many of them as there are machines
beat    looks after the queue and the schedules; one is enough
The gRPC service alone: python -m services --target trainer
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from services.registry.location import open_registry, place
from services.registry.settings import CacheSettings
from services.runtime.checks import SettingsError
from services.runtime.files import write_atomically
from services.runtime.http import HttpEndpoint
from services.runtime.logs import configure, log
from services.trainer.settings import BeatSettings, TrainerSettings, WorkerSettings

_LOGGER = logging.getLogger(__name__)
_ORPHAN_SECONDS = 0.5


def make_parser() -> argparse.ArgumentParser:
    """The command line. Defaults are those of the settings classes."""
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|worker|beat")
    shown = argparse.ArgumentDefaultsHelpFormatter
    up = commands.add_parser("up", help="everything on this machine", formatter_class=shown)
    worker = commands.add_parser("worker", help="runs jobs", formatter_class=shown)
    beat = commands.add_parser("beat", help="looks after the queue", formatter_class=shown)
    for each in (up, worker, beat):
        _add_shared(each, broker_required=each is not up)
    for each in (up, worker):
        _add_worker(each)
    for each in (up, beat):
        _add_beat(each)
    up.add_argument("--listen", default="127.0.0.1:50071", help="HOST:PORT of the gRPC service")
    for each, port in ((up, 9471), (worker, 0), (beat, 0)):
        each.add_argument(
            "--metrics", default=f"127.0.0.1:{port}",
            help="HOST:PORT for /metrics, /livez, /readyz"
            + ("; the service's, beat and worker have the next two" if each is up else ""),
        )  # fmt: skip
    return parser


def _add_shared(parser: argparse.ArgumentParser, *, broker_required: bool) -> None:
    add = parser.add_argument
    left_out = "" if broker_required else "; left out: one is started here"
    add(
        "--broker", "--redis", dest="broker", required=broker_required,
        help="Redis of the jobs, redis://HOST:PORT/DB or unix://PATH" + left_out,
    )  # fmt: skip
    add("--home", type=Path, default=TrainerSettings.home, help="run folders")
    add("--registry", type=place, default="registry", help="a folder, or a URL such as s3://...")
    add("--registry-cache", type=Path, default=CacheSettings().folder, help="copies, with a URL")
    add("--cache", type=Path, default=TrainerSettings.cache, help="downloaded logs")
    add("--ready-file", type=Path, help="written as JSON once the process is ready")
    add("--exit-with", type=int, help=argparse.SUPPRESS)
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="least")


def _add_worker(parser: argparse.ArgumentParser) -> None:
    add, known = parser.add_argument, WorkerSettings()
    add("--slots", type=int, default=known.slots, help="jobs at once")
    add("--heartbeat-seconds", type=float, default=known.heartbeat_seconds, help="signs of life")
    add("--stop-seconds", type=float, default=known.stop_seconds, help="to end a step when told to")
    add("--stall-seconds", type=float, default=known.stall_seconds, help="silence that is a hang")
    add("--max-seconds", type=float, default=known.max_seconds, help="of a job")


def _add_beat(parser: argparse.ArgumentParser) -> None:
    add, known = parser.add_argument, BeatSettings()
    add("--lease-seconds", type=float, default=known.lease_seconds, help="silence that is a death")
    add("--tick-seconds", type=float, default=known.tick_seconds, help="between two looks")
    add("--resend-seconds", type=float, default=known.resend_seconds, help="for a lost message")
    add("--schedules", type=Path, help="TOML file, see docs/trainer.md")
    add("--keep-jobs", type=int, default=known.keep_jobs, help="ended jobs that are remembered")


def shared_settings(a: argparse.Namespace, broker: str) -> TrainerSettings:
    """Raises SettingsError."""
    return TrainerSettings(broker, a.home, a.registry, CacheSettings(a.registry_cache), a.cache)


def worker_settings(a: argparse.Namespace) -> WorkerSettings:
    """Raises SettingsError."""
    return WorkerSettings(
        a.slots, a.heartbeat_seconds, a.stop_seconds, a.stall_seconds, a.max_seconds
    )


def beat_settings(a: argparse.Namespace) -> BeatSettings:
    """Raises SettingsError."""
    return BeatSettings(a.lease_seconds, a.tick_seconds, a.resend_seconds, a.schedules, a.keep_jobs)


def run_worker(a: argparse.Namespace) -> int:
    """Until told to stop."""
    from services.trainer.broker import check_redis
    from services.trainer.worker import Worker

    shared, settings = shared_settings(a, a.broker), worker_settings(a)
    check_redis(shared.broker, shared.timeout_seconds)
    worker = Worker(shared, settings)
    endpoint = HttpEndpoint(worker.metrics, a.metrics)
    endpoint.probe(alive=lambda: True, ready=lambda: worker.ready)
    threading.Thread(
        target=_announce, args=(a, endpoint, lambda: worker.ready), daemon=True
    ).start()
    _end_with(a.exit_with)
    return worker.run()


def run_beat(a: argparse.Namespace) -> int:
    """Until told to stop."""
    from services.trainer.assembling import connected
    from services.trainer.beat import Beat, Reaper
    from services.trainer.metrics import TrainerMetrics
    from services.trainer.scheduler import Scheduler

    shared, settings = shared_settings(a, a.broker), beat_settings(a)
    registry = open_registry(shared.registry, shared.registry_cache)
    parts, metrics = connected(shared, registry), TrainerMetrics(worker=False)
    reaper = Reaper(settings, parts.records, parts.announcer, metrics)
    scheduler = None
    if settings.schedules is not None:
        scheduler = Scheduler(settings.schedules, shared, parts.records, parts.trainer, metrics)
    beat = Beat(settings, shared, parts.records, reaper, scheduler, metrics)
    endpoint = HttpEndpoint(metrics, a.metrics)
    patience = max(60.0, 10 * settings.tick_seconds)
    endpoint.probe(
        alive=lambda: time.monotonic() - beat.turned < patience, ready=lambda: beat.reached
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(
        target=_announce, args=(a, endpoint, lambda: beat.reached), daemon=True
    ).start()
    _end_with(a.exit_with)
    beat.run(stop)
    return 0


def _announce(a: argparse.Namespace, endpoint: HttpEndpoint, ready: object) -> None:
    """The ready file, once there is something to say."""
    assert callable(ready)
    while not ready():
        time.sleep(0.05)
    log(_LOGGER, logging.INFO, "ready", role=a.command, metrics=endpoint.address)
    if a.ready_file is not None:
        said = {"pid": os.getpid(), "metrics": endpoint.address}
        write_atomically(a.ready_file, json.dumps(said) + "\n")


def _end_with(parent: int | None) -> None:
    """A killed supervisor leaves nobody behind: ends as if told to, once it has gone."""
    if parent is None:
        return

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 for settings that cannot work."""
    parser = make_parser()
    a, unknown = parser.parse_known_args(arguments)
    a.serve = unknown
    if a.serve and a.command != "up":
        parser.error(f"unknown option: {' '.join(a.serve)}")
    configure(a.log_level, sys.stderr)
    try:
        if a.command == "worker":
            return run_worker(a)
        if a.command == "beat":
            return run_beat(a)
        from services.trainer.up import run_up

        return run_up(a)
    except (SettingsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
