"""The kubelet brings a changed Secret by one rename of a link: services have to notice."""

from __future__ import annotations

from pathlib import Path

from services.runtime.watched import Watched


def mount(folder: Path, generation: str, content: bytes) -> None:
    """As the kubelet writes a Secret's volume: files behind links, changed all at once."""
    data = folder / f"..{generation}"
    data.mkdir()
    (data / "tokens").write_bytes(content)
    link = folder / "..data_tmp"
    link.symlink_to(data.name)
    link.rename(folder / "..data")
    if not (folder / "tokens").is_symlink():
        (folder / "tokens").symlink_to("..data/tokens")


def test_a_changed_secret_is_read_again(tmp_path: Path) -> None:
    mount(tmp_path, "1", b"one")
    watched = Watched("tokens", [tmp_path / "tokens"], lambda found: found[0])
    assert watched.get() == b"one"
    mount(tmp_path, "2", b"two")
    watched.refresh()
    assert watched.get() == b"two"
    assert watched.generation == 1
