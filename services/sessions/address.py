"""Where the session store is: the URLs that are understood. Knows no Redis library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

Kind = Literal["single", "sentinel", "cluster"]
_PORTS: dict[Kind, int] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
FORMS = (
    "memory://, redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix://PATH?db=0, "
    "redis+socket://PATH, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB or "
    "redis+cluster://HOST:PORT,HOST:PORT (rediss+... for TLS)"
)


@dataclass(frozen=True)
class RedisAddress:
    """kind: one server, a master found by sentinels, or a cluster.

    hosts: of sentinels or cluster nodes, (name, port); empty for one server.
    service: the master's name at the sentinels. url: one server as redis-py spells it; for the
    others the same with the first host in it: credentials, database and options of the data
    nodes. May hold a password: never show it.
    """

    kind: Kind
    url: str
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""


def parse_address(url: str) -> RedisAddress:
    """Raises ValueError for what is none of FORMS. The error never shows the URL."""
    if url.startswith("redis+socket://"):  # as Celery spells it
        url = "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss", "unix"):
        return _single(url)
    base, _, flavour = scheme.partition("+")
    if base in ("redis", "rediss") and flavour == "sentinel":
        return _many("sentinel", base, url)
    if base in ("redis", "rediss") and flavour == "cluster":
        return _many("cluster", base, url)
    raise ValueError("unknown kind of address")


def _single(url: str) -> RedisAddress:
    parts = urlsplit(url)
    _ = parts.port  # raises for one that is none
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("no path of a socket")
        return RedisAddress("single", url)
    if not parts.hostname:
        raise ValueError("no host")
    _check_database(parts.path.removeprefix("/"))
    return RedisAddress("single", url)


def _many(kind: Kind, scheme: str, url: str) -> RedisAddress:
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_host(text, _PORTS[kind]) for text in hosts.split(","))
    path = [unquote(part) for part in parts.path.split("/")[1:]]
    service = path.pop(0) if kind == "sentinel" and path else ""
    if kind == "sentinel" and not service:
        raise ValueError("no name of a service behind the hosts")
    database = path.pop(0) if path else ""
    if path:
        raise ValueError("too many parts behind the hosts")
    _check_database(database)
    if kind == "cluster" and database not in ("", "0"):
        raise ValueError("a cluster has only database 0")
    name, port = nodes[0]
    netloc = f"{credentials}{at}{f'[{name}]' if ':' in name else name}:{port}"
    one = SplitResult(scheme, netloc, f"/{database}", parts.query, "").geturl()
    return RedisAddress(kind, one, nodes, service)


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or "@" in text:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or default_port


def _check_database(text: str) -> None:
    """redis-py passes over a database that is no number, and takes 0."""
    if text and not text.isdecimal():
        raise ValueError("the database is no number")
