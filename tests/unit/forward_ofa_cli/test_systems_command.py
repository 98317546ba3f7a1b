"""`--system`, `--base-run`, `--blocks`, `--device`, `--set`, as a user would type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from forward_ofa.systems import SYSTEMS
from forward_ofa_cli.main import app
from tests.support.logs import write_csv

TINY = ("--recipe", "quick", "--blocks", "2", "--hidden", "8", "--candidates", "20")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log, and a run of Forward-OFA on it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("systems")
    log = write_csv(folder / "log.csv", 40, 100)
    result = run("train", "--data", log, "--run-dir", folder / "run", *TINY, "--epochs", "1")
    assert result.exit_code == 0, result.output
    return log, folder / "run"


def test_another_system_starts_from_the_run_and_is_compared_but_not_published(
    trained, tmp_path: Path
) -> None:
    log, base = trained
    other = ("--system", "finetune", "--base-run", base, "--set", "rates=0.1", "--set", "users=9")
    result = run("train", "--data", log, "--run-dir", tmp_path / "run", *TINY, *other)
    assert result.exit_code == 0, result.output
    assert "DeviceRec epoch" not in result.stdout and "Finetune epoch 1" in result.stdout
    (tried,) = (line for line in result.stdout.splitlines() if "Finetune epoch 1" in line)
    assert "rate 0.1, " in tried and "loss" not in tried
    assert "Finetune against one dense network for all" in result.stdout
    assert "Next: forward-ofa publish" not in result.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["system"] == "finetune"
    assert config["options"]["rates"] == [0.1] and config["options"]["users"] == 9
    refused = run("publish", "--run-dir", tmp_path / "run", "--registry", tmp_path / "registry")
    assert refused.exit_code == 4 and "only Forward-OFA can be published" in refused.stderr
    assert not list((tmp_path / "registry").rglob("*.safetensors"))


def test_replaced_blocks_are_evaluated_in_place_of_the_chosen_ones(trained) -> None:
    figures = {}
    for blocks in ((), ("--blocks", "first"), ("--blocks", "random", "--seed", "3")):
        result = run("evaluate", "--run-dir", trained[1], "--json", *blocks)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        figures[blocks[1:2]] = report["systems"]["forward-ofa"]
        assert any("blocks: " in line for line in report["protocol"]) == bool(blocks)
    kept = [found["kept_blocks_histogram"] for found in figures.values()]
    assert kept[0] == kept[1] == kept[2]
    refused = run("evaluate", "--run-dir", trained[1], "--blocks", "middle")
    assert refused.exit_code == 2 and "random, first, last" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--system", "best"), 2, "unknown system 'best': there are forward-ofa"),
        (("--set", "steps=1"), 2, "system forward-ofa has no options of its own"),
        (("--set", "system=duet"), 2, "chosen with --system"),
        (("--set", "epochs=3"), 2, "name the stage, training.epochs"),
        (("--set", "fusion=true"), 2, "name it whole, method.fusion"),
        (("--set", "warm-start=true", "--set", "warm_start=false"), 2, "set twice"),
        (("--set", "method.bases=3", "--set", "method.bases=4"), 2, "give it once"),
        (("--foundation-epochs", "3", "--set", "foundation=none"), 2, "set twice"),
        (("--system", "duet", "--set", "method.keep_bias=1"), 2, "DUET has no use for it"),
        (("--set", "method.structure_from=0.7"), 2, "structure_until must be more than"),
        (("--system", "finetune", "--set", "steps"), 2, "give NAME=VALUE"),
        (("--system", "finetune", "--set", "steps=0"), 2, "at least 1"),
        (("--system", "finetune", "--epochs", "2"), 2, "--epochs: Finetune has no use for it"),
        (("--system", "duet", "--compact-weight", "1"), 2, "--compact-weight: DUET has no use"),
        (("--device", "gpu"), 2, "use cpu, cuda"),
        (("--base-run", "nowhere"), 4, "there is no run in nowhere"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(
    trained, tmp_path: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    log, _ = trained
    result = run("train", "--data", log, "--run-dir", tmp_path / "run", *TINY, *arguments)
    assert (result.exit_code, text in result.stderr) == (code, True), result.output
    assert not (tmp_path / "run").exists()


def test_any_value_of_the_configuration_can_be_set(trained, tmp_path: Path) -> None:
    log, _ = trained
    settings = (
        "--seed", "3", "--set", "foundation=none", "--set", "method.structure-until=0.75",
        "--bases", "9", "--set", "method.backbone.hidden=16",  # 9 is too much for 8
    )  # fmt: skip
    result = run("train", "--data", log, "--run-dir", tmp_path / "run", *TINY[2:], *settings)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["foundation"], config["training"]["seed"]) == (None, 3)
    assert config["method"]["structure_until"] == 0.75
    assert "structure: from 0% to 75% of training" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_by_name_must_be_there(trained, tmp_path: Path) -> None:
    log, base = trained
    command = ("train", "--data", log, "--run-dir", tmp_path / "run", *TINY, "--device", "cuda")
    result = run(*command)
    assert result.exit_code == 2 and "there is no GPU here" in result.stderr
    assert not (tmp_path / "run").exists()
    assert run("evaluate", "--run-dir", base, "--device", "cuda:0").exit_code == 2


def test_every_system_is_listed_with_its_options() -> None:
    listed = {entry["system"]: entry for entry in json.loads(run("systems", "--json").stdout)}
    assert list(listed) == list(SYSTEMS)
    assert listed["finetune"]["options"]["steps"] == [1, 2, 5, 10]
    shown = run("systems").stdout
    assert "--set steps=1,2,5,10" in shown and "DUET" in shown


def test_costs_of_a_system() -> None:
    small = run("cost", "--system", "duet", "--set", "method.backbone.blocks=2", "--json").stdout
    assert json.loads(small)["sasrec"]["blocks"] == 2
    added = run("cost", "--system", "duet", "--set", "method.fusion=true", "--json").stdout
    assert json.loads(added)["sasrec"]["device_modules"]["parameters"] == 24_960 + 64 * 65
    assert run("cost", "--system", "duet", "--set", "training.epochs=2").exit_code == 2
    table = json.loads(run("cost", "--system", "duet", "--json").stdout)["sasrec"]
    assert table["network"]["paper_mflops"] == 0.6244
    assert table["network"]["paper_mbit"] == 3.9936
    assert table["device_modules"]["parameters"] == 24_960  # E' alone
    small = json.loads(run("cost", "--system", "device-rec", "--blocks", "2", "--json").stdout)
    assert small["sasrec"]["network"]["paper_mbit"] == pytest.approx(1.3312)
    tuned = [json.loads(run("cost", "--system", "finetune", "--items", n, "--json").stdout)
             for n in ("100", "200")]  # fmt: skip
    less, more = (found["sasrec"]["device_modules"]["true_flops"] for found in tuned)
    assert more - less == 10 * 2 * 49 * 64 * 100  # steps, there and back, windows, width, items
    assert run("cost", "--set", "rank=3").exit_code == 2
    assert run("cost", "--system", "best").exit_code == 2
