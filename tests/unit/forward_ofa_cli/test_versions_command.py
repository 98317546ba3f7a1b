from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.registry.files import FileRegistry
from services.registry.location import open_registry
from services.registry.settings import CacheSettings
from tests.support.versions import publish


@pytest.fixture
def registry(tmp_path: Path) -> FileRegistry:
    found = FileRegistry(tmp_path / "registry")
    publish(found, "v1", seed=1)
    publish(found, "v2", seed=2)
    return found


def test_list(cli, registry: FileRegistry):
    rows = json.loads(cli("versions", "list", "--json").stdout)
    assert [(row["version"], row["labels"]) for row in rows] == [("v1", []), ("v2", ["stable"])]
    assert rows[0]["items"] == 60 and rows[0]["ndcg@10"] == 0.1 and rows[0]["bytes"] > 0
    shown = cli("versions", "list").stdout
    assert "v1" in shown and "stable" in shown


def test_list_never_cuts_a_version_short(cli, registry: FileRegistry):
    publish(registry, "20250131-120000-0a1b2c3d", label="a-label-with-a-rather-long-name")
    assert "20250131-120000-0a1b2c3d" in cli("versions", "list").stdout


def test_show_takes_a_label(cli, registry: FileRegistry):
    raw = json.loads(cli("versions", "show", "stable", "--json").stdout)
    assert raw["version"] == "v2" and "mapper.safetensors" in raw["files"]
    assert "mapper.safetensors" in cli("versions", "show", "v1").stdout


def test_label_and_roll_back(cli, registry: FileRegistry):
    assert cli("versions", "label", "canary", "v2").exit_code == 0
    assert registry.current("canary") == "v2"
    result = cli("versions", "rollback")
    assert result.exit_code == 0 and "stable -> v1 (was v2)" in result.stdout
    assert registry.labels() == {"stable": "v1", "canary": "v2"}
    again = cli("versions", "rollback")
    assert again.exit_code == 4 and "no usable version before v1" in again.stderr


def test_remove_only_what_no_label_points_at(cli, registry: FileRegistry):
    assert cli("versions", "remove", "v1").exit_code == 0
    assert not registry.exists("v1")
    result = cli("versions", "remove", "v2")
    assert result.exit_code == 4 and "labelled stable" in result.stderr
    assert registry.exists("v2")


def test_an_unknown_version(cli, registry: FileRegistry):
    for command in (("show", "v3"), ("label", "stable", "v3"), ("remove", "v3")):
        result = cli("versions", *command)
        assert result.exit_code == 4 and "there is no version 'v3'" in result.stderr
        assert "bundle" not in result.stderr, "that is what devices are told"
    assert "there are: v1, v2" in cli("versions", "show", "v3").stderr
    assert registry.current() == "v2"
    result = cli("versions", "rollback", "--label", "canary")
    assert result.exit_code == 4 and "there is no label 'canary'" in result.stderr
    assert "there are: stable" in result.stderr


def test_a_damaged_version_is_found_and_not_labelled(cli, registry: FileRegistry):
    path = registry.root / "versions" / "v1" / "mapper.safetensors"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for command in (("show", "v1"), ("label", "stable", "v1"), ("rollback",)):
        result = cli("versions", *command)
        assert result.exit_code == 4 and "mapper.safetensors" in result.stderr
    assert registry.current() == "v2"


def test_a_damaged_version_says_what_an_operator_can_do(cli, registry: FileRegistry):
    (registry.root / "versions" / "v1" / "manifest.json").chmod(0o644)
    (registry.root / "versions" / "v1" / "manifest.json").write_text("{")
    shown = cli("versions", "show", "v1")
    assert shown.exit_code == 4
    assert "manifest.json" in shown.stderr and "Publish its run again" in shown.stderr
    listed = cli("versions", "list", "--json")
    assert [row["version"] for row in json.loads(listed.stdout)] == ["v2"]
    assert "Left out: v1" in listed.stderr and "manifest.json" in listed.stderr


def test_a_canary_from_its_share_to_stable(cli, registry: FileRegistry):
    publish(registry, "v3", seed=3, label=None)
    result = cli("versions", "label", "canary", "v3", "--percent", "5")
    assert result.exit_code == 0 and "canary -> v3 for 5 % of the sessions" in result.stdout
    rows = json.loads(cli("versions", "list", "--json").stdout)
    assert [(row["labels"], row["percent"]) for row in rows] == [
        ([], {}),
        (["stable"], {}),
        (["canary"], {"canary": 5}),
    ]
    assert "canary 5 %" in cli("versions", "list").stdout
    for bad in ("101", "-1", "many"):
        assert cli("versions", "label", "canary", "v3", "--percent", bad).exit_code == 2
    result = cli("versions", "promote", "canary")
    assert result.exit_code == 0 and "stable -> v3 (was v2), canary removed" in result.stdout
    assert registry.labels() == {"stable": "v3"}
    result = cli("versions", "promote")
    assert result.exit_code == 4 and "no label 'canary' to promote" in result.stderr
    assert cli("versions", "rollback").stdout.startswith("stable -> v2 (was v3)")


def test_a_canary_is_taken_away(cli, registry: FileRegistry):
    cli("versions", "label", "canary", "v1", "--percent", "50")
    assert cli("versions", "unlabel", "canary").exit_code == 0
    assert registry.labels() == {"stable": "v2"}
    for name, says in (("canary", "there is no label"), ("stable", "services follow stable")):
        result = cli("versions", "unlabel", name)
        assert result.exit_code == 4 and says in result.stderr


def test_a_registry_by_its_url(cli, tmp_path: Path):
    where = ("--registry", "memory://cli-test/registry", "--registry-cache", tmp_path / "cache")
    nothing = cli("versions", "list", *where)
    assert nothing.exit_code == 4
    assert "there is no registry at memory://cli-test/registry" in nothing.stderr
    registry = open_registry(str(where[1]), CacheSettings(tmp_path / "cache"))
    publish(registry, "v1", seed=1)
    publish(registry, "v2", seed=2)
    assert len(json.loads(cli("versions", "list", "--json", *where).stdout)) == 2
    assert cli("versions", "show", "stable", *where).exit_code == 0
    assert cli("versions", "rollback", *where).stdout.startswith("stable -> v1 (was v2)")
    assert cli("versions", "remove", "v2", *where).exit_code == 0
    assert not registry.exists("v2")
    nowhere = cli("versions", "list", "--registry", "nonsense://x/y")
    assert nowhere.exit_code == 4 and "names no registry" in nowhere.stderr
