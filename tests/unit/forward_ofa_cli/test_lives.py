"""`forward-ofa device lives`: what it writes is what `population` reads."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from forward_ofa.data import generate_log
from forward_ofa_cli.errors import Exit
from forward_ofa_cli.main import app
from forward_ofa_device.population import read_lives


def lives(*arguments: str):
    return CliRunner().invoke(app, ["device", "lives", *arguments])


def test_lives_of_a_log(tmp_path: Path):
    out = tmp_path / "new" / "lives.jsonl"
    told = lives("--data", "synthetic", "--devices", "7", "--out", str(out))
    assert told.exit_code == 0, told.output
    assert "7 users of synthetic" in told.stderr
    found = read_lives(out)
    assert len(found) == 7
    known = set(generate_log().item_ids)
    for life in found:
        assert 1 <= len(life.next) <= 20 and len(life.history) >= len(life.next)
        assert set(life.history) | set(life.next) <= known
    assert [path.name for path in out.parent.iterdir()] == ["lives.jsonl"]


def test_mistakes(tmp_path: Path):
    (tmp_path / "file").touch()
    told = lives("--data", "synthetic", "--out", str(tmp_path / "file" / "lives.jsonl"))
    assert told.exit_code == Exit.FAILED and "cannot be written" in told.stderr
    told = lives("--data", "synthetic")
    assert told.exit_code == Exit.USAGE and "--out" in told.output
    told = lives("--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x"))
    assert told.exit_code == Exit.BAD_DATA
    assert "--devices" in lives("--help").stdout
