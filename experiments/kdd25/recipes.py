"""One recipe for every table and figure: which cells it needs, how long they take, what to expect.

Times are estimates for one seed on MovieLens-1M, two CPU cores and the recipe "paper", from the
time of a step; with "default" on MovieLens-100K a cell takes one core 1 to 5 minutes;
`make paper ARGS=--list` estimates for what is asked and knows the cells that were run. The figures
to expect are the paper's. Each takes the recipe of training, which all its cells have: "paper"
(T = 5, a fresh network for every prediction, nothing trained before) or "default".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

from experiments.kdd25 import paper
from experiments.kdd25.cells import EARLIER_STAGES, Cell, Override
from experiments.kdd25.datasets import ALL
from forward_ofa.config import RunConfig
from forward_ofa.cost import network_cost
from forward_ofa.recipes import recipe as training_recipe
from forward_ofa_device.backbones.contract import BackboneConfig

BACKBONES = ("sasrec", "nextitnet")
PAPER, DEFAULT = "paper", "default"
TRAINING = (PAPER, DEFAULT)
"""Recipes of training that there are tables for."""
TITLES = {
    "device-rec": "DeviceRec",
    "finetune": "Finetune",
    "duet": "DUET",
    "sttd": "STTD",
    "rare-gem": "Rare Gem",
    "gater": "Gater",
    "litepred": "LitePred",
    "plus-controller": "+controller",
    "plus-mapper": "+mapper",
    "no-structural-vector": "w.o. structural vector",
    "random": "random block",
    "first": "first k block",
    "last": "last k block",
    "forward-ofa": "Forward-OFA",
}
LAMBDAS = {
    PAPER: (0.0, 0.0005, 0.001, 0.005, 0.01, 0.05),
    DEFAULT: (0.0, 0.0003, 0.0007, 0.0015, 0.003, 0.006),
}
"""Figure 5's, which the paper does not print; each recipe's own values are among them."""


@dataclass(frozen=True)
class Variant:
    """A change of the default recipe. blocks: L instead of the backbone's; 0: the backbone's."""

    title: str
    system: str
    overrides: tuple[Override, ...] = ()
    blocks: int = 0


VARIANTS = (
    Variant("4 blocks", "device-rec", blocks=4),
    Variant("4 blocks", "duet", blocks=4),
    Variant("8 basis networks", "forward-ofa", (("bases", 8),)),
    Variant("extractors read 200 items", "forward-ofa", (("extractor_history", 200),)),
    Variant("no drawn budgets", "forward-ofa", (("cut_probability", 0.0),)),
    Variant("lambda 0.0007", "forward-ofa", (("compact_weight", 0.0007),)),
    Variant("the query trained apart", "forward-ofa", (("retrieval_apart", True),)),
    Variant("structure drawn to the end", "forward-ofa", (("structure_until", 1.0),)),
)
"""What `variants` shows beside the default recipe. With 4 blocks: what the same device could have
at about the cost of Forward-OFA's networks."""

_STRUCTURED = ("forward-ofa", "no-structural-vector", "plus-controller")
_BASELINES = ("device-rec", "finetune", "duet", "sttd", "rare-gem", "gater")


@dataclass(frozen=True)
class Row:
    """key: the row's name in paper.toml, "" if the paper has none. cell: of seed 0."""

    key: str
    title: str
    cell: Cell


@dataclass(frozen=True)
class Part:
    """The rows of one table or figure for one data set, backbone and recipe of training."""

    table: str
    dataset: str
    backbone: str
    rows: tuple[Row, ...]
    recipe: str = PAPER

    @property
    def slug(self) -> str:
        """For names of files."""
        return "-".join(
            [self.dataset, self.backbone, *([] if self.recipe == PAPER else [self.recipe])]
        )


class Recipe(Protocol):
    """One table or figure."""

    __doc__: str | None

    def __call__(self, dataset: str, backbone: str, recipe: str = PAPER) -> Part: ...


def system_cell(
    dataset: str,
    backbone: str,
    system: str,
    recipe: str = PAPER,
    compact_weight: float | None = None,
) -> Cell:
    """One system with a recipe's settings, those of Section 4.1.4 with "paper".

    compact_weight: another lambda.
    """
    like = ALL[dataset].like
    overrides = _constraint(system, backbone, like)
    if system in _STRUCTURED and recipe == PAPER:
        if compact_weight is None:
            compact_weight = paper.setting("compact_weight", backbone, like)
        overrides = (("temperature", paper.setting("temperature", backbone, like)),)
    elif compact_weight == training_recipe(recipe, backbone, 1).method.compact_weight:
        compact_weight = None  # it is the recipe's own: no other cell
    if compact_weight is not None:
        overrides = (*overrides, ("compact_weight", compact_weight))
    return Cell(dataset, backbone, system, recipe=recipe, overrides=overrides)


def _constraint(system: str, backbone: str, like: str) -> tuple[Override, ...]:
    """Compressed networks are compared "under the same device constraints" (Section 4.1.4).

    Rare Gem: the share that the paper's own keeps, or Forward-OFA's where that is all. Gater: as
    many filters open as the paper's. LitePred: Forward-OFA's share of the FLOPs.
    """

    def share(name: str, column: str, fixed: float = 0.0) -> float:
        ours = paper.figure("table1", backbone, like, name, column)
        dense = paper.figure("table1", backbone, like, "device-rec", column)
        return round((ours.value - fixed) / (dense.value - fixed), 4) if ours and dense else 1.0

    if system == "rare-gem":
        own = share("rare-gem", "mbit")
        return (("options.kept", own if own < 1 else share("forward-ofa", "mbit")),)
    if system == "gater":
        config = BackboneConfig(backbone, blocks=int(paper.setting("blocks", backbone)))
        fixed = network_cost(config, 0).flops.paper / 1e6
        return (("options.open_share", share("gater", "mflops", fixed)),)
    if system == "litepred":
        return (("options.cap", share("forward-ofa", "mflops")),)
    return ()


def table1(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Table 1: seven systems, quality and cost.

    make paper ARGS="--only table1:ml-1m:sasrec"
    Duration: SASRec 15 h (DeviceRec 40 min, DUET and Forward-OFA 5 h each), NextItNet twice that.
    Expected: Forward-OFA NDCG@10 0.1182, Hit@10 0.2081, 0.5699 MFLOPs, 3.6384 Mbit with SASRec,
    0.1226, 0.2140, 0.6167, 3.8656 with NextItNet; DeviceRec 0.0969 and 0.0975.
    """
    rows = [_row(dataset, backbone, system, recipe) for system in (*_BASELINES, "forward-ofa")]
    return Part("table1", dataset, backbone, tuple(rows), recipe)


def table2(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Table 2: the controller alone and the mapper alone, beside DeviceRec.

    +mapper is DUET as it is defined here, so its row shows that cell and is not trained twice.

    make paper ARGS="--only table2:ml-1m:sasrec"
    Duration: SASRec 1 h beside Table 1's DeviceRec and DUET.
    Expected: +controller at or below DeviceRec (0.0946 to 0.0969), +mapper far above (0.1142).
    """
    rows = [_row(dataset, backbone, system, recipe) for system in ("device-rec", "plus-controller")]
    rows.append(
        Row("plus-mapper", TITLES["plus-mapper"], system_cell(dataset, backbone, "duet", recipe))
    )
    return Part("table2", dataset, backbone, tuple(rows), recipe)


def table3(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Table 3: the trained Forward-OFA with other blocks, and one without the structural vector.

    make paper ARGS="--only table3:ml-1m:sasrec"
    Duration: SASRec 11 h, of which half is Table 1's; the three replaced structures take a minute.
    Expected: other blocks than the chosen ones collapse (first k: 0.0174 of 0.1182); without the
    structural vector 0.1166.
    """
    rows = [_row(dataset, backbone, "device-rec", recipe)]
    trained = system_cell(dataset, backbone, "forward-ofa", recipe)
    rows += [Row(k, TITLES[k], _looked(trained, k)) for k in ("random", "first", "last")]
    rows += [_row(dataset, backbone, s, recipe) for s in ("no-structural-vector", "forward-ofa")]
    return Part("table3", dataset, backbone, tuple(rows), recipe)


def table4(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Table 4: every baseline on a backbone a third as deep, Forward-OFA on the whole one.

    make paper ARGS="--only table4:ml-1m:sasrec"
    Duration: SASRec 4 h beside Table 1's Forward-OFA.
    Expected: small baselines about as good as large ones (DeviceRec 0.0998), Forward-OFA above.
    """
    blocks = int(paper.setting("small_blocks", backbone))
    rows = [_row(dataset, backbone, system, recipe) for system in _BASELINES]
    rows = [Row(r.key, r.title + "*", dataclasses.replace(r.cell, blocks=blocks)) for r in rows]
    rows.append(_row(dataset, backbone, "forward-ofa", recipe))
    return Part("table4", dataset, backbone, tuple(rows), recipe)


def table7(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Table 7: LitePred, a search for a sub-network a device, beside three of Table 1.

    make paper ARGS="--only table7:ml-1m:sasrec"
    Duration: SASRec 1 h 30 min beside Table 1's cells.
    Expected: LitePred a little above DeviceRec (0.0990 to 0.0969), far below Forward-OFA.
    """
    systems = ("device-rec", "finetune", "litepred", "forward-ofa")
    return Part(
        "table7",
        dataset,
        backbone,
        tuple(_row(dataset, backbone, s, recipe) for s in systems),
        recipe,
    )


def table8(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Table 8: seconds until a device has a network for its new interest.

    make paper ARGS="--only table8:ml-1m:sasrec"
    Duration: a minute after Table 1's Forward-OFA and DeviceRec. Measured where it runs.
    Expected: one forward pass some thousand times faster than fine-tuning.
    """
    trained = system_cell(dataset, backbone, "forward-ofa", recipe)
    row = Row("forward-ofa", TITLES["forward-ofa"], _looked(trained, "time"))
    return Part("table8", dataset, backbone, (row,), recipe)


def figure4(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Figure 4: how often each block is kept, and how many blocks users keep.

    make paper ARGS="--only figure4:ml-1m:sasrec"
    Duration: none beside Table 1's Forward-OFA.
    Expected: first and last blocks kept by most, few users with all blocks.
    """
    return Part(
        "figure4", dataset, backbone, (_row(dataset, backbone, "forward-ofa", recipe),), recipe
    )


def figure5(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Figure 5: quality and cost over lambda.

    make paper ARGS="--only figure5:ml-1m:sasrec"
    Duration: SASRec 25 h: a Forward-OFA for each of six lambdas, of which one is Table 1's.
    Expected: cost falls with lambda; quality has a maximum, then drops.
    """
    rows = [
        Row("", f"lambda {value:g}", system_cell(dataset, backbone, "forward-ofa", recipe, value))
        for value in LAMBDAS[recipe]
    ]
    return Part("figure5", dataset, backbone, tuple(rows), recipe)


def figure6(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Figure 6: a user's own network, the dense one, and one made from another's behaviour.

    make paper ARGS="--only figure6:ml-1m:sasrec"
    Duration: a minute after Table 1's Forward-OFA and DeviceRec.
    Expected: the own network best, the other's worst; also counted over all users.
    """
    trained = system_cell(dataset, backbone, "forward-ofa", recipe)
    row = Row("", TITLES["forward-ofa"], _looked(trained, "case"))
    return Part("figure6", dataset, backbone, (row,), recipe)


def figure7(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Figure 7: how long a model update takes over a link of 40 Mbit/s.

    make paper ARGS="--only figure7:ml-1m:sasrec"
    Duration: none beside Table 1's Forward-OFA.
    Expected: 91 ms against 100 ms (SASRec), 97 ms against 240 ms (NextItNet) in float32.
    """
    return Part(
        "figure7", dataset, backbone, (_row(dataset, backbone, "forward-ofa", recipe),), recipe
    )


def variants(dataset: str, backbone: str, recipe: str = PAPER) -> Part:
    """Not the paper's: what was tried against the default recipe, one change a row.

    make paper ARGS="--only variants:ml-100k:sasrec --recipe default"
    Duration: as long as Table 1's Forward-OFA for each row.
    Expected: see experiments/LOG.md, which has what was tried and dropped too.
    """
    rows = []
    if recipe == DEFAULT:
        rows = [_row(dataset, backbone, s, recipe) for s in ("device-rec", "forward-ofa")]
        for each in (*_controls(dataset, backbone), *VARIANTS, *_fusions(dataset, backbone)):
            cell = Cell(
                dataset, backbone, each.system, blocks=each.blocks, recipe=recipe,
                overrides=each.overrides,
            )  # fmt: skip
            rows.append(Row("", f"{TITLES[each.system]}, {each.title}", cell))
    return Part("variants", dataset, backbone, tuple(rows), recipe)


def _controls(dataset: str, backbone: str) -> tuple[Variant, Variant]:
    """DeviceRec with as many epochs as Forward-OFA has with the DeviceRec that it starts from, and
    Forward-OFA from that one."""
    config = _config(dataset, backbone)
    epochs = config.device_rec.epochs + config.training.epochs
    longer = (("device_rec.epochs", epochs),)
    return (
        Variant(f"{epochs} epochs", "device-rec", longer),
        Variant(f"from a DeviceRec of {epochs} epochs", "forward-ofa", longer),
    )


def _fusions(dataset: str, backbone: str) -> list[Variant]:
    """With the cloud's query where the recipe has it not, and without where it has it."""
    fusion = not _config(dataset, backbone).method.fusion
    title = f"{'with' if fusion else 'without'} the cloud's query added"
    return [Variant(title, system, (("fusion", fusion),)) for system in ("forward-ofa", "duet")]


def _config(dataset: str, backbone: str) -> RunConfig:
    data = ALL[dataset]
    return training_recipe(DEFAULT, backbone, data.interactions, users=data.users)


RECIPES: dict[str, Recipe] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table7": table7,
    "table8": table8,
    "variants": variants,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
}
ONE_SEED = ("table8", "figure5", "figure6")
"""What is not repeated over seeds: a sweep, a case study and a stopwatch."""


def requirements(cell: Cell) -> list[Cell]:
    """Cells whose weights this one needs: DeviceRec of the same data, backbone, recipe, budget and
    seed, which some systems start from and all are compared with, and what a look looks at."""
    found = [] if cell.system == "device-rec" else [_dense(cell)]
    if cell.look:
        found.append(cell.trained)
    return [*found, finetuned(cell)] if cell.look == "time" else found


def finetuned(cell: Cell) -> Cell:
    """The Finetune that Table 8 compares with."""
    return dataclasses.replace(_dense(cell), system="finetune")


def _dense(cell: Cell) -> Cell:
    earlier = tuple(o for o in cell.overrides if o[0].startswith(EARLIER_STAGES))
    return dataclasses.replace(cell, system="device-rec", look="", overrides=earlier)


def _row(dataset: str, backbone: str, system: str, recipe: str) -> Row:
    return Row(system, TITLES[system], system_cell(dataset, backbone, system, recipe))


def _looked(trained: Cell, look: str) -> Cell:
    return dataclasses.replace(trained, look=look)
