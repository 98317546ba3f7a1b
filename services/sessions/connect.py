"""An address as a redis-py client. Opens nothing."""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from services.sessions.address import RedisAddress

_CONNECTIONS = 4
"""One for the round trips, one for the probe; those of a Redis that is slow to let go."""

Client = Redis | RedisCluster


def connect(address: RedisAddress, seconds: float) -> Client:
    """seconds: for connecting, and for each answer; options of the URL win.

    Raises ValueError for options in the URL that redis-py does not know.
    """
    try:
        if address.kind == "sentinel":
            return _by_sentinels(address, seconds)
        if address.kind == "cluster":
            return _cluster(address, seconds)
        return _single(address, seconds)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _single(address: RedisAddress, seconds: float) -> Redis:
    pool = BlockingConnectionPool.from_url(
        address.url, max_connections=_CONNECTIONS, timeout=seconds, **_limits(seconds)
    )
    # Opens nothing: what is wrong is told now, not later.
    pool.make_connection()  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


def _by_sentinels(address: RedisAddress, seconds: float) -> Redis:
    options = _data_options(address, seconds)
    asking: dict[str, Any] = _limits(seconds)
    for name in ("username", "password"):
        if f"sentinel_{name}" in options:
            asking[name] = options.pop(f"sentinel_{name}")
    if options.get("ssl"):
        # Sentinels of a deployment with TLS speak TLS too.
        asking |= {key: value for key, value in options.items() if key.startswith("ssl")}
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        list(address.hosts), sentinel_kwargs=asking
    )
    client: Redis = sentinels.master_for(
        address.service, max_connections=_CONNECTIONS, check_connection=True, **options
    )
    client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    return client


def _cluster(address: RedisAddress, seconds: float) -> RedisCluster:
    options = _data_options(address, seconds)
    options.pop("db", None)
    nodes = [ClusterNode(name, port) for name, port in address.hosts]
    return RedisCluster(startup_nodes=nodes, max_connections=_CONNECTIONS, **options)


def _data_options(address: RedisAddress, seconds: float) -> dict[str, Any]:
    options = {**_limits(seconds), **parse_url(address.url)}
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    options.pop("host", None)
    options.pop("port", None)
    return options


def _limits(seconds: float) -> dict[str, Any]:
    # One retry: a connection that the server closed while it was idle is opened anew.
    retry = Retry(NoBackoff(), 1)
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry": retry}
