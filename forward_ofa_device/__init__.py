"""The device SDK: reranks with a network that was made for this device. numpy and grpcio only.

    from forward_ofa_device import Device

    with Device("/data/app/recommender", controller="recommender.example.com:443") as device:
        device.observe("item-42")       # the user touched an item; stays on the device
        device.refresh()                # asks the cloud if there is reason to
        device.rerank(top=10)           # works offline from then on

Names are resolved on first use: what needs only the file formats
(`forward_ofa_device.artefact`, `.bundle`) never imports grpc.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forward_ofa_device.cloud import Connection
    from forward_ofa_device.device import Device
    from forward_ofa_device.errors import (
        CloudError,
        CorruptFile,
        DeviceError,
        ImpossibleBudget,
        NotReady,
        StorageError,
        UnknownItem,
        WrongVersion,
    )
    from forward_ofa_device.outcome import Ranked, RefreshOutcome
    from forward_ofa_device.policy import Budget, RefreshPolicy
    from forward_ofa_device.wire import Cost

_HOME = {
    "Connection": "cloud",
    "Device": "device",
    "Ranked": "outcome",
    "RefreshOutcome": "outcome",
    "CloudError": "errors",
    "CorruptFile": "errors",
    "DeviceError": "errors",
    "ImpossibleBudget": "errors",
    "NotReady": "errors",
    "StorageError": "errors",
    "UnknownItem": "errors",
    "WrongVersion": "errors",
    "Budget": "policy",
    "RefreshPolicy": "policy",
    "Cost": "wire",
}

__all__ = [
    "Budget",
    "CloudError",
    "Connection",
    "CorruptFile",
    "Cost",
    "Device",
    "DeviceError",
    "ImpossibleBudget",
    "NotReady",
    "Ranked",
    "RefreshOutcome",
    "RefreshPolicy",
    "StorageError",
    "UnknownItem",
    "WrongVersion",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
