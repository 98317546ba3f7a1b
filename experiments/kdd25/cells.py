"""A cell: one system, trained once or looked at in one way, with everything that makes it another.

Tables share cells: DeviceRec of one data set, backbone and seed stands in five tables and is the
start of three systems, and is trained once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.kdd25 import paper
from experiments.kdd25.datasets import ALL

OPTION = "options."
"""What the names of a system's own options begin with among a cell's overrides."""
STAGES = ("foundation", "device_rec", "training")
"""What of RunConfig says how a stage is trained; "STAGE.FIELD" is a field of its TrainingConfig."""
EARLIER_STAGES = ("foundation.", "device_rec.")
"""Those that other systems of the same settings share."""
Override = tuple[str, float | int | str | bool]


@dataclass(frozen=True, order=True)
class Cell:
    """dataset: a key of `datasets.ALL`. backbone: "sasrec" or "nextitnet". blocks: L.

    system: as `forward-ofa train --system` names it. recipe: "paper", or another of
    `forward_ofa.recipes`. seed: of everything that is drawn.
    look: "" trains the system; else what is done with the trained one: "random", "first", "last"
    (other blocks of the same number, Table 3), "case" (Figure 6), "time" (Table 8).
    epochs: instead of the recipe's; None: the recipe's.
    overrides: what differs from the recipe, sorted by name: fields of MethodConfig, "STAGE.FIELD"
        of one of `STAGES`, or `OPTION` and a field of the system's own options.
    """

    dataset: str
    backbone: str
    system: str
    seed: int = 0
    blocks: int = 0
    recipe: str = "paper"
    look: str = ""
    epochs: int | None = None
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if self.dataset not in ALL:
            raise ValueError(f"unknown data set {self.dataset!r}: there are {', '.join(ALL)}")
        if not self.blocks:
            blocks = int(paper.setting("blocks", self.backbone))
            object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "overrides", tuple(sorted(self.overrides)))

    @property
    def name(self) -> str:
        """Its identity, and the name of its folder."""
        parts = [self.dataset, f"{self.backbone}{self.blocks}", self.system, self.recipe]
        parts += [f"{name}={value}" for name, value in self.overrides]
        if self.epochs is not None:
            parts.append(f"e{self.epochs}")
        parts.append(f"s{self.seed}")
        if self.look:
            parts.append(self.look)
        return "_".join(parts)

    @property
    def trained(self) -> Cell:
        """The cell whose trained system this one looks at; itself if it trains."""
        return dataclasses.replace(self, look="")

    def with_seed(self, seed: int) -> Cell:
        return dataclasses.replace(self, seed=seed)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "overrides": dict(self.overrides)}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Cell:
        """What `to_json` wrote. Raises TypeError, KeyError or ValueError."""
        return Cell(**{**raw, "overrides": tuple(raw["overrides"].items())})
