"""Labels: names that point at a version and remember where they pointed before.

A label is one small text, replaced in one step, so that pointer, share and history never
disagree:

    20250131-120000-0a1b2c3d 5      the version, and its percentage of the sessions if not 0
    20250130-090000-1b2c3d4e        where it pointed before, newest first
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from services.registry.contract import (
    STABLE,
    Label,
    Pointing,
    PublishedVersion,
    RegistryError,
    is_label,
    is_version_id,
)

HISTORY = 16
"""How many earlier versions a label remembers."""


def parse_label(text: str) -> Label | None:
    """What a label's text says; None if it is none."""
    lines = [_parse_line(line) for line in text.splitlines() if line.strip()]
    if not lines or None in lines:
        return None
    now, *before = (line for line in lines if line is not None)
    return Label(now.version, now.percent, tuple(before))


def label_text(label: Label) -> str:
    """What `parse_label` reads."""
    return "".join(
        f"{line.version} {line.percent:g}\n" if line.percent else f"{line.version}\n"
        for line in (Pointing(label.version, label.percent), *label.before)
    )


def moved(label: Label | None, version: str, percent: float) -> Label:
    """The label after it was pointed at a version.

    One that it pointed at before is a way back: what came after that is forgotten, so that
    the next roll-back goes further back and not to what was left.
    """
    if label is None:
        return Label(version, percent)
    if label.version == version:
        return replace(label, percent=percent)
    for depth, earlier in enumerate(label.before):
        if earlier.version == version:
            return Label(version, percent, label.before[depth + 1 :])
    before = (Pointing(label.version, label.percent), *label.before)
    return Label(version, percent, before[:HISTORY])


def rolled_back(label: Label, usable: Callable[[str], bool]) -> Label | None:
    """The label at the newest earlier version that is usable; None: there is none."""
    for depth, earlier in enumerate(label.before):
        if usable(earlier.version):
            return Label(earlier.version, earlier.percent, label.before[depth + 1 :])
    return None


def _parse_line(line: str) -> Pointing | None:
    version, _, share = line.strip().partition(" ")
    try:
        percent = float(share or 0)
    except ValueError:
        return None
    return Pointing(version, percent) if is_version_id(version) and _is_share(percent) else None


def _is_share(percent: float) -> bool:
    return math.isfinite(percent) and 0 <= percent <= 100


class LabelledRegistry(ABC):
    """The half of `contract.Registry` that all keepers share, on top of four small operations.

    Two who move the same label at once: the last one counts, whole; the other's step may be
    missing in its history.
    """

    location: str

    @abstractmethod
    def exists(self, version: str) -> bool: ...

    @abstractmethod
    def open(self, version: str) -> PublishedVersion: ...

    @abstractmethod
    def _read_label(self, name: str) -> str | None:
        """The text of a label; None if there is none."""

    @abstractmethod
    def _write_label(self, name: str, text: str) -> None: ...

    @abstractmethod
    def _remove_label(self, name: str) -> None: ...

    @abstractmethod
    def _label_names(self) -> list[str]: ...

    def label(self, name: str, version: str, percent: float = 0.0) -> None:
        """Raises RegistryError for a bad name or share, and what `open` and `verify` raise."""
        if not is_label(name):
            raise RegistryError(f"{name[:64]!r} is no label: use lower-case letters, digits and -")
        if not _is_share(percent):
            raise RegistryError(f"{percent:g} is no share of the sessions: use 0 to 100 percent")
        if percent and name == STABLE:
            raise RegistryError(
                f"{STABLE} gets all sessions that no canary gets: give the share to the canary"
            )
        self.open(version).verify()
        self._write_label(name, label_text(moved(self.pointer(name), version, percent)))

    def unlabel(self, name: str) -> None:
        """Raises RegistryError if there is no such label, or if it is `stable`."""
        self._existing(name)
        if name == STABLE:
            raise RegistryError(f"services follow {STABLE}: point it at another version instead")
        self._remove_label(name)

    def rollback(self, name: str = STABLE) -> Label:
        """Raises RegistryError if there is nothing to go back to, Fault if it is damaged."""
        present = self._existing(name)
        label = rolled_back(present, self.exists)
        if label is None:
            raise RegistryError(
                f"there is no usable version before {present.version} for the label {name!r} in "
                f"{self.location}: name one, `forward-ofa versions label {name} VERSION`"
            )
        self.open(label.version).verify()
        self._write_label(name, label_text(label))
        return label

    def pointer(self, name: str) -> Label | None:
        """Where a label points and pointed; None if there is no such label."""
        text = self._read_label(name) if is_label(name) else None
        return None if text is None else parse_label(text)

    def labels(self) -> dict[str, str]:
        """Label -> version. Files that are no labels are left out."""
        return {name: label.version for name, label in self._all_labels().items()}

    def current(self, name: str = STABLE) -> str | None:
        """Where a label points; None if there is no such label."""
        label = self.pointer(name)
        return None if label is None else label.version

    def _all_labels(self) -> dict[str, Label]:
        found = ((name, self.pointer(name)) for name in sorted(self._label_names()))
        return {name: label for name, label in found if label is not None}

    def _existing(self, name: str) -> Label:
        label = self.pointer(name)
        if label is None:
            there = ", ".join(self.labels()) or "none"
            raise RegistryError(
                f"there is no label {name[:64]!r} in {self.location}; there are: {there}"
            )
        return label

    def _check_unlabelled(self, version: str) -> None:
        labels = self.labels()
        if version in labels:
            raise RegistryError(
                f"{version} is a label, of version {labels[version]}: move the label to another "
                "version, then remove this one by its own name"
            )
        pointing = [name for name, target in labels.items() if target == version]
        if pointing:
            raise RegistryError(
                f"version {version} is labelled {', '.join(pointing)}: move the label first"
            )
