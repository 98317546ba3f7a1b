"""`forward-ofa demo`: everything once, for real, on one machine. `make demo` runs it."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from forward_ofa_cli import source
from forward_ofa_cli.console import console, duration, note, printable, say
from forward_ofa_cli.errors import CommandError
from forward_ofa_cli.train import configured, train_and_tell

if TYPE_CHECKING:
    from forward_ofa.config import RunConfig
    from forward_ofa.data import SequenceDataset
    from forward_ofa.runs import Run

STEPS = 5


@source.with_source
def demo(
    log: source.Source,
    quick: Annotated[
        bool, typer.Option("--quick", help="Hardly any training: seconds, the figures mean little.")
    ] = False,
    backbone: Annotated[str, typer.Option(help="sasrec or nextitnet.")] = "sasrec",
    devices: Annotated[int, typer.Option(min=1, help="Users whose devices are run.")] = 100,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Take the run of an earlier demo instead of training.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="Where the run is kept.")] = Path("runs"),
) -> None:
    """Read a log, train, publish, serve, let devices ask for networks and rerank, report.

    Everything is real: the log, the training, the services over gRPC, and devices in a process
    that has no torch. The report stays in the run's folder, and the version in its registry.

    Examples:

    `forward-ofa demo`  with MovieLens-100K, downloaded

    `forward-ofa demo --data path/to/ml-1m`

    `forward-ofa demo --data synthetic --quick`
    """
    signal.signal(signal.SIGTERM, _interrupt)
    out = console()
    started = time.monotonic()
    recipe = "quick" if quick else "default"
    configured(recipe, backbone)  # an unknown backbone is refused before a long log is read
    prepared = _read(log, out)
    config = configured(recipe, backbone, prepared.num_interactions, users=prepared.num_users)
    folder = runs / f"demo-{prepared.name}{'' if backbone == 'sasrec' else '-' + backbone}"
    _step(out, 2, "Train Forward-OFA, and DeviceRec to compare with")
    run = _train(prepared, config, folder, log, reuse, out)
    version = _publish(run, prepared, folder / "registry", out)
    result = {
        "run": run.report,
        "data": run.data_card,
        "version": version,
        "registry": str(folder / "registry"),
        **_cloud_and_devices(prepared, folder, version, devices, out),
        "seconds": time.monotonic() - started,
    }
    _report(result, folder, out)


def _interrupt(*_: object) -> None:
    """A plain `kill` must end the children as Ctrl-C does."""
    raise KeyboardInterrupt


def _step(out: Console, number: int, title: str) -> None:
    out.print(f"\n[bold cyan]{number}/{STEPS}[/] [bold]{escape(title)}[/]")


def _read(chosen: source.Source, out: Console) -> SequenceDataset:
    prepared = chosen.load(out)
    out.print(Text.assemble(("Data:", "bold"), f" {printable(prepared.source)}"), soft_wrap=True)
    _step(out, 1, "Read the log")
    for text in prepared.notes:  # filter and split are in the protocol card below
        note(out, text)
    return prepared


def _train(
    data: SequenceDataset, config: RunConfig, folder: Path, chosen: source.Source,
    reuse: bool, out: Console,
) -> Run:  # fmt: skip
    from forward_ofa.checkpoint import CheckpointError
    from forward_ofa.runs import RunError, discard, load_run

    if reuse:
        run = load_run(folder)
        if run.data_card["fingerprint"] != data.fingerprint():
            raise RunError(f"the run in {folder} is of another log: leave out --reuse")
        took = duration(run.report["seconds"])
        say(out, f"  Reusing the run in {folder}, trained in {took}.")
        return run
    chosen.remember(folder, data.name)
    try:
        # Goes on where a demo with the same settings was interrupted.
        return train_and_tell(data, config, folder, out, resume=True)
    except CheckpointError:
        out.print("  An interrupted demo with other settings is here: starting anew.")
        discard(folder)
        return train_and_tell(data, config, folder, out, resume=True)


def _publish(run: Run, data: SequenceDataset, registry: Path, out: Console) -> str:
    from forward_ofa_cli.publish import publish_run

    _step(out, 3, "Publish an immutable version")
    version = publish_run(run, data, registry, "stable")
    say(out, f"  Version {version}, label stable, in {registry}.")
    return version


def _cloud_and_devices(
    data: SequenceDataset, folder: Path, version: str, devices: int, out: Console
) -> dict[str, Any]:
    from forward_ofa_cli.demo_cloud import Cloud, bundle_bytes, population
    from forward_ofa_cli.lives import write_lives

    work = folder / "devices"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    _step(out, 4, "Start controller, mapper and assembler in one process")
    with Cloud.started(folder / "registry", folder / "services.log") as cloud:
        out.print(f"  gRPC, health and reflection on {cloud.address}, health says SERVING.")
        out.print(f"  Metrics on http://{cloud.metrics}/metrics.")
        count = write_lives(data, devices, work / "lives.jsonl")
        _step(out, 5, f"{count} devices, each with a real user's history, without torch")
        summary = population(cloud.address, work, out)
        metrics = cloud.scrape(summary)
    out.print("  Every device got its network; the metrics agree with what they counted.")
    return {
        "devices": summary,
        "metrics": metrics,
        "bundle_bytes": bundle_bytes(folder / "registry", version),
    }


def _report(result: dict[str, Any], folder: Path, out: Console) -> None:
    from forward_ofa.runs import write_json
    from forward_ofa_cli.demo_report import sections
    from forward_ofa_cli.report import markdown, show

    told = sections(result, folder)
    text = markdown(f"Forward-OFA on {result['data']['name']}", told)
    try:
        write_json(folder / "demo.json", result)
        temporary = folder / "report.md.writing"
        temporary.write_text(text)
        temporary.replace(folder / "report.md")
    except OSError as error:
        raise CommandError(f"{folder}: the report cannot be written: {error.strerror}") from None
    show(out, told)
    out.print()
    out.print(
        Text(
            f"Took {duration(result['seconds'])} in all. This report: "
            f"{printable(str(folder / 'report.md'))}, for programs: "
            f"{printable(str(folder / 'demo.json'))}",
            style="dim",
        )
    )
