"""Everything that a process of the services is told, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from services.assembler.settings import AssemblerSettings
from services.controller.settings import ControllerSettings
from services.mapper.settings import MapperSettings
from services.registry.location import local_folder
from services.registry.settings import CacheSettings
from services.runtime.channels import check_target
from services.runtime.settings import (
    ChannelSettings,
    ServerSettings,
    SettingsError,
    split_address,
)
from services.runtime.tracing import TracingSettings
from services.sessions.settings import SessionSettings
from services.trainer.settings import TrainerSettings
from services.versions import VersionSettings

Target = Literal["controller", "mapper", "assembler", "trainer"]
TARGETS: tuple[Target, ...] = ("controller", "assembler", "mapper")
"""What `all` means. The trainer stands alone: its callers, tokens and machines are others."""
_TRAINER: tuple[Target, ...] = ("trainer",)


def parse_targets(text: str) -> tuple[Target, ...]:
    """ "all", "trainer", or a comma list of the others. Raises SettingsError."""
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return TARGETS
    if names == ["trainer"]:
        return _TRAINER
    unknown = [name for name in names if name not in TARGETS]
    if unknown or len(set(names)) != len(names):
        raise SettingsError(
            f"target is {text!r}: use all, trainer alone, or a comma list of "
            f"{', '.join(TARGETS)}, each once"
        )
    return tuple(cast(Target, name) for name in names)


@dataclass(frozen=True)
class ServeSettings:
    """One process.

    registry: of the published versions: a folder, or a URL such as s3://bucket/prefix.
    targets: which services run here; they share one port.
    mapper, assembler: HOST:PORT (or dns:///NAME:PORT, all addresses of the name in turn) of
        those that run elsewhere; None for those that run here or are not needed.
    metrics: HOST:PORT of the HTTP endpoint /metrics; port 0 takes a free one.
    ready_file: written, whole, once requests are answered: JSON with pid, address, targets
        (target -> address), metrics and version; removed at the end.
    registry_cache: copies of versions, where the registry is a URL.
    expose_internal: offer the calls of a mapper or assembler on the port even if the component
        that calls them runs in this process too.
    processes: how many of this process share the port, for more cores than one can use; each
        has a metrics port of its own, from that of `metrics` on.
    exit_with: process id; this process drains and ends when that one is no longer its parent.
    server, tracing, channels, versions, sessions, mapping, assembling, controlling: see there.
    training: for the target trainer, which needs it; None for the others.
    """

    registry: Path | str
    targets: tuple[Target, ...] = TARGETS
    mapper: str | None = None
    assembler: str | None = None
    metrics: str = "127.0.0.1:0"
    ready_file: Path | None = None
    registry_cache: CacheSettings = field(default_factory=CacheSettings)
    expose_internal: bool = False
    processes: int = 1
    exit_with: int | None = None
    server: ServerSettings = field(default_factory=ServerSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    channels: ChannelSettings = field(default_factory=ChannelSettings)
    versions: VersionSettings = field(default_factory=VersionSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    mapping: MapperSettings = field(default_factory=MapperSettings)
    assembling: AssemblerSettings = field(default_factory=AssemblerSettings)
    controlling: ControllerSettings = field(default_factory=ControllerSettings)
    training: TrainerSettings | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            raise SettingsError("no target: name at least one service to run")
        if ("trainer" in self.targets) != (self.training is not None) or (
            "trainer" in self.targets and len(self.targets) > 1
        ):
            raise SettingsError("the target trainer stands alone, and needs --broker")
        if self.processes < 1:
            raise SettingsError("processes must be at least 1")
        folder = local_folder(self.registry)
        if folder is not None and not folder.is_dir():
            raise SettingsError(
                f"there is no registry at {folder}: publish a version first, or create "
                "the folder if one will be published later"
            )
        if self.ready_file is not None and not self.ready_file.parent.is_dir():
            raise SettingsError(f"there is no folder {self.ready_file.parent} for the ready file")
        split_address(self.metrics, "metrics")
        self._check_upstream("mapper", self.mapper, needed_by="assembler")
        self._check_upstream("assembler", self.assembler, needed_by="controller")

        self._check_access()

    def offers(self, target: Target) -> bool:
        """Whether callers from outside reach a target that runs here."""
        in_front: dict[Target, Target] = {"mapper": "assembler", "assembler": "controller"}
        return self.expose_internal or in_front.get(target) not in self.targets

    def _check_access(self) -> None:
        # A process without the controller reads neither tokens nor rates: it has no devices.
        access, server = self.server.access, self.server
        if "controller" not in self.targets:
            return
        internal = any(self.offers(target) for target in self.targets if target != "controller")
        guarded = access.asks or access.device_rate
        if guarded and internal and server.tls_client_ca is None:
            raise SettingsError(
                "this port offers internal calls too, which ask for no token: leave out "
                "--expose-internal, or ask for certificates with --tls-client-ca"
            )

    def _check_upstream(self, name: Target, address: str | None, needed_by: Target) -> None:
        used = needed_by in self.targets and name not in self.targets
        if used and address is None:
            raise SettingsError(
                f"target {needed_by} needs the {name}: run it here too, or give --{name} HOST:PORT"
            )
        if address is not None and not used:
            raise SettingsError(
                f"--{name} {address} would not be used: the targets {', '.join(self.targets)} "
                f"call no {name} elsewhere"
            )
        if address is not None:
            check_target(address, f"--{name}", self.channels)
