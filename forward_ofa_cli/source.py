"""Which interaction log a command works on, and how a run remembers it."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console

from forward_ofa_cli.console import DownloadProgress
from forward_ofa_cli.errors import CommandError, Exit

if TYPE_CHECKING:
    from forward_ofa.data import FilterChoice, SequenceDataset, SplitConfig

SOURCE = "source.json"
SYNTHETIC = "synthetic"
CACHE = Path(".cache/data")
PANEL = "The log"


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=PANEL, **more)


@dataclass(frozen=True)
class Source:
    """Everything that `forward_ofa.data` needs to give the same data set again.

    Each field is an option of the commands that work on a log (see `with_source`).
    """

    data: Annotated[
        str | None,
        _option(
            "A file or folder on disk (MovieLens, Amazon, RecBole .inter, CSV, JSON lines, "
            "Parquet), a public data set to download (`forward-ofa data` lists them), or "
            "`synthetic`. Left out: ml-100k, or a synthetic log without a network.",
            metavar="LOG",
            show_default=False,
        ),
    ] = None
    user_column: Annotated[str | None, _option("Name of the user column of a table.")] = None
    item_column: Annotated[str | None, _option("Name of the item column of a table.")] = None
    time_column: Annotated[str | None, _option("Name of the time column of a table.")] = None
    header: Annotated[
        str | None,
        _option("Names of all columns of a CSV without a header line, separated by commas."),
    ] = None
    min_user: Annotated[int | None, _option("Drop users with fewer interactions.", min=0)] = None
    min_item: Annotated[
        int | None,
        _option(
            "Drop items with fewer interactions. If nothing is said of --min-user, --min-item, "
            "--strict-item and --iterate: the paper's filter where it fits the log, else 5 and 5.",
            min=0,
        ),
    ] = None
    strict_item: Annotated[
        bool | None,
        _option("Items need more than --min-item, or at least.", "--strict-item/--least-item"),
    ] = None
    iterate: Annotated[
        bool | None,
        _option("Repeat the filter until stable (default), or count once.", "--iterate/--once"),
    ] = None
    ties: Annotated[
        str | None,
        _option("Order of one user's interactions of one time: file (default) or hash."),
    ] = None
    deduplicate: Annotated[
        str | None,
        _option("exact (default): rows that repeat user, item and time; consecutive: also an item "
                "directly after itself; keep."),
    ] = None  # fmt: skip
    split: Annotated[
        str, _option("position: last item test, second last validation; or time: global moments.")
    ] = "position"
    validation_share: Annotated[
        float, _option("By time: share of all interactions in the validation period.")
    ] = 0.1
    test_share: Annotated[
        float, _option("By time: share of all interactions in the test period, the last one.")
    ] = 0.1
    validation_from: Annotated[
        str | None,
        _option("By time: where validation begins, an ISO 8601 time or a number as in the log."),
    ] = None
    test_from: Annotated[str | None, _option("By time: where test begins.")] = None
    cache: Annotated[
        str, _option("Where downloaded and prepared logs are kept.", show_default=True)
    ] = str(CACHE)

    def load(self, out: Console) -> SequenceDataset:
        """Read (or download, or generate) and prepare. Raises DataError, CommandError (usage)."""
        from forward_ofa.data import ColumnNames, generate_log, load_dataset, prepare

        choice, split = self.rules()
        if self.data == SYNTHETIC and not Path(SYNTHETIC).exists():
            log = generate_log()
            return prepare(log, choice.resolve(log), split)
        header = None if self.header is None else tuple(self.header.split(","))
        columns = ColumnNames(self.user_column, self.item_column, self.time_column, header)
        return load_dataset(
            self.data,
            Path(self.cache),
            columns=columns,
            choice=choice,
            split=split,
            progress=DownloadProgress(out),
        )

    def rules(self) -> tuple[FilterChoice, SplitConfig]:
        """Filter and split. Raises CommandError (usage) for what makes no sense."""
        from forward_ofa.data import FilterChoice, SplitConfig

        try:
            return (
                FilterChoice(
                    self.min_user,
                    self.min_item,
                    self.strict_item,
                    self.iterate,
                    self.ties,  # type: ignore[arg-type]  # checked there
                    self.deduplicate,  # type: ignore[arg-type]
                ),
                SplitConfig(
                    self.split,  # type: ignore[arg-type]
                    self.validation_share,
                    self.test_share,
                    self.validation_from,
                    self.test_from,
                ),
            )
        except ValueError as error:
            raise CommandError(str(error), Exit.USAGE) from None

    def remember(self, folder: Path, log_name: str) -> None:
        """Write it into a run's folder, with paths that hold from anywhere.

        log_name: of the log that was read; a log that stood in for a download is remembered
        as what it is, so that a network tomorrow does not change the run's data.
        """
        from forward_ofa.data import user_path
        from forward_ofa.runs import write_json

        raw = asdict(self)
        if self.data is None:
            raw["data"] = SYNTHETIC if log_name == SYNTHETIC else "ml-100k"
        elif user_path(self.data).exists():
            raw["data"] = str(user_path(self.data).resolve())
        raw["cache"] = str(Path(self.cache).resolve())
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SOURCE, raw)


def with_source(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one option for each field of `Source`, in place of its parameter `log`."""
    hints = get_type_hints(Source, include_extras=True)
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Source)
    ]  # fmt: skip
    own = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "log":
            parameters += options
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=own[name]))

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        log = Source(**{option.name: given.pop(option.name) for option in options})
        command(log=log, **given)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {item.name: item.annotation for item in parameters}
    del wrapped.__wrapped__  # else its signature would be taken
    return wrapped


def remembered(folder: Path, data: str | None) -> Source:
    """The source that a run was trained on; `data`: where the log is now, if it moved.

    Raises CommandError if the run does not say and `data` is not given.
    """
    path = folder / SOURCE
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
        source = Source(**raw)
    except FileNotFoundError:
        if data is None:
            raise CommandError(
                f"{path} is not there, so the run does not say which log it was trained on: "
                "give it with --data",
                Exit.BAD_VERSION,
            ) from None
        return Source(data)
    except (ValueError, TypeError) as error:
        raise CommandError(
            f"{path} is damaged ({error}): remove it and give the log with --data",
            Exit.BAD_VERSION,
        ) from None
    return source if data is None else Source(**{**raw, "data": data})
