"""Backbones by name: each file of this package that has a `build(config)` is one.

To add a backbone, add a file; nothing else has to change. `contract.py` says
what it must keep, `tests/contract/test_backbones.py` checks it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import cast

from forward_ofa_device.backbones.contract import Backbone, BackboneConfig


def names() -> list[str]:
    """The backbones that there are."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "contract")


def build(config: BackboneConfig) -> Backbone:
    """The backbone that `config.name` names. Raises ValueError for an unknown one."""
    if config.name not in names():
        raise ValueError(f"unknown backbone {config.name!r}: there are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{config.name}")
    return cast(Backbone, module.build(config))
