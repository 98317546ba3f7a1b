"""What can be wrong with Redis, by kind, for the metric."""

from __future__ import annotations

from redis import exceptions as redis

_KINDS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((redis.TimeoutError, TimeoutError), "timeout"),
    ((redis.AuthenticationError, redis.AuthorizationError, redis.NoPermissionError), "auth"),
    (
        (redis.ConnectionError, redis.ClusterDownError, redis.RedisClusterException, OSError),
        "connection",
    ),
    ((redis.InvalidResponse,), "protocol"),
    ((redis.ReadOnlyError,), "readonly"),
    ((redis.OutOfMemoryError,), "full"),
    ((redis.ResponseError,), "refused"),
    ((ValueError,), "rubbish"),
)
UNUSABLE = frozenset({"timeout", "auth", "connection", "protocol", "other"})
"""Kinds after which there is no sense in asking again at once."""


def kind_of(error: Exception) -> str:
    """timeout, auth, connection, protocol, readonly, full, refused, rubbish or other."""
    if isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error):
        return "rubbish"
    if isinstance(error.__cause__, redis.AuthenticationError):
        return "auth"  # as redis-py tells what went wrong while it connected
    return next((kind for types, kind in _KINDS if isinstance(error, types)), "other")
