"""Before devices are sent to a version: can the services behind answer for it?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from forward_ofa_device.artefact import pack_path
from services.controller.served import ServedVersion
from services.ports import Assembler, GenerationRequest

REHEARSAL_SECONDS = 10.0


def rehearsal(assembler: Assembler) -> Callable[[ServedVersion], Awaitable[None]]:
    """Has one network with all blocks assembled, from nobody's interest.

    Assembler and mapper load and warm up the version for it, if they have not yet. Raises the
    assembler's Fault.
    """

    async def rehearse(served: ServedVersion) -> None:
        await assembler.assemble(
            GenerationRequest(
                served.version,
                pack_path([True] * served.backbone.blocks),
                np.zeros(served.backbone.hidden, "<f4").tobytes(),
                "float16",
                REHEARSAL_SECONDS,
            )
        )

    return rehearse
