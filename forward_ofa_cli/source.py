"""Which interaction log a command works on, and how a run remembers it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from forward_ofa_cli.console import DownloadProgress
from forward_ofa_cli.errors import CommandError, Exit

if TYPE_CHECKING:
    from forward_ofa.data import FilterConfig, InteractionLog, SequenceDataset

SOURCE = "source.json"
SYNTHETIC = "synthetic"
CACHE = Path(".cache/data")

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="LOG",
        help="A file or folder on disk (MovieLens, RecBole .inter, CSV, Parquet), a public data "
        "set to download (ml-100k, ml-1m), or `synthetic`. Left out: ml-100k, or a synthetic log "
        "without a network.",
        show_default=False,
    ),
]
UserColumn = Annotated[str | None, typer.Option(help="Name of the user column of a table.")]
ItemColumn = Annotated[str | None, typer.Option(help="Name of the item column of a table.")]
TimeColumn = Annotated[str | None, typer.Option(help="Name of the time column of a table.")]
MinUser = Annotated[
    int | None, typer.Option(min=0, help="Drop users with fewer interactions (see --min-item).")
]
MinItem = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Drop items with fewer interactions; with either option, repeated until stable. "
        "Left out: the paper's filter where it fits the log, else 5 and 5.",
    ),
]
Cache = Annotated[Path, typer.Option(help="Where downloaded logs are kept.")]


@dataclass(frozen=True)
class Source:
    """Everything that `forward_ofa.data` needs to give the same data set again."""

    data: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    min_user: int | None = None
    min_item: int | None = None
    cache: str = str(CACHE)

    def load(self, out: Console) -> SequenceDataset:
        """Read (or download, or generate) and prepare. Raises DataError."""
        from forward_ofa.data import default_filter, prepare

        log = self.read(out)
        return prepare(log, self.filter() or default_filter(log))

    def read(self, out: Console) -> InteractionLog:
        """The log before any filter. Raises DataError."""
        from forward_ofa.data import ColumnNames, generate_log, load

        if self.data == SYNTHETIC and not Path(SYNTHETIC).exists():
            return generate_log()
        columns = ColumnNames(self.user_column, self.item_column, self.time_column)
        return load(self.data, Path(self.cache), columns=columns, progress=DownloadProgress(out))

    def filter(self) -> FilterConfig | None:
        """The filter that was asked for; None: choose by the log."""
        from forward_ofa.data import FilterConfig

        if self.min_user is None and self.min_item is None:
            return None
        standard = FilterConfig()
        return FilterConfig(
            min_user=standard.min_user if self.min_user is None else self.min_user,
            min_item=standard.min_item if self.min_item is None else self.min_item,
        )

    def remember(self, folder: Path, log_name: str) -> None:
        """Write it into a run's folder, with paths that hold from anywhere.

        log_name: of the log that was read; a log that stood in for a download is remembered
        as what it is, so that a network tomorrow does not change the run's data.
        """
        from forward_ofa.runs import write_json

        raw = asdict(self)
        if self.data is None:
            raw["data"] = SYNTHETIC if log_name == SYNTHETIC else "ml-100k"
        elif Path(self.data).expanduser().exists():
            raw["data"] = str(Path(self.data).expanduser().resolve())
        raw["cache"] = str(Path(self.cache).resolve())
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SOURCE, raw)


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
