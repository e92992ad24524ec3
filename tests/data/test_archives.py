"""Public corpora in archives: checksums are recorded and checked, and only needed files are unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gnmt.data.archives import ArchivedCorpus, ArchivedPair, ArchivedText
from gnmt.errors import InputError

URL = "https://example.org/a/b/parallel.tgz"
SGM = """<srcset setid="x" srclang="any">
<doc docid="1">
<p>
<seg id="1"> One  &amp; two.\u2028</seg>
  <SEG id="2">Three.</SEG>
</p></doc></srcset>
"""


def packed(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()


FILES = {
    "./train/a.en": b"one\r\ntwo\n",
    "train/a.de": b"eins\nzwei\n",
    "../evil": b"x",
    "z.en.gz": gzip.compress(b"three\n"),
    "z.de.gz": gzip.compress(b"drei\n"),
    "dev/n.en.sgm": SGM.encode(),
    "dev/n.de.sgm": SGM.replace("One", "Eins").encode(),
}
TRAIN = [ArchivedPair(URL, "train/a.en", "train/a.de"), ArchivedPair(URL, "z.en.gz", "z.de.gz")]
DEV = [ArchivedPair(URL, "dev/n.en.sgm", "dev/n.de.sgm")]


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., ArchivedCorpus]:
    """Return a function of an archive's bytes that makes a corpus whose archive is downloaded already."""

    def make(data: bytes = packed(FILES)) -> ArchivedCorpus:
        folder = tmp_path / "downloads"
        folder.mkdir(exist_ok=True)
        (folder / "parallel.tgz").write_bytes(data)
        return ArchivedCorpus(
            name="x", source_language="en", target_language="de", train=TRAIN, dev=DEV, test={"new": DEV, "none": []},
            download_folder=str(folder),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_only_the_named_files_of_an_archive_are_unpacked(
    corpus: Callable[..., ArchivedCorpus], tmp_path: Path, mode: str
) -> None:
    made = corpus(packed(FILES, mode))
    assert list(made.training_text().iterate()) == [("one", "eins"), ("two", "zwei"), ("three", "drei")]
    assert list(made.dev_text().iterate()) == [("One &amp; two.", "Eins &amp; two."), ("Three.", "Three.")]
    assert list(made.test_texts()) == ["new"]
    folder = tmp_path / "downloads"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    inside = {"train/a.en", "train/a.de", "z.en.gz", "z.de.gz", "dev/n.en.sgm.txt", "dev/n.de.sgm.txt"}
    assert found == {"parallel.tgz", "checksums.json"} | {f"parallel/{name}" for name in inside}
    assert not (tmp_path / "evil").exists()


def test_an_archive_may_be_removed_after_unpacking(
    corpus: Callable[..., ArchivedCorpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = corpus()
    first = made.training_text().fingerprint({})
    (tmp_path / "downloads" / "parallel.tgz").unlink()
    monkeypatch.setattr("gnmt.data.download.download", None)  # would fail if it were called
    assert made.training_text().fingerprint({}) == first
    assert len(list(made.dev_text().iterate())) == 2


def test_an_archive_must_keep_its_recorded_checksum(corpus: Callable[..., ArchivedCorpus], tmp_path: Path) -> None:
    data = packed(FILES)
    list(corpus(data).training_text().iterate())
    recorded = json.loads((tmp_path / "downloads" / "checksums.json").read_text())
    sha256 = hashlib.sha256(data).hexdigest()
    assert recorded == {"parallel.tgz": {"url": URL, "bytes": len(data), "sha256": sha256}}

    other = packed({**FILES, "train/a.de": b"eins\ndrei\n"})
    made = corpus(other)
    (tmp_path / "downloads/parallel/train/a.de").unlink()
    with pytest.raises(InputError) as caught:
        made.training_text()
    message = str(caught.value)
    assert f"but {sha256}" in message
    assert "was recorded when it was first unpacked" in message
    assert "checksums.json" in message
    assert not (tmp_path / "downloads/parallel/train/a.de").exists()
    corpus(data).training_text()
    assert (tmp_path / "downloads/parallel/train/a.de").read_bytes() == b"eins\nzwei\n"


def test_files_of_an_unrecorded_archive_are_not_used(
    corpus: Callable[..., ArchivedCorpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between unpacking and recording once left files in use whose archive had no recorded checksum."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gnmt.data.archives.write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            corpus().training_text()
    assert not [path for path in (tmp_path / "downloads").glob("parallel/**/*") if path.is_file()]
    left = tmp_path / "downloads/parallel/train/a.de"
    left.write_text("of an older version\n")
    assert next(iter(corpus().training_text().iterate())) == ("one", "eins")
    assert "parallel.tgz" in json.loads((tmp_path / "downloads/checksums.json").read_text())


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"<html>not found</html>"])
def test_a_damaged_archive_is_refused_and_not_recorded(
    corpus: Callable[..., ArchivedCorpus], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    # Noise cannot be compressed, so half of the archive's bytes end within it, after some of the files.
    noise = random.Random(1).randbytes(50_000)
    early, late = list(FILES.items())[:4], list(FILES.items())[4:]
    made = corpus(damage(packed({**dict(early), "noise": noise, **dict(late)})))
    with pytest.raises(InputError, match=r"parallel\.tgz: (not a complete tar archive|does not contain)"):
        made.training_text()
    assert not [path for path in (tmp_path / "downloads").glob("parallel/**/*") if path.is_file()]
    assert not (tmp_path / "downloads" / "checksums.json").exists()
    assert len(list(corpus().training_text().iterate())) == 3


def test_files_that_the_archive_does_not_contain_are_named(tmp_path: Path) -> None:
    (tmp_path / "parallel.tgz").write_bytes(packed({"a.en": b"x\n", "b.de": b"y\n"}))
    text = ArchivedText([ArchivedPair(URL, "a.en", "a.de")], str(tmp_path))
    with pytest.raises(InputError, match=r"parallel\.tgz: does not contain a\.de; it contains a\.en, b\.de"):
        list(text.iterate())


def test_invalid_utf8_in_an_archive_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "parallel.tgz").write_bytes(packed({"a.sgm": b"<seg>\n<seg>\xff</seg>\n", "b.sgm": b""}))
    with pytest.raises(InputError, match=r"a\.sgm.*:2: not UTF-8"):
        list(ArchivedText([ArchivedPair(URL, "a.sgm", "b.sgm")], str(tmp_path)).iterate())


def test_contradictory_settings_are_refused() -> None:
    def make(**changes: object) -> ArchivedCorpus:
        given = {"train": TRAIN, "dev": DEV, **changes}
        return ArchivedCorpus(name="x", source_language="en", target_language="de", **given)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=r"data\.dev names no files"):
        make(dev=[])
    with pytest.raises(InputError, match="would be the same file"):
        make(dev=[ArchivedPair("https://other.org/parallel.tgz", "a", "b")])
    with pytest.raises(InputError, match="cannot name a test set"):
        make(test={"../up": DEV})
    with pytest.raises(InputError, match="must end in the name of a file"):
        ArchivedPair("https://example.org/", "a", "b")


def test_a_damaged_list_of_checksums_is_refused(corpus: Callable[..., ArchivedCorpus], tmp_path: Path) -> None:
    made = corpus()
    for text in ("{", "[]", '{"parallel.tgz": 3}', '{"parallel.tgz": {}}'):
        (tmp_path / "downloads" / "checksums.json").write_text(text)
        with pytest.raises(InputError, match=r"checksums\.json: not a list of checksums"):
            made.training_text()
