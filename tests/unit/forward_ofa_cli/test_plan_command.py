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
        (["--devices", "0"], "--devices is 0: use a number from 1 to 100,000,000,000"),
        (["--devices", "9", "--kept-blocks", "9"], "the network has 6 blocks"),
        (["--devices", "9", "--backbone", "bert"], "--backbone bert: use nextitnet or sasrec"),
        (["--devices", "9", "--hidden", "63"], "must be a multiple of heads"),
        (["--devices", "9", "--zones", "1"], "--spare zone needs --zones of at least 2"),
        (["--devices", "9", "--items", "0"], "--items is 0: use a number from 1"),
        (["--devices", "9", "--items", "1000000000000"], "--items is 1000000000000: use a number"),
        (["--devices", "9", "--id-bytes", "1000000000"], "a number from 1 to 512"),
        (["--devices", "9", "--hidden", "2000"], "--hidden is 2000: use a number from 1 to 1,024"),
        (["--devices", "9", "--hidden", "1000000"], "hidden must be at most 4,096"),
        (
            ["--devices", "9", "--sessions-per-day", "1e308", "--requests-per-session", "1e308"],
            "--sessions-per-day is 1e+308: use a number from 0 to 100,000",
        ),
        (["--devices", "9", "--version", "foo"], "--version names one of a registry"),
        (["--devices", "9", "--registry", ""], "--registry is empty"),
        (
            ["--devices", "9", "--registry", "r", "--blocks", "12", "--id-bytes", "9"],
            "--blocks, --id-bytes: the version has its own",
        ),
        (["--devices", "9", "--costs", __file__], "is no TOML file"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(arguments: list[str], text: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert text in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_json_of_no_load_is_json() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    arguments = ("--devices", "9", "--sessions-per-day", "0")
    plan = json.loads(run(*arguments, "--json").stdout, parse_constant=refuse)
    assert plan["redis"]["most_devices"] is None
    assert "One is enough for any number of devices" in " ".join(run(*arguments).output.split())


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
    said = " ".join(refused.output.split())
    assert "no version or label 'gone'" in said and "forward-ofa versions list" in said
    assert "bundle" not in said  # which is what a device would fetch
    assert run("--devices", "1", "--registry", str(tmp_path / "no")).exit_code == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"metrics": {"mean_kept_blocks": "x"}}, "mean_kept_blocks is no number from 1 to"),
        ({"metrics": {"mean_kept_blocks": float("nan")}}, "mean_kept_blocks is no number"),
        ({"metrics": {"mean_kept_blocks": 99}}, "mean_kept_blocks is no number from 1 to"),
        ({"shards": 10**9}, "items-0003.safetensors (not in the manifest)"),
        ({"items": 299}, "not as many item ids"),
        ({"backbone": {"hidden": 512}}, "the backbone is not that of its files"),
        ({"backbone": {"hidden": 10**9}}, "manifest.json (hidden must be at most 4,096"),
        ({"backbone": {"history": 10**400}}, "manifest.json (hidden must be at most 4,096"),
        ({"backbone": {"hidden": 8.0}}, "the backbone is not that of its files"),
    ],
)
def test_a_version_that_is_not_what_it_says(tmp_path: Path, change, text: str) -> None:
    registry = FileRegistry(tmp_path / "registry")
    tiny = publish(registry, "20260101-000000-0be9c4a0", items=300)
    manifest = registry.open(tiny.version).root / "manifest.json"
    raw = json.loads(manifest.read_text())
    for name, value in change.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(raw))
    refused = run("--devices", "9", "--candidates", "50", "--registry", str(registry.root))
    assert refused.exit_code == 4, refused.output
    said = " ".join(refused.output.split())
    assert text in said and "publish the run again" in said and "Ask again later" not in said


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
