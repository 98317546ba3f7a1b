"""Everything the SDK raises, in one tree."""

from __future__ import annotations


class DeviceError(Exception):
    """The root: catch this to catch everything of the SDK."""


class CorruptFile(DeviceError):
    """A bundle, artefact or stored file is not what its format or digest says."""


class WrongVersion(DeviceError):
    """A network, bundle or item shard belongs to another version than the device holds."""


class UnknownItem(DeviceError):
    """No embedding of this item is on the device."""


class NotReady(DeviceError):
    """There is nothing to rerank with: no bundle or no network yet, and no cloud."""


class ImpossibleBudget(DeviceError, ValueError):
    """Not even a network of one block fits the budget."""


class StorageError(DeviceError):
    """The state directory cannot be used: in use by another process, not writable, disk full."""


class CloudError(DeviceError):
    """The cloud refused or could not be reached.

    `reason`: the stable name from docs/errors.md, or "UNREACHABLE".
    `code`: the gRPC status, for example "FAILED_PRECONDITION".
    `action`: what to do about it.
    `retry_ms`: (earliest, latest) milliseconds until a retry makes sense, or None: never.
    `current_version`: the version to ask for instead, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        code: str = "",
        action: str = "",
        retry_ms: tuple[int, int] | None = None,
        current_version: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.action = action
        self.retry_ms = retry_ms
        self.current_version = current_version
