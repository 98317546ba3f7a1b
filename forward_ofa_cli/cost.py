"""`forward-ofa cost`: what networks and modules cost, the paper's accounting and the true one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from forward_ofa_cli.console import console as wide
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.pairs import pairs
from forward_ofa_cli.train import Given, Setting, configured, overridden

if TYPE_CHECKING:
    from forward_ofa_device.backbones.contract import BackboneConfig


def cost(
    backbone: Annotated[
        str | None, typer.Option(help="sasrec or nextitnet; both if left out.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(help="L, if not the paper's 6 or 12.")] = None,
    hidden: Annotated[int, typer.Option(help="Width d.")] = 64,
    history: Annotated[int, typer.Option(help="Items that the network reads, T.")] = 5,
    extractor_history: Annotated[
        int | None,
        typer.Option(help="Items that E and E' read at a refresh; as --history if left out."),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="One system's network instead, by its settings in the paper's recipe."),
    ] = None,
    items: Annotated[
        int, typer.Option(min=1, help="Items of the catalogue, with which Finetune multiplies.")
    ] = 3011,
    settings: Setting = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything, every k of kept blocks, as JSON.")
    ] = False,
) -> None:
    """FLOPs, parameters and bytes of sub-models, device modules and hypernetworks.

    FLOPs are multiply-accumulates. "paper" counts as the paper's tables do, "true" counts the
    attention's products as well.

    Examples:

    `forward-ofa cost` is Tables 1 and 5 of the paper.

    `forward-ofa cost --backbone sasrec --blocks 8 --history 50` is what a change would cost.

    `forward-ofa cost --system sttd --set rank=32`

    `forward-ofa cost --json | jq .sasrec.full_network.paper_mflops`
    """
    from forward_ofa.cost import cost_table

    if settings and system is None:
        raise CommandError("--set: give the --system whose option it is.", Exit.USAGE)
    extracted = history if extractor_history is None else extractor_history
    if extracted < 1:
        raise CommandError("--extractor-history must be at least 1.", Exit.USAGE)
    given = Given(texts=settings or ())
    tables = {}
    try:
        for config in _backbones(backbone):
            count = config.blocks if blocks is None else blocks
            wanted = replace(config, blocks=count, hidden=hidden, history=history)
            tables[config.name] = (
                cost_table(wanted, extracted)
                if system is None
                else _of_system(system, wanted, extracted, items, given)
            )
    except ValueError as error:
        raise CommandError(str(error), Exit.USAGE) from None
    if as_json:
        typer.echo(json.dumps(tables, indent=2))
        return
    if system is not None:
        wide().print(_systems(tables))
        return
    console = Console(highlight=False)
    for name, table in tables.items():
        console.print(_networks(name, table))
        console.print(_modules(table))
        console.print()


def _backbones(name: str | None) -> list[BackboneConfig]:
    """The paper's backbones of this name; without one, both. Raises CommandError."""
    from forward_ofa.cost import PAPER_BACKBONES

    names = [config.name for config in PAPER_BACKBONES]
    if name is not None and name not in names:
        raise CommandError(f"--backbone {name}: use {' or '.join(names)}.", Exit.USAGE)
    return [config for config in PAPER_BACKBONES if name in (None, config.name)]


def _of_system(
    name: str, backbone: BackboneConfig, extractor_history: int, items: int, given: Given
) -> dict[str, Any]:
    """What one device's network costs in a system, and what the device runs beside it.

    Raises CommandError for an unknown system or option, ValueError for impossible settings.
    """
    from forward_ofa.cost import module_json
    from forward_ofa.settings import full_name
    from forward_ofa.systems import system_named

    for setting in pairs("--set", given.texts):
        if not full_name(setting).startswith(("method.", "options.")):
            raise CommandError(
                f"--set {setting}: a network's cost hangs on method and options", Exit.USAGE
            )
    config = configured("paper", backbone.name, system=name)
    method = replace(config.method, backbone=backbone, extractor_history=extractor_history)
    config = overridden(replace(config, method=method), given)
    backbone = config.method.backbone
    system = system_named(name)
    module = system.build(config, items)
    module.assume_dearest()
    return {
        "system": name,
        "title": system.title,
        "backbone": backbone.name,
        "blocks": backbone.blocks,
        "options": None if config.options is None else dict(vars(config.options)),
        "network": system.costs(config).means(),
        "device_modules": module_json(module.device_modules()),
    }


def _systems(tables: dict[str, dict[str, Any]]) -> Table:
    title = next(iter(tables.values()))["title"]
    shown = Table(
        title=f"[bold]{title}[/]: a device's network, the dearest where devices have different "
        "ones; and what runs at each refresh",
        title_justify="left",
    )
    for column in (
        "backbone", "blocks", "MFLOPs (paper)", "MFLOPs (true)", "Mbit (paper)", "Mbit (true)",
        "refresh: MFLOPs", "M parameters",
    ):  # fmt: skip
        shown.add_column(column, justify="left" if column == "backbone" else "right")
    for name, table in tables.items():
        network, modules = table["network"], table["device_modules"]
        keys = ("paper_mflops", "true_mflops", "paper_mbit", "true_mbit")
        shown.add_row(
            name,
            str(table["blocks"]),
            *(f"{network[key]:.4f}" for key in keys),
            f"{modules['true_mflops']:.4f}",
            f"{modules['mparameters']:.4f}",
        )
    return shown


def _networks(name: str, table: dict[str, Any]) -> Table:
    title = (
        f"[bold]{name}[/]: {table['blocks']} blocks, d = {table['hidden']}, "
        f"T = {table['history']}. A sub-model on the device, one inference"
    )
    shown = Table(title=title, title_justify="left")
    for column in (
        "kept blocks", "MFLOPs (paper)", "MFLOPs (true)", "Mbit (paper, float32)",
        "bytes float32", "bytes float16", "bytes int8",
    ):  # fmt: skip
        shown.add_column(column, justify="right")
    for row in table["network_by_kept_blocks"]:
        sizes = row["payload_bytes"]
        shown.add_row(
            str(row["kept_blocks"]),
            f"{row['paper_mflops']:.4f}",
            f"{row['true_mflops']:.4f}",
            f"{row['paper_mbit']:.4f}",
            *(f"{sizes[encoding]:,}" for encoding in ("float32", "float16", "int8")),
        )
    return shown


def _modules(table: dict[str, Any]) -> Table:
    shown = Table(
        title="Around it: the device at each refresh, the cloud at each request",
        title_justify="left",
    )
    for column in ("part", "M parameters", "MFLOPs (paper)", "MFLOPs (true)"):
        shown.add_column(column, justify="left" if column == "part" else "right")
    for key, title in (
        ("forward_device", f"on the device: E, H, E' over {table['extractor_history']} items"),
        ("forward_cloud", "on the cloud: L block hypernetworks, all blocks"),
    ):
        part = table[key]
        shown.add_row(
            title,
            f"{part['mparameters']:.4f}",
            f"{part['paper_mflops']:.4f}",
            f"{part['true_mflops']:.4f}",
        )
    return shown
