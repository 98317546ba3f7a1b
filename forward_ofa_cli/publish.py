"""`forward-ofa publish`: a trained run becomes an immutable version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forward_ofa_cli import source
from forward_ofa_cli.console import console, say
from forward_ofa_cli.train import RunDir

if TYPE_CHECKING:
    from forward_ofa.data import SequenceDataset
    from forward_ofa.runs import Run
    from services.controller.indexing import IndexSettings
    from services.registry.contract import Registry

DEFAULT_REGISTRY = "registry"
REGISTRY_HELP = "A folder, or a URL such as s3://BUCKET/PREFIX."
Cache = Annotated[
    Path | None, typer.Option("--registry-cache", help="For copies, if the registry is a URL.")
]


def publish(
    run_dir: RunDir,
    registry: Annotated[str, typer.Option(help=REGISTRY_HELP)] = DEFAULT_REGISTRY,
    label: Annotated[
        str, typer.Option(help="Let this label point at it; services follow `stable`. '': none.")
    ] = "stable",
    data: Annotated[
        str | None, typer.Option(help="Where the log is now, if it is no longer where it was.")
    ] = None,
    cache: Cache = None,
    index: Annotated[
        str, typer.Option(help="How items are found: exact, approximate, or auto by their number.")
    ] = "auto",
    exact_up_to: Annotated[int, typer.Option(help="Items up to which auto is exact.")] = 100_000,
    recall: Annotated[
        float, typer.Option(help="Share of the best 200 items an approximate index must find.")
    ] = 0.98,
    as_json: Annotated[bool, typer.Option("--json", help="Version and label as JSON.")] = False,
) -> None:
    """Export a run and publish it: mapper, items, device bundle, report, with digests.

    The version appears whole or not at all, and never changes. Running services pick up the
    label within a second and keep serving the version before.

    Example: `forward-ofa publish --run-dir runs/ml-1m --label canary`
    """
    from forward_ofa.runs import load_run
    from services.controller.indexing import IndexSettings

    try:
        indexing = IndexSettings(index, exact_up_to, recall)  # type: ignore[arg-type]  # checked
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    out = console(stderr=as_json)
    run = load_run(run_dir)
    log = source.remembered(run_dir, data).load(out)
    version = publish_run(run, log, registry, label, cache, indexing)
    if as_json:
        typer.echo(json.dumps({"version": version, "label": label, "registry": registry}))
        return
    pointing = f", label {label}" if label else ""
    say(out, f"Published version {version}{pointing} in {registry}.")
    say(out, f"Serve it: forward-ofa serve --registry {registry}")


def open_place(registry: str | Path, cache: Path | None = None) -> Registry:
    """The registry that a command line names. Raises RegistryError."""
    from services.registry.location import open_registry
    from services.registry.settings import CacheSettings

    return open_registry(registry, None if cache is None else CacheSettings(cache))


def publish_run(
    run: Run,
    data: SequenceDataset,
    where: str | Path,
    label: str,
    cache: Path | None = None,
    indexing: IndexSettings | None = None,
) -> str:
    """Export, publish, label; returns the version's id.

    Raises RegistryError, RunError if `data` is not the run's, Fault, OSError.
    """
    from services.publishing import publish_run as publish_to

    registry = open_place(where, cache)
    version = publish_to(run, data, registry, indexing)
    if label:
        registry.label(label, version)
    return version
