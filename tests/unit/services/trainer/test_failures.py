"""Reasons of failures: each has a line in docs/trainer.md, and says what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from forward_ofa.data import DataError
from forward_ofa.training import TrainingError
from services.registry.contract import RegistryError
from services.trainer.failures import REASONS, explain

DOCUMENTATION = (Path(__file__).parents[4] / "docs" / "trainer.md").read_text()


def test_each_reason_is_documented():
    for reason in REASONS:
        assert f"| {reason} | " in DOCUMENTATION


def full(path: str) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", path)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (DataError("log.csv: line 7 is cut off"), "DATA", "line 7"),
        (TrainingError("the loss became nan"), "TRAINING", "nan"),
        (full("run/a.checkpoint"), "STORAGE", "run/a.checkpoint: No space left on device. Free"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "STORAGE", "who may use it"),
        (RegistryError("no bucket"), "REGISTRY", "no bucket"),
        (caused(RegistryError("not published"), full("x")), "STORAGE", "not published"),
        (MemoryError(), "MEMORY", "smaller batch"),
        (RuntimeError("CUDA error: out of memory"), "MEMORY", "smaller batch"),
        (ZeroDivisionError("division by zero"), "UNEXPECTED", "log.txt"),
    ],
)
def test_what_a_job_says(error, reason, text):
    failure = explain(error)
    assert failure.reason == reason and failure.reason in REASONS
    assert text in failure.text
