"""`forward-ofa plan`: what a fleet of devices needs of the cloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from forward_ofa_cli.console import console
from forward_ofa_cli.errors import CommandError, Exit

if TYPE_CHECKING:
    from forward_ofa_cli.capacity.demand import Demand
    from forward_ofa_cli.capacity.sizes import Shape

_TRAFFIC, _MODEL, _ROOM, _OUTPUT = "Traffic", "Version", "Room", "Output"
_OF_A_VERSION = ("backbone", "blocks", "hidden", "items", "id_bytes")


def _option(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


Number: TypeAlias = float | None
Count: TypeAlias = int | None


def plan(
    devices: Annotated[int, _option("Devices that are active on a day.", _TRAFFIC)],
    sessions_per_day: Annotated[Number, _option("Of a device.", _TRAFFIC)] = None,
    requests_per_session: Annotated[
        Number, _option("Networks that a device asks for in a session.", _TRAFFIC)
    ] = None,
    rankings_per_session: Annotated[
        Number, _option("Lists that a device ranks; for the comparison.", _TRAFFIC)
    ] = None,
    peak_to_mean: Annotated[
        Number, _option("Busiest minutes of a region against its day.", _TRAFFIC)
    ] = None,
    session_minutes: Annotated[
        Number, _option("From a session's first to its last request.", _TRAFFIC)
    ] = None,
    session_ttl: Annotated[Number, _option("Seconds, as of `serve`.", _TRAFFIC)] = None,
    new_items: Annotated[
        Number, _option("Share of candidates that are new in a later request.", _TRAFFIC)
    ] = None,
    updates_per_day: Annotated[
        Number, _option("Versions that a device moves to.", _TRAFFIC)
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="End TLS in our own processes, or in a balancer in front.",
            rich_help_panel=_TRAFFIC,
        ),
    ] = None,
    encoding: Annotated[str | None, _option("float32, float16 or int8.", _MODEL)] = None,
    kept_blocks: Annotated[Number, _option("Of a network, mean. Default: all.", _MODEL)] = None,
    candidates: Annotated[Count, _option("Items that a device gets to rerank.", _MODEL)] = None,
    backbone: Annotated[
        str | None, _option("sasrec or nextitnet. Default: sasrec.", _MODEL)
    ] = None,
    blocks: Annotated[Count, _option("L, if not the paper's 6 or 12.", _MODEL)] = None,
    hidden: Annotated[Count, _option("Width d. Default: 64.", _MODEL)] = None,
    items: Annotated[Count, _option("Of the catalogue. Default: 100000.", _MODEL)] = None,
    id_bytes: Annotated[Count, _option("Of an item id, mean. Default: 10.", _MODEL)] = None,
    registry: Annotated[
        str | None, _option("Take sizes and kept blocks from a published version.", _MODEL)
    ] = None,
    version: Annotated[
        str | None, _option("Which one, or a label. Default: stable.", _MODEL)
    ] = None,
    more_shards: Annotated[
        Number, _option("Item shards that a device fetches beside the most popular items.", _MODEL)
    ] = None,
    versions: Annotated[Count, _option("Versions in memory at once.", _MODEL)] = None,
    examples: Annotated[Number, _option("Targets that a version is trained on.", _MODEL)] = None,
    epochs: Annotated[Number, _option("How often.", _MODEL)] = None,
    layout: Annotated[
        str | None, _option("split (three services), joined (mapper with assembler) or one.", _ROOM)
    ] = None,
    utilisation: Annotated[Number, _option("Of a pod's cores at the peak.", _ROOM)] = None,
    processes: Annotated[Count, _option("Of a pod, as `serve --processes`.", _ROOM)] = None,
    zones: Annotated[Count, _option("Of a region.", _ROOM)] = None,
    regions: Annotated[Count, _option("With devices spread evenly.", _ROOM)] = None,
    spare: Annotated[
        str | None, _option("What may be lost at the peak: none, zone or region.", _ROOM)
    ] = None,
    redis_gb: Annotated[Number, _option("Memory of one Redis node.", _ROOM)] = None,
    costs: Annotated[
        Path | None,
        _option("Figures of your machine: `python -m benchmarks.capacity --out FILE`.", _OUTPUT),
    ] = None,
    as_json: Annotated[bool, _option("Everything, as JSON.", _OUTPUT, "--json")] = False,
) -> None:
    """Cores, pods, bytes and memory for so many devices, from measured costs.

    Prints every assumption. docs/capacity.md has the formulas, and how well they hold.

    Examples:

    `forward-ofa plan --devices 100000000 --sessions-per-day 8`

    `forward-ofa plan --devices 1000000 --encoding int8 --kept-blocks 4.5 --layout split`

    `forward-ofa plan --devices 1000000 --registry registry --version stable --json`
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from forward_ofa_cli import plan_view
    from forward_ofa_cli.capacity.comparison import compare
    from forward_ofa_cli.capacity.costs import CostsError, read_costs
    from forward_ofa_cli.capacity.demand import DemandError
    from forward_ofa_cli.capacity.planning import make_plan

    try:
        measured = read_costs(costs)
        shape, kept = _shape(given)
        demand = _demand(given, kept)
        made = make_plan(demand, shape, measured)
    except (CostsError, DemandError) as error:
        raise CommandError(str(error), Exit.USAGE) from None
    ways = compare(made, measured)
    if as_json:
        typer.echo(json.dumps(plan_view.as_json(made, ways, measured), indent=2, allow_nan=False))
    else:
        plan_view.show(console(), made, ways, measured)


def _demand(given: dict[str, Any], kept: float | None) -> Demand:
    """kept: mean of the published version; what the command line says counts more."""
    from dataclasses import fields

    from forward_ofa_cli.capacity.demand import Demand

    names = {each.name for each in fields(Demand)}
    values = {name: value for name, value in given.items() if name in names}
    if kept is not None:
        values.setdefault("kept_blocks", kept)
    return Demand(**values)


def _shape(given: dict[str, Any]) -> tuple[Shape, float | None]:
    """The version's sizes, and its mean of kept blocks if that is known.

    Raises CommandError, RegistryError.
    """
    if "registry" in given:
        return _published(given)
    from forward_ofa_cli.capacity.sizes import Shape
    from forward_ofa_device.backbones import names
    from forward_ofa_device.backbones.contract import BackboneConfig

    if "version" in given:
        raise CommandError("--version names one of a registry: give --registry too", Exit.USAGE)
    name = given.get("backbone", "sasrec")
    if name not in names():
        raise CommandError(f"--backbone {name}: use {' or '.join(names())}.", Exit.USAGE)
    usual = {"nextitnet": 12}.get(name, 6)
    try:
        config = BackboneConfig(name, given.get("blocks", usual), given.get("hidden", 64))
        return Shape.of(config, given.get("items", 100_000), given.get("id_bytes", 10)), None
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from None


def _published(given: dict[str, Any]) -> tuple[Shape, float | None]:
    """Raises CommandError, RegistryError."""
    from forward_ofa_cli.capacity.sizes import Shape, mean_kept_blocks
    from forward_ofa_cli.publish import open_place
    from services.errors import Fault, Reason

    own = [f"--{name.replace('_', '-')}" for name in _OF_A_VERSION if name in given]
    if own:
        raise CommandError(
            f"{', '.join(own)}: the version has its own; leave out this or --registry", Exit.USAGE
        )
    where, wanted = given["registry"], given.get("version", "stable")
    if not where:
        raise CommandError("--registry is empty: give a folder or a URL", Exit.USAGE)
    registry = open_place(where)
    registry.check()
    try:
        published = registry.open(registry.labels().get(wanted, wanted))
        return Shape.published(published), mean_kept_blocks(published)
    except Fault as fault:
        # What the Fault advises is for devices.
        look = f"`forward-ofa versions list --registry {where}`"
        if fault.reason == Reason.UNKNOWN_VERSION:
            what = f"{where} has no version or label {wanted[:64]!r}: {look} shows those it has"
        else:
            what = (
                f"{fault.text} ({fault.detail}): publish the run again, or name another version; "
                f"{look} shows them"
            )
        raise CommandError(what, Exit.BAD_VERSION) from None
