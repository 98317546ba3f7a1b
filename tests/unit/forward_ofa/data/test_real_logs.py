"""Figures of real logs. The folder is $FORWARD_OFA_DATA, else shared/data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from forward_ofa.data import PAPER_FILTER, FilterConfig, default_filter, prepare, read_log

BESIDE = Path(__file__).parents[5] / "shared" / "data"
FOLDER = Path(os.environ.get("FORWARD_OFA_DATA", BESIDE))

# name: rows, users, items as read; users, items, rows after the default filter, which is:
FIGURES = {
    "ml-100k": ((100_000, 943, 1_682), (943, 927, 94_728), PAPER_FILTER),
    "ml-1m": ((1_000_209, 6_040, 3_706), (6_040, 3_011, 994_852), PAPER_FILTER),
    "online-retail": ((406_829, 4_372, 3_684), (4_125, 3_201, 394_958), FilterConfig()),
    "amazon-2023-videogames": ((83_842, 10_371, 3_790), (9_827, 3_628, 79_415), FilterConfig()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_real_log(name: str) -> None:
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not in {FOLDER}; set FORWARD_OFA_DATA to the folder that has it")
    raw, kept, rule = FIGURES[name]
    log = read_log(folder)
    assert (len(log), len(log.user_ids), len(log.item_ids)) == raw
    assert default_filter(log) == rule
    data = prepare(log, rule)
    assert (data.num_users, data.num_items, data.num_interactions) == kept
    assert data.lengths().min() >= 3
    if name.startswith("ml-"):
        assert len(data.titles) == data.num_items
        assert data.titles["1"] == "Toy Story (1995)"
    users, ends = data.held_out("test")
    last = data.windows(users, ends + 1, 1)[:, 0]
    assert np.array_equal(last, data.targets(users, ends))
