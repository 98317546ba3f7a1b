"""`forward-ofa versions`: what is published, and what the labels point at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from forward_ofa_cli.console import console, note, size
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.publish import DEFAULT_REGISTRY, REGISTRY_HELP, Cache, open_place

if TYPE_CHECKING:
    from services.registry.contract import Registry

app = typer.Typer(no_args_is_help=True, help="List, inspect, label and remove published versions.")
Root = Annotated[str, typer.Option("--registry", help=REGISTRY_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", show_default=False)]


@app.command("list")
def list_versions(
    registry: Root = DEFAULT_REGISTRY, as_json: AsJson = False, cache: Cache = None
) -> None:
    """All versions, oldest first. Example: `forward-ofa versions list --registry registry`"""
    found = _existing(registry, cache)
    labels: dict[str, dict[str, float]] = {}
    for name in found.labels():
        pointer = found.pointer(name)
        if pointer is not None:
            labels.setdefault(pointer.version, {})[name] = pointer.percent
    rows: list[dict[str, Any]] = [
        {
            "version": manifest.version,
            "labels": list(labels.get(manifest.version, {})),
            "percent": {n: p for n, p in labels.get(manifest.version, {}).items() if p},
            "created": manifest.created,
            "backbone": manifest.backbone.name,
            "items": manifest.items,
            "ndcg@10": manifest.metrics.get("ndcg@10"),
            "mean_kept_blocks": manifest.metrics.get("mean_kept_blocks"),
            "bytes": sum(entry.bytes for entry in manifest.files.values()),
        }
        for manifest in found.versions()
    ]
    for version, why in sorted(found.damaged().items()):
        console(stderr=True).print(f"Left out: {version}. {why}", markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(Column("version", overflow="fold", min_width=24), "labels", "created", "backbone")
    for column in ("items", "NDCG@10", "mean blocks", "size"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["version"], _shown(row["labels"], row["percent"]),
            row["created"][:16].replace("T", " "), row["backbone"],
            f"{row['items']:,}", _number(row["ndcg@10"]), _number(row["mean_kept_blocks"]),
            size(row["bytes"]),
        )  # fmt: skip
    console().print(table if rows else "No version yet. Publish one: forward-ofa publish --help")


@app.command()
def show(
    version: Version,
    registry: Root = DEFAULT_REGISTRY,
    as_json: AsJson = False,
    cache: Cache = None,
) -> None:
    """One version, after every file was verified. VERSION may be a label.

    Example: `forward-ofa versions show stable`
    """
    found = _existing(registry, cache)
    with _told_to_operators(found, version):
        opened = found.open(found.labels().get(version, version))
        opened.verify()
    raw: dict[str, Any] = json.loads((opened.root / "manifest.json").read_text())
    if as_json:
        typer.echo(json.dumps(raw, indent=2))
        return
    out = console()
    out.print(
        Text.assemble(
            (raw["version"], "bold"), f", created {raw['created']}, every file as published"
        )
    )
    for line in raw.get("protocol", []):
        note(out, line)
    table = Table("file", "sha256")
    table.add_column("bytes", justify="right")
    for name, entry in raw["files"].items():
        table.add_row(name, entry["sha256"][:16], f"{entry['bytes']:,}")
    out.print(table)


@app.command()
def label(
    name: Annotated[str, typer.Argument(metavar="LABEL", show_default=False)],
    version: Version,
    registry: Root = DEFAULT_REGISTRY,
    percent: Annotated[
        float, typer.Option(min=0, max=100, help="Share of the sessions, for `canary`.")
    ] = 0.0,
    cache: Cache = None,
) -> None:
    """Let a label point at a version, which is verified first. VERSION may be a label.

    A session stays on its side of the share. With 0 percent a canary is loaded, and answers
    only who names it.

    Example: `forward-ofa versions label canary 20250131-120000-0a1b2c3d --percent 5`
    """
    found = _existing(registry, cache)
    version = found.labels().get(version, version)
    before = found.current(name)
    with _told_to_operators(found, version):
        found.label(name, version, percent)
    share = f" for {percent:g} % of the sessions" if percent else ""
    was = f" (was {before})" if before not in (None, version) else ""
    typer.echo(f"{name} -> {version}{share}{was}. Running services follow within seconds.")


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="[LABEL]")] = "canary",
    registry: Root = DEFAULT_REGISTRY,
    cache: Cache = None,
) -> None:
    """The canary passed: `stable` points at its version, and the label goes.

    Example: `forward-ofa versions promote canary`
    """
    found = _existing(registry, cache)
    version = found.current(name)
    if version is None or name == "stable":
        raise CommandError(
            f"there is no label {name!r} to promote in {found.location}; there are: "
            f"{_listed(found.labels())}",
            Exit.BAD_VERSION,
        )
    before = found.current()
    # In this order no session leaves the canary's version on the way.
    with _told_to_operators(found, version):
        found.label("stable", version)
    found.unlabel(name)
    was = f" (was {before})" if before not in (None, version) else ""
    typer.echo(f"stable -> {version}{was}, {name} removed. Running services follow within seconds.")


@app.command()
def unlabel(
    name: Annotated[str, typer.Argument(metavar="LABEL", show_default=False)],
    registry: Root = DEFAULT_REGISTRY,
    cache: Cache = None,
) -> None:
    """Take a label away: this ends a canary. Its sessions go back to `stable`.

    Example: `forward-ofa versions unlabel canary`
    """
    found = _existing(registry, cache)
    found.unlabel(name)
    typer.echo(f"removed the label {name}. Running services follow within seconds.")


@app.command()
def rollback(
    registry: Root = DEFAULT_REGISTRY,
    name: Annotated[str, typer.Option("--label", help="Which label.")] = "stable",
    cache: Cache = None,
) -> None:
    """Let a label point where it pointed before, after that version was verified.

    Example: `forward-ofa versions rollback`
    """
    found = _existing(registry, cache)
    present = found.current(name)
    with _told_to_operators(found, present or ""):
        label = found.rollback(name)
    typer.echo(
        f"{name} -> {label.version} (was {present}). Running services follow within seconds."
    )


@app.command()
def remove(version: Version, registry: Root = DEFAULT_REGISTRY, cache: Cache = None) -> None:
    """Delete a version that no label points at.

    Example: `forward-ofa versions remove 20250131-120000-0a1b2c3d`
    """
    _existing(registry, cache).remove(version)
    typer.echo(f"removed {version}")


@contextmanager
def _told_to_operators(found: Registry, version: str) -> Iterator[None]:
    """A Fault speaks to devices; who types these commands can repair what is wrong."""
    from services.errors import Fault, Reason

    try:
        yield
    except Fault as fault:
        if fault.reason == Reason.UNKNOWN_VERSION:
            there = _listed(manifest.version for manifest in found.versions())
            text = f"there is no version {version!r} in {found.location}; there are: {there}"
        else:
            text = (
                f"{fault.text} ({fault.detail}). Publish its run again, then move labels to the "
                "new version and remove this one"
            )
        raise CommandError(text, Exit.BAD_VERSION) from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _shown(names: list[str], percent: dict[str, float]) -> str:
    return ", ".join(f"{name} {percent[name]:g} %" if name in percent else name for name in names)


def _existing(registry: str, cache: Path | None) -> Registry:
    found = open_place(registry, cache)
    found.check()
    return found


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""
