"""Exit codes, and which failure means which one."""

from __future__ import annotations

import errno
import sys
from enum import IntEnum


class Exit(IntEnum):
    """What a script can tell from the exit code; `forward-ofa --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BAD_DATA = 3
    BAD_VERSION = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "the job failed",
    Exit.USAGE: "wrong usage",
    Exit.BAD_DATA: "the interaction log cannot be used",
    Exit.BAD_VERSION: "a run or version is missing, damaged or of another kind",
    Exit.UNREACHABLE: "the cloud cannot be reached",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
}


class CommandError(Exception):
    """A command cannot do its job; the text is one line for the user and says what to do."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


# Looked up in the modules that are loaded: an error's class is never in another one.
_KNOWN = (
    ("forward_ofa.data.log", "DataError", Exit.BAD_DATA),
    ("forward_ofa.checkpoint", "CheckpointError", Exit.BAD_VERSION),
    ("forward_ofa.runs", "RunError", Exit.BAD_VERSION),
    ("forward_ofa.training", "TrainingError", Exit.FAILED),
    ("services.registry.contract", "RegistryError", Exit.BAD_VERSION),
    ("services.runtime.settings", "SettingsError", Exit.USAGE),
    ("forward_ofa_device.errors", "DeviceError", Exit.FAILED),
)
_WHAT_TO_DO = {
    errno.ENOSPC: "free some space, or use another folder",
    errno.EDQUOT: "free some space, or use another folder",
    errno.EACCES: "give a path that you may use",
    errno.EPERM: "give a path that you may use",
    errno.EROFS: "give a path that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file is where a folder must be: check the path",
    errno.EEXIST: "a file is where a folder must be: check the path",
    errno.EISDIR: "a folder is where a file must be: check the path",
    errno.ENAMETOOLONG: "give a shorter path",
}
VERSION_REASONS = ("UNKNOWN_VERSION", "CORRUPT_VERSION", "NO_VERSION")


def explain(error: Exception) -> tuple[Exit, str] | None:
    """Exit code and text for a failure that users can cause; None for a bug of ours."""
    if isinstance(error, CommandError):
        return error.code, str(error)
    for module, name, code in _KNOWN:
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(error, known):
            return code, str(error)
    fault = getattr(sys.modules.get("services.errors"), "Fault", None)
    if fault is not None and isinstance(error, fault):
        known_version = str(error.reason) in VERSION_REASONS
        code = Exit.BAD_VERSION if known_version else Exit.FAILED
        return code, f"{error.text}. {error.action}"
    if isinstance(error, OSError):
        return Exit.FAILED, explain_os_error(error)
    return None


def explain_os_error(error: OSError) -> str:
    """The file, what is wrong with it, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    action = f". {_WHAT_TO_DO[error.errno].capitalize()}" if error.errno in _WHAT_TO_DO else ""
    return f"{where}{error.strerror or error}{action}"


def unreachable(address: str) -> str:
    """What to say of a controller that does not answer."""
    return f"the controller at {address} cannot be reached: is `forward-ofa serve` running there?"
