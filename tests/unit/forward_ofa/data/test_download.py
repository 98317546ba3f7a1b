"""Downloads against a real HTTP server on loopback."""

from __future__ import annotations

import hashlib
import io
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from forward_ofa.data import DATASETS, DataError, DownloadError, RemoteDataset, fetch, load

U_DATA = "".join(f"{user}\t{item}\t5\t{item}\n" for user in range(1, 30) for item in range(1, 99))


def make_zip(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as package:
        for name, text in members.items():
            package.writestr(name, text)
    return buffer.getvalue()


class Server:
    """Serves `content`; can stop in the middle, ignore ranges or answer with an error."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.stop_after: int | None = None
        self.ranges = True
        self.status = 200
        self.tag = '"one"'
        self.shift = 0
        self.requests: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/data.zip"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append(asked)
        condition = handler.headers.get("If-Range")
        if condition is not None and condition != self.tag:
            asked = None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if self.status != 200:
            handler.send_error(self.status)
            return
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if self.tag:
            handler.send_header("ETag", self.tag)
        if start:
            first = start + self.shift
            last, size = len(self.content) - 1, len(self.content)
            handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.stop_after])

    def dataset(self, md5: str | None = None) -> dict[str, RemoteDataset]:
        digest = md5 or hashlib.md5(self.content).hexdigest()
        return {"ml-100k": RemoteDataset("Test", self.url, f"md5:{digest}")}

    def unpublished(self, name: str = "log.csv") -> dict[str, RemoteDataset]:
        """A data set of one file, of which no digest is known."""
        return {"some": RemoteDataset("Test", self.url.replace("data.zip", name))}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(make_zip({"ml-100k/u.data": U_DATA, "ml-100k/README": "about"}))
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forward_ofa.data.download.PAUSE_SECONDS", 0.0)


def left_over(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def test_fetch_then_cached(tmp_path: Path, server: Server) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = fetch(
        "ml-100k", tmp_path / "a" / "b", datasets=server.dataset(),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert (folder / "u.data").read_text(encoding="utf-8") == U_DATA
    assert left_over(folder.parent) == {"ml-100k"}
    assert seen[-1] == (len(server.content), len(server.content))
    assert fetch("ml-100k", folder.parent, datasets=server.dataset()) == folder
    assert len(server.requests) == 1


def test_an_interrupted_download_goes_on(tmp_path: Path, server: Server) -> None:
    server.stop_after = 1000
    with pytest.raises(DownloadError, match=r"5,000 of .*Run it again") as caught:
        fetch("ml-100k", tmp_path, datasets=server.dataset())
    assert caught.value.reason == "interrupted"
    assert left_over(tmp_path) == {"ml-100k.part", "ml-100k.part.tag"}
    assert server.requests == [None, *(f"bytes={n}000-" for n in range(1, 5))]
    server.stop_after = None
    fetch("ml-100k", tmp_path, datasets=server.dataset())
    assert server.requests[5:] == ["bytes=5000-"]
    assert left_over(tmp_path) == {"ml-100k"}


def test_a_server_without_ranges(tmp_path: Path, server: Server) -> None:
    (tmp_path / "ml-100k.part").write_bytes(server.content[:500])
    server.ranges = False
    assert (fetch("ml-100k", tmp_path, datasets=server.dataset()) / "u.data").is_file()


def test_a_complete_part_is_used(tmp_path: Path, server: Server) -> None:
    (tmp_path / "ml-100k.part").write_bytes(server.content)
    fetch("ml-100k", tmp_path, datasets=server.dataset())
    assert server.requests == [f"bytes={len(server.content)}-"]  # answered with 416


def test_a_part_of_another_file_is_replaced(tmp_path: Path, server: Server) -> None:
    (tmp_path / "ml-100k.part").write_bytes(b"x" * 700)
    assert (fetch("ml-100k", tmp_path, datasets=server.dataset()) / "u.data").is_file()
    assert server.requests == ["bytes=700-", None]


def test_checksum_mismatch_leaves_nothing(tmp_path: Path, server: Server) -> None:
    with pytest.raises(DownloadError, match="checksum is") as caught:
        fetch("ml-100k", tmp_path, datasets=server.dataset(md5="0" * 32))
    assert caught.value.reason == "checksum"
    assert left_over(tmp_path) == set()
    with pytest.raises(DownloadError):  # and never a synthetic log in its place
        load(None, tmp_path, datasets=server.dataset(md5="0" * 32))


def test_http_error(tmp_path: Path, server: Server) -> None:
    server.status = 503
    with pytest.raises(DownloadError, match="answered 503") as caught:
        fetch("ml-100k", tmp_path, datasets=server.dataset())
    assert caught.value.reason == "http status"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil"])
def test_members_outside_are_refused(tmp_path: Path, server: Server, name: str) -> None:
    server.content = make_zip({"ml-100k/u.data": U_DATA, name: "x"})
    with pytest.raises(DownloadError, match="points outside") as caught:
        fetch("ml-100k", tmp_path / "cache", datasets=server.dataset())
    assert caught.value.reason == "archive"
    assert left_over(tmp_path / "cache") == set()
    assert left_over(tmp_path) == {"cache"}


def test_links_are_refused(tmp_path: Path, server: Server) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        link = zipfile.ZipInfo("ml-100k/link")
        link.external_attr = 0o120777 << 16
        package.writestr(link, "/etc/passwd")
    server.content = buffer.getvalue()
    with pytest.raises(DownloadError, match="points outside"):
        fetch("ml-100k", tmp_path, datasets=server.dataset())


def test_not_a_zip(tmp_path: Path, server: Server) -> None:
    server.content = b"<html>log in</html>"
    with pytest.raises(DownloadError, match="not a usable zip") as caught:
        fetch("ml-100k", tmp_path, datasets=server.dataset())
    assert caught.value.reason == "archive"
    assert left_over(tmp_path) == set()


def closed_port() -> dict[str, RemoteDataset]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"ml-100k": RemoteDataset("Test", f"http://127.0.0.1:{port}/x.zip", "md5:" + "0" * 32)}


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        fetch("ml-100k", tmp_path, datasets=closed_port())
    assert caught.value.reason == "no network"
    log = load(None, tmp_path, datasets=closed_port())
    assert log.name == "synthetic"
    assert log.source.startswith("no network: using a synthetic log")
    with pytest.raises(DownloadError):  # asked for by name: no other log in its place
        load("ml-100k", tmp_path, datasets=closed_port())


def test_a_cache_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        fetch("ml-100k", tmp_path / "file", datasets=server.dataset())
    assert caught.value.reason == "disk"


def test_two_at_once_download_once(tmp_path: Path, server: Server) -> None:
    threads = [
        threading.Thread(target=fetch, args=("ml-100k", tmp_path), kwargs={"datasets": sets})
        for sets in [server.dataset()] * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert left_over(tmp_path) == {"ml-100k"}


def test_load(tmp_path: Path, server: Server) -> None:
    by_default = load(None, tmp_path, datasets=server.dataset())
    assert (by_default.name, len(by_default)) == ("ml-100k", 29 * 98)
    assert len(load("ml-100k", tmp_path, datasets=server.dataset())) == 29 * 98
    assert load(str(tmp_path / "ml-100k" / "u.data"), tmp_path).name == "u"
    with pytest.raises(DataError, match=r"neither a file.*ml-100k, ml-1m"):
        load("ml-9m", tmp_path)
    with pytest.raises(DataError, match="not a known data set"):
        fetch("ml-9m", tmp_path)


def test_a_server_that_sends_nothing_is_not_asked_for_ever(tmp_path: Path, server: Server) -> None:
    server.stop_after = 0
    with pytest.raises(DownloadError, match="stopped after 0 of"):
        fetch("ml-100k", tmp_path, datasets=server.dataset())
    assert server.requests == [None]


def test_another_range_than_asked_for_is_refused(tmp_path: Path, server: Server) -> None:
    (tmp_path / "ml-100k.part").write_bytes(server.content[:500])
    server.shift = 7
    with pytest.raises(DownloadError, match="another part"):
        fetch("ml-100k", tmp_path, datasets=server.dataset())
    server.shift = 0
    assert (fetch("ml-100k", tmp_path, datasets=server.dataset()) / "u.data").is_file()


def test_a_single_file_keeps_its_name_and_its_digest_is_recorded(
    tmp_path: Path, server: Server
) -> None:
    server.content = b"user_id,item_id,timestamp\n" + b"1,2,3\n" * 500
    sets = server.unpublished()
    folder = fetch("some", tmp_path, datasets=sets)
    assert (folder / "log.csv").read_bytes() == server.content
    digest = hashlib.sha256(server.content).hexdigest()
    assert (tmp_path / "some.sha256").read_text().split() == [f"sha256:{digest}", sets["some"].url]
    (folder / "log.csv").unlink()
    folder.rmdir()
    whole, server.content = server.content, server.content + b"4,5,6\n"
    with pytest.raises(DownloadError, match=r"another one at the first download.*some\.sha256"):
        fetch("some", tmp_path, datasets=sets)
    assert left_over(tmp_path) == {"some.sha256"}
    server.content = whole
    assert (fetch("some", tmp_path, datasets=sets) / "log.csv").read_bytes() == whole


@pytest.mark.parametrize("tag", ['"one"', ""])
def test_without_a_digest_two_files_are_never_joined(
    tmp_path: Path, server: Server, tag: str
) -> None:
    server.content, server.tag, server.stop_after = b"a" * 20_000, tag, 100
    with pytest.raises(DownloadError):
        fetch("some", tmp_path, datasets=server.unpublished())
    server.content, server.tag, server.stop_after = b"b" * 20_000, tag and '"two"', None
    folder = fetch("some", tmp_path, datasets=server.unpublished())
    assert (folder / "log.csv").read_bytes() == b"b" * 20_000


def test_a_disk_that_is_full(tmp_path: Path, server: Server) -> None:
    """In a process that may write no more than 10,000 bytes to a file."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from forward_ofa.data import DownloadError, RemoteDataset, fetch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "sets = {'ml-100k': RemoteDataset('Test', sys.argv[1], sys.argv[2])}\n"
        "try:\n"
        "    fetch('ml-100k', Path(sys.argv[3]), datasets=sets)\n"
        "except DownloadError as error:\n"
        "    print(error.reason, error)\n"
    )
    digest = server.dataset()["ml-100k"].digest
    command = [sys.executable, "-c", script, server.url, digest, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("disk ") and "free some space" in done.stdout
    assert (tmp_path / "ml-100k.part").stat().st_size == 10_000
    assert (fetch("ml-100k", tmp_path, datasets=server.dataset()) / "u.data").is_file()
    assert server.requests[-1] == "bytes=10000-"


def test_a_disk_without_room_is_refused_before_it_is_filled(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="1,000 are free") as caught:
        fetch("ml-100k", tmp_path, datasets=server.dataset())
    assert caught.value.reason == "disk"


def test_official_addresses_use_https_and_whole_checksums() -> None:
    sizes = {"md5": 16, "sha256": 32}
    for name, remote in DATASETS.items():
        assert remote.url.startswith("https://")
        if remote.digest is not None:
            algorithm, _, digest = remote.digest.partition(":")
            assert len(bytes.fromhex(digest)) == sizes[algorithm]
        releases = name.startswith("ml-") and "latest" not in name
        assert not (releases and remote.digest is None)
    assert len(DATASETS) == 8 + 24 + 29 + 2 * 34
