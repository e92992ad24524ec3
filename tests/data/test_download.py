"""Downloads from a local server."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from gnmt.data import corpora
from gnmt.data import download as download_module
from gnmt.data.corpora import Multi30k
from gnmt.data.download import download
from gnmt.errors import InputError

Serve = Callable[[type[SimpleHTTPRequestHandler]], tuple[Path, str]]


class Handler(SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012
    failures = 0

    def do_GET(self) -> None:
        Handler.requests.append(self.path)
        if Handler.failures > 0:
            Handler.failures -= 1
            self.send_error(503)
        else:
            super().do_GET()


@pytest.fixture
def served(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """Return a folder and the URL that serves it."""
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.0)
    Handler.requests, Handler.failures = [], 0
    return serve(Handler)


DATA = b"some bytes"
SUM = hashlib.sha256(DATA).hexdigest()


def test_an_existing_file_is_not_downloaded_again(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a").write_bytes(DATA)
    target = tmp_path / "downloads" / "deep" / "a"
    for _ in range(2):
        download(f"{url}/a", target, SUM)
    assert target.read_bytes() == DATA
    assert os.listdir(target.parent) == ["a"]
    assert Handler.requests == ["/a"]
    target.write_bytes(b"half")
    download(f"{url}/a", target, SUM)
    assert target.read_bytes() == DATA


def test_a_download_is_repeated_after_a_server_error(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a").write_bytes(DATA)
    Handler.failures = 2
    download(f"{url}/a", tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == DATA
    assert len(Handler.requests) == 3


def test_wrong_bytes_are_not_kept(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a").write_bytes(b"please log in to this network")
    with pytest.raises(InputError, match=rf"received 29 bytes with sha256 \w+…, expected sha256 {SUM[:12]}…"):
        download(f"{url}/a", tmp_path / "a", SUM)
    assert not (tmp_path / "a").exists()
    assert sorted(os.listdir(tmp_path)) == ["served"]


def test_a_file_that_the_server_lacks_is_reported_at_once(served: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not download .*/a \(1 attempts\): the server answered 404"):
        download(f"{served[1]}/a", tmp_path / "a", SUM)


def test_without_a_network_the_error_gives_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.01)
    corpus = Multi30k(download_folder=str(tmp_path / "downloads" / "multi30k"), url="http://127.0.0.1:9/raw")
    with pytest.raises(InputError) as caught:
        corpus.training_text()
    message = str(caught.value)
    assert "could not download http://127.0.0.1:9/raw/train.en.gz (3 attempts)" in message
    assert "data.folder=PATH" in message
    # Once there was no message between the attempts, and empty folders were left behind.
    assert [record.getMessage().split("; ")[-1] for record in caplog.records if record.levelname == "WARNING"] == [
        "attempt 2 of 3 in 0 s",
        "attempt 3 of 3 in 0 s",
    ]
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match=r"must begin with https:// or http://, found file:///etc"):
        Multi30k(download_folder=str(tmp_path), url="file:///etc").training_text()


def test_multi30k_is_downloaded_once(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = served
    sums = {}
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "fr"):
            data = gzip.compress(f"{split} {language}\n".encode())
            (folder / f"{split}.{language}.gz").write_bytes(data)
            sums[f"{split}.{language}.gz"] = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(corpora, "MULTI30K_SHA256", sums)
    corpus = Multi30k(target_language="fr", download_folder=str(tmp_path / "cache"), url=f"{url}/")
    for _ in range(2):
        assert list(corpus.training_text().iterate()) == [("train en", "train fr")]
        assert list(corpus.dev_text().iterate()) == [("val en", "val fr")]
        tests = corpus.test_texts()
        assert list(tests) == ["test_2016_flickr"]
        assert list(tests["test_2016_flickr"].iterate()) == [("test_2016_flickr en", "test_2016_flickr fr")]
    assert len(Handler.requests) == 6


class InterruptingHandler(SimpleHTTPRequestHandler):
    """Send at most 1,000 bytes of a body and close the connection; honor range requests if `ranges`."""

    ranges = True
    version = '"1"'
    requests: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        data = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        requested = self.headers["Range"]
        InterruptingHandler.requests.append(requested)
        start = 0
        if requested and self.ranges and self.headers["If-Range"] == self.version:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", self.version)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + 1000])


@pytest.fixture
def interrupting(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.setattr(download_module, "PAUSE_SECONDS", 0.0)
    InterruptingHandler.requests, InterruptingHandler.ranges, InterruptingHandler.version = [], True, '"1"'
    return serve(InterruptingHandler)


def test_an_interrupted_download_is_resumed(interrupting: tuple[Path, str], tmp_path: Path) -> None:
    """Any number of interruptions is accepted while each attempt receives new bytes."""
    folder, url = interrupting
    data = os.urandom(9500)
    (folder / "a").write_bytes(data)
    download(f"{url}/a", tmp_path / "got" / "a")
    assert (tmp_path / "got" / "a").read_bytes() == data
    assert os.listdir(tmp_path / "got") == ["a"]
    assert InterruptingHandler.requests == [None, *(f"bytes={start}-" for start in range(1000, 9500, 1000))]


def test_another_command_resumes_a_download(interrupting: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = interrupting
    data = os.urandom(1500)
    (folder / "a").write_bytes(data)
    (tmp_path / "a.part").write_bytes(data[:700])
    (tmp_path / "a.part.version").write_text('"1"')
    download(f"{url}/a", tmp_path / "a", hashlib.sha256(data).hexdigest())
    assert (tmp_path / "a").read_bytes() == data
    assert InterruptingHandler.requests == ["bytes=700-"]


def test_bytes_of_two_versions_are_never_joined(interrupting: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = interrupting
    data = os.urandom(900)
    (folder / "a").write_bytes(data)
    (tmp_path / "a.part").write_bytes(b"x" * 300)
    (tmp_path / "a.part.version").write_text('"0"')
    download(f"{url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    # Without a recorded version the received bytes cannot be trusted; nor can more bytes than the file has.
    for version in (None, '"1"'):
        (tmp_path / "a").unlink()
        (tmp_path / "a.part").write_bytes(b"x" * 1000)
        if version:
            (tmp_path / "a.part.version").write_text(version)
        download(f"{url}/a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == data


def test_a_server_without_range_requests_is_reported(interrupting: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = interrupting
    InterruptingHandler.ranges = False
    (folder / "a").write_bytes(os.urandom(1500))
    with pytest.raises(InputError, match=r"\(3 attempts\): the connection ended after 1000 of 1500 bytes.*file"):
        download(f"{url}/a", tmp_path / "a")
    assert not (tmp_path / "a").exists()
