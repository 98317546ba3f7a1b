"""`forward-ofa plan` as people and scripts use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forward_ofa_cli.main import app
from services.registry.files import FileRegistry
from tests.support.versions import publish


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments])


def test_it_prints_what_to_run_and_every_assumption() -> None:
    result = run("--devices", "1000000", "--sessions-per-day", "9")
    assert result.exit_code == 0, result.output
    for word in ("1,000,000 devices", "controller", "Egress", "bytes_per_network", "Redis",
                 "other ways", "offline", "peak_to_mean = 2.0: assumed",
                 "* sessions_per_day", "Costs:"):  # fmt: skip
        assert word in result.output, word


def test_json_has_every_figure() -> None:
    result = run("--devices", "100000000", "--encoding", "int8", "--kept-blocks", "4.5", "--json")
    plan = json.loads(result.stdout)
    assert plan["requests_per_second"]["peak"] == 2 * plan["requests_per_second"]["mean"]
    assert [each["kind"] for each in plan["pods"]] == ["controller", "generator"]
    assert plan["totals"]["pods"] == sum(each["pods"] for each in plan["pods"])
    assert plan["redis"]["nodes"] >= 2
    request = plan["request"]
    bundles = plan["bytes_per_network"] - request["artefact_bytes"] - request["candidate_bytes"]
    assert bundles == pytest.approx(plan["releases"]["bundle"] * 0.2 / 16)  # a day's, in 16 calls
    given = {each["name"] for each in plan["assumptions"] if each["changed"]}
    assert {"devices", "encoding", "kept_blocks"} <= given
    assert len(plan["comparison"]) == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--devices", "0"], "--devices is 0: use a number, at least 1"),
        (["--devices", "9", "--kept-blocks", "9"], "the network has 6 blocks"),
        (["--devices", "9", "--backbone", "bert"], "--backbone bert: use nextitnet or sasrec"),
        (["--devices", "9", "--hidden", "63"], "must be a multiple of heads"),
        (["--devices", "9", "--zones", "1"], "--spare zone needs --zones of at least 2"),
        (["--devices", "9", "--items", "0"], "items and bytes of an item id"),
        (["--devices", "9", "--costs", __file__], "is no TOML file"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(arguments: list[str], text: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert text in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = run("--devices", "9", "--costs", str(tmp_path / "none.toml"))
    assert result.exit_code == 1
    assert "none.toml" in "".join(result.output.split())


def test_a_published_version_gives_its_own_sizes(tmp_path: Path) -> None:
    registry = FileRegistry(tmp_path / "registry")
    tiny = publish(registry, "20260101-000000-0be9c4a0", items=300)
    arguments = ["--devices", "1000", "--registry", str(registry.root), "--json"]
    plan = json.loads(run(*arguments, "--candidates", "50").stdout)
    assert plan["version"]["source"] == f"version {tiny.version}"
    assert plan["version"]["items"] == 300
    files = registry.open(tiny.version).manifest.files
    assert plan["version"]["bytes"] == sum(entry.bytes for entry in files.values())
    refused = run(*arguments, "--candidates", "50", "--version", "gone")
    assert refused.exit_code == 4, refused.output
    assert run("--devices", "1", "--registry", str(tmp_path / "no")).exit_code == 4


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from forward_ofa_cli.main import app\n"
        "try: app(['plan', '--devices', '1000'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1,000 devices" in done.stdout
