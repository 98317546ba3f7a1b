"""What things cost: the file of measured figures, read and checked.

`costs.toml` beside this file has what `python -m benchmarks.capacity` measured on one machine; an
operator measures anew and passes that file. CPU milliseconds are those of one core, user and
system, all threads of a process, kernel included.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

LAYOUTS: dict[str, tuple[str, ...]] = {
    "split": ("controller", "assembler", "mapper"),
    "joined": ("controller", "generator"),
    "one": ("whole",),
}
"""Kinds of processes a request passes through, the one that devices talk to first."""

TARGETS = {
    "controller": "controller",
    "assembler": "assembler",
    "mapper": "mapper",
    "generator": "mapper,assembler",
    "whole": "all",
}
"""Kind to `forward-ofa serve --target`."""

FEATURES: dict[str, tuple[str, ...]] = {
    "controller": ("request", "megabyte", "kiloitem"),
    "assembler": ("request", "megabyte"),
    "mapper": ("request", "megabyte", "megaproduct", "megaquantised"),
    "generator": ("request", "megabyte", "megaproduct", "megaquantised"),
    "whole": ("request", "megabyte", "kiloitem", "megaproduct", "megaquantised"),
    "redis": ("request",),
}
"""What the CPU time of a kind of process depends on, see `Work`."""


_MOST = 1e12
"""Of any figure, in its own unit; so that nothing computed from them overflows."""


class CostsError(ValueError):
    """The file of costs cannot be used; the text says where and what to do."""


@dataclass(frozen=True)
class Work:
    """What one request asks for.

    megabyte: of artefact, in millions of bytes. kiloitem: candidates sent, in thousands.
    megaproduct: multiply-accumulates of the hypernetworks, in millions. megaquantised: values
    rounded to int8, in millions.
    """

    megabyte: float
    kiloitem: float
    megaproduct: float
    megaquantised: float
    request: float = 1.0


@dataclass(frozen=True)
class Memory:
    """A process's resident memory. process: bytes without any version. item, weight: bytes more
    for each item of the catalogue and each value of the hypernetworks, of each version."""

    process: float
    item: float
    weight: float


@dataclass(frozen=True)
class Downloads:
    """CPU of a controller for bundle files. request, megabyte: milliseconds."""

    request: float
    megabyte: float


@dataclass(frozen=True)
class Tls:
    """CPU that TLS adds at the devices' port, milliseconds. connection: accepting one, with the
    handshake. megabyte: encrypting what is sent."""

    connection: float
    megabyte: float


@dataclass(frozen=True)
class Redis:
    """session_overhead: bytes of a session in Redis beyond its key and value."""

    session_overhead: float


@dataclass(frozen=True)
class Retrieval:
    """items: the catalogue that `controller` was measured with. exact: CPU milliseconds of one
    exact search for each million values of the item table. approximate: milliseconds of one search
    of a large catalogue's index."""

    items: float
    exact: float
    approximate: float


@dataclass(frozen=True)
class Ranking:
    """What ranking on the cloud would cost. call: CPU milliseconds of a controller for a call with
    a small answer, retrieval included. network: of one forward pass of the dense network,
    with the products of `candidates` items."""

    call: float
    network: float
    candidates: float


@dataclass(frozen=True)
class Trainer:
    """example: CPU milliseconds to train on one target once, by backbone, at the width `hidden`."""

    hidden: float
    sasrec: float
    nextitnet: float


@dataclass(frozen=True)
class Batching:
    """For the simulation: CPU milliseconds of a mapper by requests that shared a product, SASRec,
    six blocks, float16. start: of each batch, each: of each request."""

    start: float
    each: float


@dataclass(frozen=True)
class Costs:
    """A file of measured figures. cpu: kind -> feature -> milliseconds. origin: machine, date,
    commit, command, for people. residual: deviation of the measured points from the fit, root
    of the mean square, as a share, by kind."""

    cpu: Mapping[str, Mapping[str, float]]
    memory: Mapping[str, Memory]
    downloads: Downloads
    tls: Tls
    redis: Redis
    retrieval: Retrieval
    ranking: Ranking
    trainer: Trainer
    batching: Batching
    origin: Mapping[str, str]
    residual: Mapping[str, float]

    def request_ms(self, kind: str, work: Work) -> float:
        """CPU milliseconds of one kind of process for one request."""
        return sum(value * float(getattr(work, name)) for name, value in self.cpu[kind].items())


ORIGIN = ("cpu", "cores", "system", "python", "time", "revision", "command", "load")
_SECTIONS = {
    "downloads": Downloads,
    "tls": Tls,
    "redis": Redis,
    "retrieval": Retrieval,
    "ranking": Ranking,
    "trainer": Trainer,
    "batching": Batching,
}


def read_costs(path: Path | None = None) -> Costs:
    """path: None: the figures that come with the package.

    Raises CostsError, OSError.
    """
    path = path or Path(__file__).with_name("costs.toml")
    try:
        raw = tomllib.loads(path.read_text())
    except RecursionError:
        raise CostsError(f"{path} is no file of costs: it is nested too deep") from None
    except ValueError as error:
        # Beside TOMLDecodeError: text that is not UTF-8, a number of thousands of digits.
        raise CostsError(f"{path} is no TOML file: {error}") from error
    return _Reader(path).costs(raw)


class _Reader:
    """Checks as it reads, and names what is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def costs(self, raw: Mapping[str, Any]) -> Costs:
        cpu = {
            kind: {name: self.number(raw, "cpu", kind, name) for name in names}
            for kind, names in FEATURES.items()
        }
        memory = {kind: self.section(raw, Memory, "memory", kind) for kind in TARGETS}
        sections: dict[str, Any] = {
            name: self.section(raw, of, name) for name, of in _SECTIONS.items()
        }
        origin = {name: str(self.value(raw, "origin", name)) for name in ORIGIN}
        residual = {kind: self.number(raw, "residual", kind) for kind in FEATURES}
        if sections["trainer"].hidden < 1:
            self.fail(("trainer", "hidden"), "is the width that was measured, so at least 1")
        return Costs(cpu=cpu, memory=memory, origin=origin, residual=residual, **sections)

    def section(self, raw: Mapping[str, Any], of: type[Any], *where: str) -> Any:
        return of(**{each.name: self.number(raw, *where, each.name) for each in fields(of)})

    def number(self, raw: Mapping[str, Any], *where: str) -> float:
        value = self.value(raw, *where)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, int) and abs(value) > _MOST:
            self.fail(where, f"is too large; it must be a number from 0 to {_MOST:g}")
        if not good or not 0 <= value <= _MOST:
            self.fail(where, f"is {value!r}; it must be a number from 0 to {_MOST:g}")
        return float(value)

    def value(self, raw: Any, *where: str) -> Any:
        for name in where:
            if not isinstance(raw, Mapping) or name not in raw:
                self.fail(where, "is missing")
            raw = raw[name]
        return raw

    def fail(self, where: tuple[str, ...], what: str) -> None:
        raise CostsError(
            f"{self._path}: {'.'.join(where)} {what}. Measure anew: python -m benchmarks.capacity"
        )
