"""The systems that Forward-OFA is compared with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forward_ofa.config import MethodConfig, Options


def network_settings(method: MethodConfig, options: Options, **more: Any) -> dict[str, Any]:
    """A task's `settings` for a system that has the backbone of a run and options of its own."""
    return {
        "backbone": dataclasses.asdict(method.backbone),
        "dropout": method.dropout,
        "options": dataclasses.asdict(options),
        **more,
    }
