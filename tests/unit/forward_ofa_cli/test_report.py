from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from forward_ofa_cli.console import duration, size
from forward_ofa_cli.report import histogram, markdown, systems, verdict


def report(ours: float, theirs: float, low: float, high: float) -> dict[str, Any]:
    system = {
        "users": 1000,
        "ndcg@10": theirs,
        "hit@10": 0.2,
        "unseen_ndcg@10": 0.14,
        "unseen_hit@10": 0.24,
        "repeated_targets": 0.0,
        "funnel_ndcg@10": 0.15,
        "funnel_hit@10": 0.25,
        "candidates": 200,
        "retrieval_recall": 0.8,
        "mean_kept_blocks": 6.0,
        "block_usage": [1.0] * 6,
        "paper_mflops": 0.6244,
        "true_mflops": 0.6436,
        "paper_mbit": 3.9936,
        "true_mbit": 4.0038,
        "payload_bytes": {"float16": 249_600},
    }
    own = deepcopy(system)
    own |= {"ndcg@10": ours, "true_mflops": 0.4827, "paper_mbit": 2.9952, "mean_kept_blocks": 4.5}
    own["payload_bytes"] = {"float16": 187_200}
    difference = {"mean": ours - theirs, "low": low, "high": high}
    return {
        "split": "test",
        "system": "forward-ofa",
        "systems": {"forward-ofa": own, "device-rec": system},
        "difference": dict.fromkeys(
            ("ndcg@10", "hit@10", "unseen_ndcg@10", "funnel_ndcg@10"), difference
        ),
    }


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((0.12, 0.10, 0.01, 0.03), "networks beat the dense network"),
        ((0.11, 0.10, -0.01, 0.03), "this log does not prove it"),
        ((0.10, 0.11, -0.03, 0.01), "does NOT beat the dense network here"),
        ((0.10, 0.12, -0.03, -0.01), "does NOT beat the dense network here"),
    ],
)
def test_the_verdict_is_plain(figures, words):
    said = verdict(report(*figures))
    assert words in said
    assert f"{figures[0]:.4f} against {figures[1]:.4f}" in said
    assert "75.0% of its FLOPs an inference and 75.0% of its bytes" in said


def test_the_table_has_both_systems_and_the_intervals():
    section = systems(report(0.12, 0.10, 0.011, 0.029))
    rows = {row[0]: row[1:] for row in section.table}
    assert rows["NDCG@10, all items ranked"] == ["0.1200", "0.1000", "+20.0%"]
    assert rows["bytes of parameters, float16"] == ["187,200", "249,600", "-25.0%"]
    assert rows["blocks on the device, of 6 (mean)"] == ["4.50", "6.00", "-25.0%"]
    assert any("+0.0110 to +0.0290" in note for note in section.notes)


def test_a_log_with_repeated_items_is_told_to_keep_them():
    told = report(0.12, 0.10, 0.01, 0.03)
    assert not any("include_seen" in note for note in systems(told).notes)
    told["systems"]["forward-ofa"]["repeated_targets"] = 0.25
    assert any("25.0%" in note and "include_seen" in note for note in systems(told).notes)


def test_the_histogram_adds_up():
    lines = histogram({1: 0, 2: 10, 10: 30})
    assert [line.split()[0] for line in lines] == ["1", "2", "10"]
    assert [line.count("█") for line in lines] == [0, 11, 32]
    assert "25.0%  10" in lines[1] and "75.0%  30" in lines[2]
    assert histogram({}) == []


def test_markdown_has_table_and_notes():
    text = markdown("Title", [systems(report(0.12, 0.10, 0.01, 0.03))])
    assert text.startswith("# Title\n")
    assert "|  | Forward-OFA | DeviceRec | difference |\n|---|---:|---:|---:|" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (25_230, "25.2 kB"), (249_984, "250 kB"), (3e6, "3 MB")]
)
def test_sizes(count, text):
    assert size(count) == text
