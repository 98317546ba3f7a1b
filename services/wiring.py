"""Who gets what, for which target. The only place that knows whether a component runs here.

    running = await start(ServeSettings(registry=Path("registry")))
    running.address            # "127.0.0.1:50051"
    await running.wait_ready()
    await running.stop()

`serve` is the same until SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc

from services.clients import RemoteAssembler, RemoteMapper
from services.ports import Assembler, Mapper, SessionStore
from services.registry.contract import PublishedVersion, RegistryError
from services.registry.location import open_registry
from services.runtime.channels import open_channel
from services.runtime.files import write_atomically
from services.runtime.http import HttpEndpoint
from services.runtime.logs import log
from services.runtime.metrics import Metrics
from services.runtime.process import keep_freed_memory, stop_on_signal, use_one_blas_thread
from services.runtime.server import Server
from services.runtime.settings import SettingsError
from services.runtime.tracing import TracedAssembler, TracedMapper, Tracing
from services.sessions.memory import MemorySessions
from services.settings import ServeSettings, Target
from services.trainer.pulse import Pulse
from services.trainer.settings import TrainerSettings
from services.versions import Versions

_LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
_Register = Callable[[grpc.aio.Server], None]


class Running:
    """Started services. address: HOST:PORT of gRPC, metrics_address: of HTTP."""

    def __init__(
        self,
        settings: ServeSettings,
        server: Server,
        metrics_address: str,
        versions: Mapping[Target, Versions[Any]],
        pulses: Sequence[Pulse],
        stack: AsyncExitStack,
    ) -> None:
        self.address = server.address
        self.metrics_address = metrics_address
        self._settings, self._server = settings, server
        self._versions, self._stack = versions, stack
        self._parts: Sequence[Versions[Any] | Pulse] = [*versions.values(), *pulses]

    @property
    def version(self) -> str:
        """The version that new sessions get; "" before all components have one."""
        current = [versions.current for versions in self._versions.values()]
        return current[0] if current and all(current) else ""

    @property
    def awaits_version(self) -> bool:
        """Whether a component has none, and can do nothing without."""
        return bool(self._versions) and not self.version

    async def wait_ready(self) -> None:
        """Until every component answers and health says so. Without a published version that
        is for ever: put a timeout around it if that is not meant."""
        while not all(part.ready() for part in self._parts):
            await asyncio.sleep(0.05)
        self._server.health.refresh()

    def describe(self) -> dict[str, Any]:
        """What the ready file says."""
        return {
            "pid": os.getpid(),
            "address": self.address,
            "targets": dict.fromkeys(self._settings.targets, self.address),
            "metrics": self.metrics_address,
            "version": self.version,
        }

    async def ended(self) -> None:
        """Returns once the gRPC server has ended, stopped or by itself."""
        await self._server.ended()

    async def stop(self) -> None:
        """Health says NOT_SERVING, running calls may end within drain_seconds, then all closes."""
        await self._stack.aclose()


async def start(settings: ServeSettings) -> Running:
    """Starts the targets of one process, and loads the labelled version if there is one.

    Without one the services run, answer NO_VERSION, are NOT_SERVING, and load it once it is
    published. Raises SettingsError if an address cannot be taken.
    """
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        endpoint = HttpEndpoint(metrics, settings.metrics)
        stack.callback(endpoint.stop)
        tracing = _tracing(settings, stack)
        parts = _Components(settings, metrics, stack, traced=tracing is not None)
        parts.build()
        server = Server(settings.server, metrics, parts.health, parts.offered, tracing)
        for register in parts.registrations:
            register(server.grpc)
        # Pushed last, so that calls end before anything that they use is closed.
        stack.push_async_callback(server.stop)
        await server.start()
        # Alive from now on, however long the first version takes to load.
        endpoint.probe(alive=lambda: server.health.alive, ready=lambda: server.health.ready)
        for versions in parts.versions.values():
            await versions.start()
        for pulse in parts.pulses:
            await pulse.start()
        server.health.refresh()
        return Running(
            settings, server, endpoint.address, parts.versions, parts.pulses, stack.pop_all()
        )
    raise AssertionError("unreachable: the stack swallows no exception")


def _tracing(settings: ServeSettings, stack: AsyncExitStack) -> Tracing | None:
    if settings.tracing.endpoint is None:
        return None
    name = "forward-ofa" if len(settings.targets) > 1 else f"forward-ofa-{settings.targets[0]}"
    tracing = Tracing(settings.tracing, name)
    stack.push_async_callback(asyncio.to_thread, tracing.stop)
    return tracing


async def serve(settings: ServeSettings) -> None:
    """Runs until SIGTERM or SIGINT, then drains. A second signal ends the process at once.

    Raises SettingsError, or RuntimeError if gRPC's server ends by itself: better no process,
    which is started again, than one that nobody reaches.
    """
    stopped = stop_on_signal()
    keep_freed_memory()
    use_one_blas_thread()
    running = await start(settings)
    if settings.exit_with is not None:
        orphaned = asyncio.create_task(_when_orphaned(settings.exit_with))
        orphaned.add_done_callback(lambda _: stopped.set())
    ended = asyncio.create_task(running.ended())
    ended.add_done_callback(lambda _: stopped.set())
    announcing = asyncio.create_task(_announce(running, settings.ready_file))
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({announcing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if announcing.done():
            announcing.result()
            await stopping
        if ended.done():
            raise RuntimeError("gRPC's server ended by itself")
        log(_LOGGER, logging.INFO, "stopping", drain_seconds=settings.server.drain_seconds)
    finally:
        for task in (announcing, stopping, ended):
            task.cancel()
        if settings.ready_file is not None:
            settings.ready_file.unlink(missing_ok=True)
        await running.stop()
    log(_LOGGER, logging.INFO, "stopped")


async def _when_orphaned(parent: int) -> None:
    """Returns once the parent has gone: a killed supervisor leaves no processes behind."""
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


async def _announce(running: Running, ready_file: Path | None) -> None:
    log(
        _LOGGER, logging.INFO, "listening", address=running.address, metrics=running.metrics_address
    )
    if running.awaits_version:
        log(_LOGGER, logging.WARNING, "no version is labelled yet: publish and label one")
    await running.wait_ready()
    log(_LOGGER, logging.INFO, "ready", version=running.version)
    if ready_file is not None:
        write_atomically(ready_file, json.dumps(running.describe()) + "\n")


class _Components:
    """Builds what the targets need; each from the one behind it."""

    def __init__(
        self, settings: ServeSettings, metrics: Metrics, stack: AsyncExitStack, *, traced: bool
    ) -> None:
        self._settings, self._metrics, self._stack = settings, metrics, stack
        self._traced = traced
        try:
            self._registry = open_registry(settings.registry, settings.registry_cache)
        except RegistryError as error:
            raise SettingsError(str(error)) from error
        self.versions: dict[Target, Versions[Any]] = {}
        self.pulses: list[Pulse] = []
        self.registrations: list[_Register] = []
        self.health: dict[str, Callable[[], bool]] = {}
        self.offered: list[str] = []

    def build(self) -> None:
        targets = self._settings.targets
        mapper: Mapper | None = None
        assembler: Assembler | None = None
        if "mapper" in targets:
            mapper = self._mapper()
        elif self._settings.mapper is not None:
            mapper = RemoteMapper(*self._upstream(self._settings.mapper))
        if mapper is not None and self._traced:
            mapper = TracedMapper(mapper)
        if "assembler" in targets and mapper is not None:
            assembler = self._assembler(mapper)
        elif self._settings.assembler is not None:
            assembler = RemoteAssembler(*self._upstream(self._settings.assembler))
        if assembler is not None and self._traced:
            assembler = TracedAssembler(assembler)
        if "controller" in targets and assembler is not None:
            self._controller(assembler)
        if self._settings.training is not None:
            self._trainer(self._settings.training)

    # Imports are local so that a process loads the libraries of its targets alone: torch is
    # the mapper's.

    def _mapper(self) -> Mapper:
        from forward_ofa_api.mapper.v1.mapper_pb2_grpc import add_MapperServiceServicer_to_server
        from services.mapper.domain import LocalMapper, MappedVersion
        from services.mapper.servicer import SERVICE, MapperServicer

        settings = self._settings.mapping
        load = partial(MappedVersion.load, precision=settings.precision)
        versions = self._hold("mapper", load)
        mapper = LocalMapper(versions, settings, self._metrics)
        self._stack.callback(mapper.close)
        servicer = MapperServicer(mapper)
        self._add(
            "mapper", SERVICE, versions, lambda s: add_MapperServiceServicer_to_server(servicer, s)
        )
        self.health[SERVICE] = mapper.ready
        return mapper

    def _assembler(self, mapper: Mapper) -> Assembler:
        from forward_ofa_api.assembler.v1.assembler_pb2_grpc import (
            add_AssemblerServiceServicer_to_server,
        )
        from services.assembler.domain import Blueprint, LocalAssembler
        from services.assembler.servicer import SERVICE, AssemblerServicer

        versions = self._hold("assembler", Blueprint.load)
        assembler = LocalAssembler(versions, mapper, self._settings.assembling)
        servicer = AssemblerServicer(assembler)
        self._add(
            "assembler",
            SERVICE,
            versions,
            lambda s: add_AssemblerServiceServicer_to_server(servicer, s),
        )
        return assembler

    def _controller(self, assembler: Assembler) -> None:
        from forward_ofa_api.controller.v1.controller_pb2_grpc import (
            add_ControllerServiceServicer_to_server,
        )
        from services.controller.candidates import CandidateFinder
        from services.controller.domain import Controller
        from services.controller.rehearsal import rehearsal
        from services.controller.served import ServedVersion
        from services.controller.servicer import SERVICE, ControllerServicer

        versions = self._hold(
            "controller", ServedVersion.load, labelled_only=True, rehearse=rehearsal(assembler)
        )
        finder = CandidateFinder(self._sessions(), self._settings.controlling)
        self._stack.callback(finder.close)
        controller = Controller(
            versions, assembler, finder, self._settings.controlling, self._metrics
        )
        servicer = ControllerServicer(controller)
        self._add(
            "controller",
            SERVICE,
            versions,
            lambda s: add_ControllerServiceServicer_to_server(servicer, s),
        )

    def _trainer(self, settings: TrainerSettings) -> None:
        from forward_ofa_api.trainer.v1.trainer_pb2_grpc import (
            add_TrainerServiceServicer_to_server,
        )
        from services.trainer.assembling import connected
        from services.trainer.servicer import SERVICE, TrainerServicer

        parts = connected(settings, self._registry)
        self._stack.push_async_callback(parts.pulse.stop)
        self.pulses.append(parts.pulse)
        servicer = TrainerServicer(parts.trainer)
        self.health[SERVICE] = parts.pulse.ready
        self.offered.append(SERVICE)
        self.registrations.append(lambda s: add_TrainerServiceServicer_to_server(servicer, s))

    def _sessions(self) -> SessionStore:
        settings = self._settings.sessions
        store: SessionStore
        if settings.in_memory:
            store = MemorySessions(
                self._metrics, ttl_seconds=settings.ttl_seconds, limit=settings.limit
            )
        else:
            from services.sessions.redis import RedisSessions

            try:
                store = RedisSessions(
                    settings.url,
                    self._metrics,
                    ttl_seconds=settings.ttl_seconds,
                    timeout=settings.timeout_seconds,
                )
            except ValueError as error:
                raise SettingsError(f"sessions: the address is not usable: {error}") from error
        self._stack.push_async_callback(store.close)
        return store

    def _hold(
        self,
        target: Target,
        load: Callable[[PublishedVersion], T],
        *,
        labelled_only: bool = False,
        rehearse: Callable[[T], Awaitable[None]] | None = None,
    ) -> Versions[T]:
        versions = Versions(
            target,
            self._registry,
            load,
            self._settings.versions,
            self._metrics,
            labelled_only=labelled_only,
            rehearse=rehearse,
        )
        self._stack.push_async_callback(versions.stop)
        self.versions[target] = versions
        return versions

    def _upstream(self, address: str) -> tuple[grpc.aio.Channel, float]:
        channel = open_channel(address, self._settings.channels, self._metrics)
        self._stack.push_async_callback(channel.close)
        return channel, self._settings.channels.attempt_seconds

    def _add(
        self, target: Target, service: str, versions: Versions[Any], register: _Register
    ) -> None:
        self.health[service] = versions.ready
        # What is called in this process is not for callers from outside, who could go round
        # the checks of the component in front.
        if self._settings.offers(target):
            self.offered.append(service)
            self.registrations.append(register)
