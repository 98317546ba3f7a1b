"""Figure 7: bytes of a model update, and how long a link takes for them."""

from __future__ import annotations

from functools import cache

from forward_ofa_device.artefact import BlockLayout, Encoding, artefact_bytes
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig

_VERSION = "20250131-120000-0a1b2c3d"
"""As long as every version's id is; it stands in an artefact's header."""


@cache
def update_bytes(backbone: str, blocks: int, encoding: Encoding) -> tuple[int, ...]:
    """Bytes of the artefact with 0, 1, .. L kept blocks, header included."""
    layout = BlockLayout.of(build(BackboneConfig(backbone, blocks=blocks)).block_parameters())
    paths = (tuple(block < kept for block in range(blocks)) for kept in range(blocks + 1))
    return tuple(artefact_bytes(_VERSION, backbone, path, encoding, layout) for path in paths)


def update_milliseconds(size: float, link_mbit_per_second: float) -> float:
    """Transfer time of `size` bytes alone: no latency, no protocol."""
    return size * 8 / 1e6 / link_mbit_per_second * 1000
