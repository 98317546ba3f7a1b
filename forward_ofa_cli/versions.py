"""`forward-ofa versions`: what is published, and what the labels point at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from forward_ofa_cli.console import console, note, size
from forward_ofa_cli.errors import CommandError, Exit
from forward_ofa_cli.publish import DEFAULT_REGISTRY

if TYPE_CHECKING:
    from services.registry.files import FileRegistry

app = typer.Typer(no_args_is_help=True, help="List, inspect, label and remove published versions.")
Root = Annotated[Path, typer.Option("--registry", help="The registry's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", show_default=False)]


@app.command("list")
def list_versions(registry: Root = DEFAULT_REGISTRY, as_json: AsJson = False) -> None:
    """All versions, oldest first. Example: `forward-ofa versions list --registry registry`"""
    from services.registry.files import FileRegistry

    found = FileRegistry(_existing(registry))
    labels: dict[str, list[str]] = {}
    for name, version in found.labels().items():
        labels.setdefault(version, []).append(name)
    rows: list[dict[str, Any]] = [
        {
            "version": manifest.version,
            "labels": labels.get(manifest.version, []),
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
    table = Table("version", "labels", "created", "backbone")
    for column in ("items", "NDCG@10", "mean blocks", "size"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["version"], ", ".join(row["labels"]), row["created"], row["backbone"],
            f"{row['items']:,}", _number(row["ndcg@10"]), _number(row["mean_kept_blocks"]),
            size(row["bytes"]),
        )  # fmt: skip
    console().print(table if rows else "No version yet. Publish one: forward-ofa publish --help")


@app.command()
def show(
    version: Version,
    registry: Root = DEFAULT_REGISTRY,
    as_json: AsJson = False,
) -> None:
    """One version, after every file was verified. VERSION may be a label.

    Example: `forward-ofa versions show stable`
    """
    from services.registry.files import FileRegistry

    found = FileRegistry(_existing(registry))
    with _told_to_operators(found, version):
        opened = found.open(found.labels().get(version, version))
        opened.verify()
    raw: dict[str, Any] = json.loads((opened.root / "manifest.json").read_text())
    if as_json:
        typer.echo(json.dumps(raw, indent=2))
        return
    out = console()
    out.print(f"[bold]{raw['version']}[/], created {raw['created']}, every file as published")
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
) -> None:
    """Let a label point at a version, which is verified first; this is also how to roll back.

    Example: `forward-ofa versions label stable 20250131-120000-0a1b2c3d`
    """
    from services.registry.files import FileRegistry

    found = FileRegistry(_existing(registry))
    before = found.current(name)
    with _told_to_operators(found, version):
        found.label(name, version)
    was = f" (was {before})" if before not in (None, version) else ""
    typer.echo(f"{name} -> {version}{was}. Running services follow within seconds.")


@app.command()
def rollback(
    registry: Root = DEFAULT_REGISTRY,
    name: Annotated[str, typer.Option("--label", help="Which label.")] = "stable",
) -> None:
    """Let a label point at the version that was published before its present one.

    Example: `forward-ofa versions rollback --label stable`
    """
    from services.registry.files import FileRegistry

    found = FileRegistry(_existing(registry))
    present = found.current(name)
    ids = [manifest.version for manifest in found.versions()]
    if present is None:
        raise CommandError(
            f"there is no label {name!r} in {registry}; there are: {_listed(found.labels())}",
            Exit.BAD_VERSION,
        )
    if present not in ids or ids.index(present) == 0:
        raise CommandError(
            f"there is no usable version before {present} for the label {name!r} in "
            f"{registry}: see `forward-ofa versions list`",
            Exit.BAD_VERSION,
        )
    label(name, ids[ids.index(present) - 1], registry)


@app.command()
def remove(version: Version, registry: Root = DEFAULT_REGISTRY) -> None:
    """Delete a version that no label points at.

    Example: `forward-ofa versions remove 20250131-120000-0a1b2c3d`
    """
    from services.registry.files import FileRegistry

    FileRegistry(_existing(registry)).remove(version)
    typer.echo(f"removed {version}")


@contextmanager
def _told_to_operators(found: FileRegistry, version: str) -> Iterator[None]:
    """A Fault speaks to devices; who types these commands can repair what is wrong."""
    from services.errors import Fault, Reason

    try:
        yield
    except Fault as fault:
        if fault.reason == Reason.UNKNOWN_VERSION:
            there = _listed(manifest.version for manifest in found.versions())
            text = f"there is no version {version!r} in {found.root}; there are: {there}"
        else:
            text = (
                f"{fault.text} ({fault.detail}). Publish its run again, then move labels to the "
                "new version and remove this one"
            )
        raise CommandError(text, Exit.BAD_VERSION) from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _existing(registry: Path) -> Path:
    if not registry.is_dir():
        raise CommandError(
            f"there is no registry in {registry}: give --registry, or publish a version first",
            Exit.BAD_VERSION,
        )
    return registry


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""
