"""What a registry promises, and what a published version is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig
from services.errors import Fault, Reason

FORMAT = "forward-ofa-version/2"
MANIFEST = "manifest.json"
MAPPER = "mapper.safetensors"
RETRIEVAL = "retrieval.safetensors"
ITEMS = "items.safetensors"
RETRIEVAL_INDEX = "retrieval.faiss"
CATALOGUE = "catalogue.json"
BUNDLE_TENSORS = "bundle/tensors.safetensors"
BUNDLE_EXTRACTOR = "bundle/extractor.onnx"
BUNDLE_BACKBONE = "bundle/backbone.onnx"
REQUIRED = (MAPPER, RETRIEVAL, ITEMS, CATALOGUE, BUNDLE_TENSORS)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LABEL = re.compile(r"[a-z][a-z0-9-]{0,31}")


STABLE = "stable"
CANARY = "canary"


class RegistryError(Exception):
    """A registry operation that cannot be done. The text says why and what to do."""


class RegistryUnavailable(RegistryError, OSError):
    """The registry cannot be asked now. What was opened before stays usable."""


@dataclass(frozen=True)
class Pointing:
    """One place that a label points or pointed at. percent: share of the sessions, 0 to 100."""

    version: str
    percent: float = 0.0


@dataclass(frozen=True)
class Label:
    """Where a label points, its share of the sessions, and where it pointed before, newest
    first. percent is 0 where nothing was said: such a version is loaded, and answers who names
    it."""

    version: str
    percent: float = 0.0
    before: tuple[Pointing, ...] = ()


def is_version_id(text: str) -> bool:
    """Whether this can name a version: it becomes a folder name, so nothing else may."""
    return _VERSION.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Whether this can name a label."""
    return _LABEL.fullmatch(text) is not None


def shard_file(shard: int) -> str:
    """The file of one item shard."""
    return f"bundle/items-{shard:04d}.safetensors"


def required_files(manifest: VersionManifest) -> Iterator[str]:
    """What a version must have. One by one: a damaged manifest may claim any number of shards."""
    yield from REQUIRED
    if manifest.retrieval.is_approximate:
        yield RETRIEVAL_INDEX
    yield from (shard_file(shard) for shard in range(manifest.shards))


def _leads_outside(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


@dataclass(frozen=True)
class FileEntry:
    """One file of a version. sha256: hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class RetrievalPlan:
    """How a version's items are searched. kind: "exact", or "ivf-sq8" with RETRIEVAL_INDEX:
    `probes` of its `lists` lists are searched, for `oversample` times as many items as wanted."""

    kind: str = "exact"
    lists: int = 0
    probes: int = 0
    oversample: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("exact", "ivf-sq8"):
            raise ValueError(f"its index is of the unknown kind {self.kind!r}")
        if self.is_approximate and not (1 <= self.probes <= self.lists and self.oversample >= 1):
            raise ValueError("probes must be from 1 to lists, and oversample at least 1")

    @property
    def is_approximate(self) -> bool:
        return self.kind != "exact"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> RetrievalPlan:
        """Raises KeyError, TypeError or ValueError."""
        numbers = {name: int(raw.get(name, 0)) for name in ("lists", "probes")}
        return cls(str(raw["kind"]), **numbers, oversample=int(raw.get("oversample", 1)))


@dataclass(frozen=True)
class VersionManifest:
    """manifest.json. items: N. shards: item shards of the bundle, number 0 included.
    retrieval: absent in manifests of before there were indices: exact.

    data, protocol, metrics: what it was trained on, how, and how well it did; for people.
    """

    version: str
    created: str
    backbone: BackboneConfig
    extractor_history: int
    items: int
    shards: int
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    protocol: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    retrieval: RetrievalPlan = field(default_factory=RetrievalPlan)

    @classmethod
    def from_json(cls, text: str) -> VersionManifest:
        """Raises ValueError, naming what is wrong, for anything that is not of this format."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise ValueError(f"its format is {raw['format']!r}, {FORMAT!r} expected")
            config = dict(raw["backbone"])
            config["dilations"] = tuple(config["dilations"])
            manifest = cls(
                version=str(raw["version"]),
                created=str(raw["created"]),
                backbone=BackboneConfig(**config),
                extractor_history=int(raw["extractor_history"]),
                items=int(raw["items"]),
                shards=int(raw["shards"]),
                files={
                    str(name): FileEntry(int(entry["bytes"]), str(entry["sha256"]))
                    for name, entry in raw.get("files", {}).items()
                },
                protocol=tuple(str(line) for line in raw.get("protocol", ())),
                metrics=dict(raw.get("metrics", {})),
                retrieval=RetrievalPlan.from_json(raw.get("retrieval", {"kind": "exact"})),
            )
            build(manifest.backbone)
        except KeyError as error:
            raise ValueError(f"it lacks {error}") from error
        except (TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it is malformed ({error})") from error
        if not is_version_id(manifest.version):
            raise ValueError(f"{manifest.version!r} is no version id")
        if any(_leads_outside(name) for name in manifest.files):
            raise ValueError("it names a file outside the version")
        if manifest.items < 1 or manifest.shards < 1 or manifest.extractor_history < 1:
            raise ValueError("items, shards and extractor_history must be at least 1")
        return manifest


class PublishedVersion:
    """One version on disk. Ask `path` for a file, and it is verified first, once."""

    def __init__(self, root: Path, manifest: VersionManifest) -> None:
        self.root = root
        self.manifest = manifest
        self._verified: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the version has this file."""
        return name in self.manifest.files

    def path(self, name: str) -> Path:
        """The file, after its size and digest were found right. Reads all of it the first time.

        Raises Fault CORRUPT_VERSION, naming the file.
        """
        if name not in self._verified:
            self._verify(name)
            self._verified.add(name)
        return self.root / name

    def verify(self, names: Iterable[str] | None = None) -> None:
        """All files, or those named. Raises Fault CORRUPT_VERSION, naming the first bad one."""
        for name in self.manifest.files if names is None else names:
            self.path(name)

    def corrupt(self, name: str, detail: object = "") -> Fault:
        """The Fault for a file that turned out to be damaged."""
        return Fault(
            Reason.CORRUPT_VERSION, version=self.manifest.version, file=name, detail=str(detail)
        )

    def _verify(self, name: str) -> None:
        entry = self.manifest.files.get(name)
        if entry is None:
            raise self.corrupt(name, "not in the manifest")
        path = self.root / name
        try:
            if path.stat().st_size != entry.bytes:
                raise self.corrupt(name, f"{path.stat().st_size} bytes, {entry.bytes} expected")
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise self.corrupt(name, error) from error
        if digest != entry.sha256:
            raise self.corrupt(name, "the digest is not the manifest's")


class Registry(Protocol):
    """Where published versions are. Blocking: call it from a thread.

    Any method raises RegistryUnavailable if the place cannot be reached.
    """

    location: str
    """Folder or URL, for people; without credentials."""

    def check(self) -> None:
        """Raises RegistryError unless there is a registry."""

    def staging(self) -> Path:
        """A new empty local folder for an export to write into."""

    def publish(self, staging: Path) -> str:
        """Make a staging folder a version; its id. It appears whole or not at all.

        Raises RegistryError if it is incomplete or the version exists.
        """

    def versions(self) -> list[VersionManifest]:
        """All versions, oldest first, without the damaged ones."""

    def damaged(self) -> dict[str, str]:
        """Version -> what is wrong with it, of those that `versions` leaves out."""

    def exists(self, version: str) -> bool: ...

    def open(self, version: str) -> PublishedVersion:
        """Sizes are checked here, digests when a file is used.

        Raises Fault UNKNOWN_VERSION or CORRUPT_VERSION.
        """

    def label(self, name: str, version: str, percent: float = 0.0) -> None:
        """Let a label point at a version, after every file of it was verified.

        percent: the share of sessions that should use it, for a canary.
        """

    def unlabel(self, name: str) -> None:
        """Take a label away, but not `stable`."""

    def rollback(self, name: str = STABLE) -> Label:
        """Let a label point where it pointed before, after every file was verified."""

    def pointer(self, name: str) -> Label | None:
        """All that a label says; None if there is no such label."""

    def labels(self) -> dict[str, str]:
        """Label -> version."""

    def current(self, name: str = STABLE) -> str | None:
        """Where a label points; None if there is no such label."""

    def remove(self, version: str) -> None:
        """Raises RegistryError if a label points at it or there is none."""
