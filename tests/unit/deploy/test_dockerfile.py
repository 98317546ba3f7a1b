"""The Dockerfile, without building it. tests/e2e/test_image.py builds it."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hadolint")), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say(tmp_path: Path):
    assert "hadolint ignore" not in DOCKERFILE
    assert hadolint(ROOT / "Dockerfile").stdout == ""
    broken = tmp_path / "Dockerfile"
    broken.write_text(DOCKERFILE.replace("USER 10001:10001", "USER root"))
    assert "DL3002" in hadolint(broken).stdout


def copied() -> set[str]:
    """What is taken from the sources, by any stage."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return {word for line in lines for word in line.split()[:-1]}


def test_every_package_of_the_project_is_in_it():
    packages = {
        path.name
        for pattern in ("forward_ofa*", "services*")
        for path in ROOT.glob(pattern)
        if path.is_dir() and not path.name.endswith(".egg-info")
    }
    assert packages == {word for word in copied() if (ROOT / word).is_dir()}
    requirements = {word for word in copied() if word.startswith("requirements/")}
    known = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("requirements/*.txt")}
    assert requirements == known


def test_the_build_sees_what_it_copies_and_nothing_else():
    """The ignore file leaves everything out, then takes single things back."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    taken = [rule[1:] for rule in rules if rule.startswith("!")]
    for word in copied():
        assert any(fnmatch.fnmatch(word, rule) for rule in taken), word
    for rule in taken:
        assert any(fnmatch.fnmatch(word, rule) for word in copied()), rule


@pytest.mark.parametrize("name", ["build", "base"])
def test_the_scripts_have_no_mistakes_of_form(name: str):
    script = ROOT / "deploy" / "image" / name
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_the_default_uv_is_that_of_the_makefile():
    version = re.search(r"^ARG UV_VERSION=(.+)$", DOCKERFILE, re.MULTILINE)
    assert version is not None
    assert f"UV_VERSION := {version[1]}\n" in (ROOT / "Makefile").read_text()
