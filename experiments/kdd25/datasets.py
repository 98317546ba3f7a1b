"""The data sets: the paper's four, and others that get rows of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forward_ofa.data import DATASETS, SequenceDataset, default_filter, generate_log, load, prepare

SYNTHETIC = "synthetic"
_GAMES = "Amazon 2023 Video Games, a sample"
"""That of LLM-TUP, 10,371 users of unknown selection; not the public set (see docs/paper.md)."""


@dataclass(frozen=True)
class DataSet:
    """key: as in the paper's tables and on the command line. paper: whether the paper has it.

    like: the paper's data set whose lambda and tau it takes. interactions, users: about how many
    after the filter, for estimates of time and for what a recipe makes of them. folders: names
    that it may have under --data-root.
    """

    key: str
    title: str
    paper: bool
    like: str
    interactions: int
    users: int
    folders: tuple[str, ...] = ()


ALL = {
    found.key: found
    for found in (
        DataSet("ml-1m", "MovieLens-1M", True, "ml-1m", 994_852, 6_040),
        DataSet("ml-10m", "MovieLens-10M", True, "ml-10m", 9_983_342, 69_878, ("ml-10M100K",)),
        DataSet("amazon-game", "Amazon-Game", True, "amazon-game", 223_696, 11_292),
        DataSet("amazon-food", "Amazon-Food", True, "amazon-food", 517_548, 27_149),
        DataSet("ml-100k", "MovieLens-100K", False, "ml-1m", 95_000, 943),
        DataSet(
            "amazon-2023-videogames",
            _GAMES,
            False,
            "amazon-game",
            75_000,
            9_800,
        ),
        DataSet("online-retail", "Online Retail", False, "amazon-game", 390_000, 4_300),
        DataSet(SYNTHETIC, "Synthetic", False, "ml-1m", 4_000, 60),
    )
}


@dataclass(frozen=True)
class Places:
    """Where logs are. given: key -> path. root: a folder with a folder for each key; may be None.

    cache: where downloaded ones are kept.
    """

    given: Mapping[str, str]
    root: Path | None
    cache: Path

    def spec(self, key: str) -> str | None:
        """What `forward_ofa.data.load` takes for this set, or None: nobody said where it is."""
        if key in self.given:
            return self.given[key]
        if key == SYNTHETIC:
            return SYNTHETIC
        for name in (key, *ALL[key].folders):
            if self.root is not None and (self.root / name).exists():
                return str(self.root / name)
        return key if key in DATASETS else None

    def read(self, key: str) -> SequenceDataset:
        """The set, filtered and split. Raises DataError; KeyError if `spec` is None."""
        spec = self.spec(key)
        if spec is None:
            raise KeyError(key)
        # Small on purpose: only smoke runs use the synthetic one.
        generated = spec == SYNTHETIC
        log = generate_log(users=40, items=100) if generated else load(spec, self.cache)
        return prepare(log, default_filter(log))


def default_root() -> Path | None:
    """The folder that FORWARD_OFA_DATA names, if it does."""
    named = os.environ.get("FORWARD_OFA_DATA")
    return Path(named) if named else None
