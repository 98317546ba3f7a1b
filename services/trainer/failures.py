"""Why a job failed, as its record says it: a stable reason, and what to do."""

from __future__ import annotations

import errno
import sys

from services.ports import JobFailure

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Looked up in the modules that are loaded: an error's class is never in another one.
_KNOWN = (
    ("forward_ofa.data.log", "DataError", "DATA"),
    ("forward_ofa.training", "TrainingError", "TRAINING"),
    ("forward_ofa.checkpoint", "CheckpointError", "RUN"),
    ("forward_ofa.runs", "RunError", "RUN"),
    ("services.trainer.plan", "BadParameters", "PARAMETERS"),
    ("services.trainer.plan", "NoDevice", "DEVICE"),
    ("services.trainer.stages", "RunFolderBusy", "BUSY"),
    ("services.registry.contract", "RegistryError", "REGISTRY"),
    ("services.errors", "Fault", "REGISTRY"),
)
REASONS = {
    "DATA": "the log cannot be read, or nothing is left of it",
    "TRAINING": "training cannot go on, for example since the loss is not finite",
    "DEVICE": "the worker has not the device that the job asks for",
    "STORAGE": "a disk is full, or a folder cannot be written",
    "REGISTRY": "the registry cannot be reached, or does not take the version",
    "PARAMETERS": "the job's parameters make no sense to this worker",
    "RUN": "the run folder is of another run, or damaged",
    "BUSY": "another process has the run folder",
    "MEMORY": "memory ran out",
    "TIMEOUT": "it took longer than the worker allows",
    "CRASHED": "the training process or its worker was lost again and again",
    "UNEXPECTED": "a defect of ours",
}


def explain(error: BaseException) -> JobFailure:
    """For whatever ended a training process."""
    for module, name, reason in _KNOWN:
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(error, known):
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                reason = "STORAGE"
            return JobFailure(reason, str(error))
    if isinstance(error, OSError):
        return _os_failure(error)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return JobFailure(
            "MEMORY", f"{text}. Use a smaller batch or a machine with more memory, then resume"
        )
    return JobFailure("UNEXPECTED", f"{text}. The traceback is in log.txt of the run folder")


def _os_failure(error: OSError) -> JobFailure:
    where = f"{error.filename}: " if error.filename else ""
    action = "Free some space" if error.errno in _FULL else "Check the path and who may use it"
    return JobFailure("STORAGE", f"{where}{error.strerror or error}. {action}, then resume the job")
