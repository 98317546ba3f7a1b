"""`make soak`: 80 % of what the service can do, for a long time, with a real Redis: nothing
fails, nothing grows."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.serving import procs
from benchmarks.serving.settings import Settings
from benchmarks.serving.stand import MOST_REFUSED, Check, Say, begin, conclude, standing
from benchmarks.serving.systems import Ask
from tests.support.redis_server import RedisServer

_LOAD = 0.8
_CONNECTIONS = 32
_REQUESTS_A_SESSION = 5
_SAMPLES = 90


@dataclass(frozen=True)
class Sample:
    """What there is at a moment. seconds: since the start."""

    seconds: float
    usage: procs.Usage
    keys: int
    redis_mb: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        here = {"seconds": round(self.seconds, 1), "redis_keys": self.keys}
        return {**here, "redis_mb": round(self.redis_mb, 2), **self.usage.as_dict()}


def sample_while(
    running: Future[Any], pids: tuple[int, ...], client: redis.Redis, every: float, say: Say
) -> list[Sample]:
    """Samples until `running` is done."""
    samples: list[Sample] = []
    started = time.monotonic()
    while not running.done():
        memory: Any = client.info("memory")
        keys: Any = client.dbsize()
        at = time.monotonic() - started
        sample = Sample(at, procs.usage(pids), int(keys), memory["used_memory"] / procs.MEGABYTE)
        samples.append(sample)
        if len(samples) % 6 == 1:
            say(f"{at / 60:5.1f} min: {sample.usage.uss_mb:.0f} MB, {sample.usage.fds} files, "
                f"{sample.usage.threads} threads, {sample.keys} keys")  # fmt: skip
        deadline = time.monotonic() + every
        while time.monotonic() < deadline and not running.done():
            time.sleep(0.1)
    return samples


def early_and_late(samples: list[Sample], name: str) -> tuple[float, float]:
    """Medians of the second sixth (caches are warm) and of the last sixth."""
    values = [float(each.as_dict()[name]) for each in samples]
    sixth = max(1, len(values) // 6)
    return statistics.median(values[sixth : 2 * sixth] or values), statistics.median(
        values[-sixth:]
    )


def checks(samples: list[Sample], result: dict[str, Any], rate: float, ttl: float) -> list[Check]:
    """What a soak must show."""
    found = [Check("errors", str(result["errors"]), "0", not result["errors"])]
    sent = result["ok"] + result["refused"] + result["errors"]
    missed = result["not_sent"] / max(1, sent + result["not_sent"])
    found.append(Check("not sent: no time", f"{missed:.2%}", "<= 5%", missed <= 0.05))
    share = result["refused"] / max(1, result["ok"] + result["refused"])
    found.append(Check("refused", f"{share:.3%}", f"<= {MOST_REFUSED:.1%}", share <= MOST_REFUSED))
    for name, room, unit in (("uss_mb", 15.0, "MB"), ("fds", 8, ""), ("threads", 4, "")):
        early, late = early_and_late(samples, name)
        most = max(room, 0.05 * early) if unit else room
        found.append(
            Check(
                f"growth of {name}",
                f"{early:.0f} -> {late:.0f} {unit}",
                f"<= {most:.0f} {unit}",
                late - early <= most,
            )
        )
    # Every new session is one key for its time to live; some slack for what expires lazily.
    bound = 1.3 * rate / _REQUESTS_A_SESSION * ttl + 100
    most_keys = max(each.keys for each in samples)
    found.append(Check("most Redis keys", str(most_keys), f"<= {bound:.0f}", most_keys <= bound))
    found.append(Check("Redis is used", str(most_keys), ">= 1", most_keys >= 1))
    return found


def growth_table(samples: list[Sample]) -> Table:
    """Early against late."""
    table = Table(title="Medians of the second and the last sixth of the time")
    for name in ("", "early", "late", "an hour"):
        table.add_column(name, justify="right")
    hours = (samples[-1].seconds - samples[0].seconds) / 3600 * 5 / 6 or 1.0
    for name in ("rss_mb", "pss_mb", "uss_mb", "fds", "threads", "redis_keys", "redis_mb"):
        early, late = early_and_late(samples, name)
        table.add_row(name, f"{early:.1f}", f"{late:.1f}", f"{(late - early) / hours:+.1f}")
    return table


def main() -> int:
    """0 if all checks hold."""
    parser = argparse.ArgumentParser(
        prog="make soak ARGS=...",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=15.0, help="how long")
    add("--session-ttl", type=float, default=60.0, help="seconds that Redis keeps a session")
    a, console, settings = begin(parser)
    with tempfile.TemporaryDirectory(prefix="forward-ofa-soak-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            return _soak(a, settings, server, console)
        finally:
            server.kill()


def _soak(a: argparse.Namespace, settings: Settings, server: RedisServer, console: Console) -> int:
    options = ("--sessions", server.url, "--session-ttl", str(a.session_ttl))
    seconds = a.minutes * 60
    with standing(settings, Ask("float16"), options=options) as stand:
        capacity = stand.capacity(_CONNECTIONS, min(2.0, seconds))
        rate = _LOAD * capacity
        console.print(f"capacity {capacity:.0f} requests/s; {a.minutes:g} minutes at {rate:.0f}")
        job = replace(
            stand.job,
            op="open",
            clients=_CONNECTIONS,
            phases=[(seconds, rate)],
            sessions=_REQUESTS_A_SESSION,
        )
        with ThreadPoolExecutor(1) as pool, redis.Redis.from_url(server.url) as client:
            running = pool.submit(stand.loader.run, job)
            every = max(0.5, seconds / _SAMPLES)
            samples = sample_while(running, stand.system.pids, client, every, console.print)
            result = running.result()
    console.print(growth_table(samples))
    latency = result["latency_ms"]
    console.print(
        f"{result['ok']} answers, {result['rps']:.0f}/s, p50 {latency['p50']:.1f} ms, "
        f"p99 {latency['p99']:.1f} ms; requests left up to {result['lag_ms']['p99']:.1f} ms late "
        f"(p99), {result['not_sent']} were not sent; {result['error_texts']}"
    )
    found = checks(samples, result, rate, a.session_ttl)
    raw = {"capacity": capacity, "samples": [each.as_dict() for each in samples], **result}
    return conclude(console, "soak", found, raw, a.out)


if __name__ == "__main__":
    sys.exit(main())
