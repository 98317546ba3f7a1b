from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture
def tables(cli):
    result = cli("cost", "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_full_networks_are_those_of_the_papers_table_1(tables):
    assert {name: table["full_network"]["paper_mflops"] for name, table in tables.items()} == {
        "sasrec": 0.6244,
        "nextitnet": 1.5053,
    }
    assert tables["sasrec"]["full_network"]["paper_mbit"] == 3.9936
    assert tables["nextitnet"]["full_network"]["paper_mbit"] == 9.5846


def test_modules_are_those_of_the_papers_table_5(tables):
    device = {name: table["forward_device"] for name, table in tables.items()}
    cloud = {name: table["forward_cloud"] for name, table in tables.items()}
    assert (device["sasrec"]["paper_mflops"], device["sasrec"]["mparameters"]) == (0.2545, 0.0503)
    assert device["sasrec"]["paper_flops"] // 100 == 2544  # the paper cuts off
    assert device["nextitnet"]["paper_mflops"] == 0.2548
    assert device["nextitnet"]["mparameters"] == 0.0507
    assert (cloud["sasrec"]["mparameters"], cloud["nextitnet"]["mparameters"]) == (8.112, 19.2691)


def test_every_number_of_kept_blocks_is_there(tables):
    for name, per_block_mflops, per_block_mbit in (
        ("sasrec", 0.1024, 0.6656),
        ("nextitnet", 0.12288, 0.790528),
    ):
        rows = tables[name]["network_by_kept_blocks"]
        assert [row["kept_blocks"] for row in rows] == list(range(tables[name]["blocks"] + 1))
        for row in rows:
            kept = row["kept_blocks"]
            flops = rows[0]["paper_flops"] + kept * per_block_mflops * 1e6
            assert row["paper_flops"] == pytest.approx(flops, abs=0.5)
            mbit = rows[0]["paper_mbit"] + kept * per_block_mbit
            assert row["paper_mbit"] == pytest.approx(mbit, abs=1e-4)
            mbit = rows[0]["true_mbit"] + kept * per_block_mbit
            assert row["true_mbit"] == pytest.approx(mbit, abs=1e-4)


def test_one_backbone_of_another_size(cli):
    command = ("cost", "--backbone", "sasrec", "--blocks", "3", "--history", "20", "--json")
    table = json.loads(cli(*command).stdout)
    assert list(table) == ["sasrec"]
    assert (table["sasrec"]["blocks"], table["sasrec"]["history"]) == (3, 20)
    assert len(table["sasrec"]["network_by_kept_blocks"]) == 4


def test_for_people_there_is_a_table(cli):
    shown = cli("cost").stdout
    for figure in ("0.6244", "3.9936", "1.5053", "9.5846", "8.1120", "19.2691"):
        assert figure in shown


@pytest.mark.parametrize(
    "options",
    [("--backbone", "gru"), ("--blocks", "0"), ("--hidden", "63"), ("--extractor-history", "0")],
)
def test_impossible_sizes_are_wrong_usage(cli, options):
    result = cli("cost", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_needs_neither_torch_nor_grpc():
    code = (
        "import sys\nfrom forward_ofa_cli.main import app\n"
        "app(['cost', '--json'], standalone_mode=False)\n"
        "print({'torch', 'grpc', 'polars'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["sasrec"]
    assert done.stderr.strip() == "set()"
