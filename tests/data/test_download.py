"""Downloads, from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from gnmt.data import corpora as sources
from gnmt.data import download as module
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
    """A folder and the URL that serves it."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    Handler.requests, Handler.failures = [], 0
    return serve(Handler)


DATA = b"some bytes"
SUM = hashlib.sha256(DATA).hexdigest()


def test_download_once(served: tuple[Path, str], tmp_path: Path) -> None:
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


def test_a_busy_server_is_asked_again(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a").write_bytes(DATA)
    Handler.failures = 2
    download(f"{url}/a", tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == DATA
    assert len(Handler.requests) == 3


def test_wrong_bytes_are_not_kept(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a").write_bytes(b"please log in to this network")
    with pytest.raises(InputError, match=rf"29 bytes with sha256 \w+… came, but {SUM[:12]}… is expected"):
        download(f"{url}/a", tmp_path / "a", SUM)
    assert not (tmp_path / "a").exists()
    assert sorted(os.listdir(tmp_path)) == ["served"]


def test_missing_on_the_server(served: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not download .*/a \(1 attempts\): the server answered 404"):
        download(f"{served[1]}/a", tmp_path / "a", SUM)


def test_offline_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    corpus = Multi30k(download_folder=str(tmp_path / "downloads" / "multi30k"), url="http://127.0.0.1:9/raw")
    with pytest.raises(InputError) as caught:
        corpus.training_text()
    message = str(caught.value)
    assert "could not download http://127.0.0.1:9/raw/train.en.gz (3 attempts)" in message
    assert "data.folder=PATH" in message
    # It was silent between the attempts, and left empty folders.
    assert [record.getMessage().split("; ")[-1] for record in caplog.records if record.levelname == "WARNING"] == [
        "attempt 2 of 3 in 0 s",
        "attempt 3 of 3 in 0 s",
    ]
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match=r"must begin with https:// or http://, found file:///etc"):
        Multi30k(download_folder=str(tmp_path), url="file:///etc").training_text()


def test_multi30k_from_its_server(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = served
    sums = {}
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "fr"):
            data = gzip.compress(f"{split} {language}\n".encode())
            (folder / f"{split}.{language}.gz").write_bytes(data)
            sums[f"{split}.{language}.gz"] = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(sources, "MULTI30K_SHA256", sums)
    corpus = Multi30k(target_language="fr", download_folder=str(tmp_path / "cache"), url=f"{url}/")
    for _ in range(2):
        assert list(corpus.training_text().iterate()) == [("train en", "train fr")]
        assert list(corpus.dev_text().iterate()) == [("val en", "val fr")]
        tests = corpus.test_texts()
        assert list(tests) == ["test_2016_flickr"]
        assert list(tests["test_2016_flickr"].iterate()) == [("test_2016_flickr en", "test_2016_flickr fr")]
    assert len(Handler.requests) == 6


class Stubborn(SimpleHTTPRequestHandler):
    """Sends at most 1,000 bytes of a body and hangs up; continues where it is asked to, if `ranges`."""

    ranges = True
    version = '"1"'
    requests: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        data = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        asked = self.headers["Range"]
        Stubborn.requests.append(asked)
        start = 0
        if asked and self.ranges and self.headers["If-Range"] == self.version:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
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
def stubborn(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    Stubborn.requests, Stubborn.ranges, Stubborn.version = [], True, '"1"'
    return serve(Stubborn)


def test_a_large_file_comes_in_pieces(stubborn: tuple[Path, str], tmp_path: Path) -> None:
    """More interruptions than attempts are no failure as long as each brings something."""
    folder, url = stubborn
    data = os.urandom(9500)
    (folder / "a").write_bytes(data)
    download(f"{url}/a", tmp_path / "got" / "a")
    assert (tmp_path / "got" / "a").read_bytes() == data
    assert os.listdir(tmp_path / "got") == ["a"]
    assert Stubborn.requests == [None, *(f"bytes={start}-" for start in range(1000, 9500, 1000))]


def test_another_command_goes_on_where_one_stopped(stubborn: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = stubborn
    data = os.urandom(1500)
    (folder / "a").write_bytes(data)
    (tmp_path / "a.part").write_bytes(data[:700])
    (tmp_path / "a.part.version").write_text('"1"')
    download(f"{url}/a", tmp_path / "a", hashlib.sha256(data).hexdigest())
    assert (tmp_path / "a").read_bytes() == data
    assert Stubborn.requests == ["bytes=700-"]


def test_pieces_of_two_versions_are_never_joined(stubborn: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = stubborn
    data = os.urandom(900)
    (folder / "a").write_bytes(data)
    (tmp_path / "a.part").write_bytes(b"x" * 300)
    (tmp_path / "a.part.version").write_text('"0"')
    download(f"{url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    # Without a version nothing is known of the first bytes, and longer than the file they cannot be right.
    for version in (None, '"1"'):
        (tmp_path / "a").unlink()
        (tmp_path / "a.part").write_bytes(b"x" * 1000)
        if version:
            (tmp_path / "a.part.version").write_text(version)
        download(f"{url}/a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == data


def test_a_server_that_cannot_continue(stubborn: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = stubborn
    Stubborn.ranges = False
    (folder / "a").write_bytes(os.urandom(1500))
    with pytest.raises(InputError, match=r"\(3 attempts\): the connection ended after 1000 of 1500 bytes.*file"):
        download(f"{url}/a", tmp_path / "a")
    assert not (tmp_path / "a").exists()
