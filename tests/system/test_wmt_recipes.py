"""The WMT recipes by command, on archives with the names and layout of the public ones but with generated text."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from gnmt.config.cli import CONFIG_FOLDER
from gnmt.data.demo_grammar.corpus import generate

pytestmark = pytest.mark.slow

# Overrides of the sizes only: data, cleaning, tokenizer, loss, schedule and search are those of the recipe.
SMALL = (
    "tokenizer.vocab_size=700",
    "model.embedding_size=8",
    "model.encoder.num_layers=2",
    "trainer.max_steps=2",
    "trainer.batch_tokens=1500",
    "trainer.microbatch_tokens=800",
    "decoding.beam_size=1",
    "decoding.max_length_factor=0.1",
    "decoding.max_length_offset=2",
    "device=cpu",
)
# The files of each archive that are used. The names come from public scripts that read these archives, not from our
# configs.
WMT16 = {
    "de-en.tgz": ["europarl-v7.de-en.en", "europarl-v7.de-en.de"],
    "training-parallel-commoncrawl.tgz": ["commoncrawl.de-en.en", "commoncrawl.de-en.de"],
    "training-parallel-nc-v11.tgz": [
        "training-parallel-nc-v11/news-commentary-v11.de-en.en",
        "training-parallel-nc-v11/news-commentary-v11.de-en.de",
    ],
    "dev.tgz": [
        *("dev/newstest2014-deen-ref.en.sgm", "dev/newstest2014-deen-src.de.sgm"),
        *("dev/newstest2015-deen-ref.en.sgm", "dev/newstest2015-deen-src.de.sgm"),
    ],
}
WMT14 = {
    "training-parallel-europarl-v7.tgz": ["training/europarl-v7.fr-en.en", "training/europarl-v7.fr-en.fr"],
    "training-parallel-commoncrawl.tgz": ["commoncrawl.fr-en.en", "commoncrawl.fr-en.fr"],
    "training-parallel-un.tgz": ["un/undoc.2000.fr-en.en", "un/undoc.2000.fr-en.fr"],
    "training-parallel-nc-v9.tgz": ["training/news-commentary-v9.fr-en.en", "training/news-commentary-v9.fr-en.fr"],
    "training-giga-fren.tar": ["giga-fren.release2.fixed.en.gz", "giga-fren.release2.fixed.fr.gz"],
    "dev.tgz": [
        *("dev/newstest2012-src.en.sgm", "dev/newstest2012-ref.fr.sgm"),
        *("dev/newstest2013-src.en.sgm", "dev/newstest2013-ref.fr.sgm"),
    ],
    "test-full.tgz": ["test-full/newstest2014-fren-src.en.sgm", "test-full/newstest2014-fren-ref.fr.sgm"],
}
NUM_TRAIN, NUM_DEV = 2000, 6


class RecordingHandler(SimpleHTTPRequestHandler):
    """Request handler that records the requested paths."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        RecordingHandler.requests.append(self.path)
        super().do_GET()


def write_archives(folder: Path, layout: dict[str, list[str]]) -> None:
    """Write the archives with generated text, NUM_TRAIN pairs in all. German text stands for French too."""
    pairs = generate(NUM_TRAIN, NUM_DEV, NUM_DEV)
    training = [name for names in layout.values() for name in names if not name.endswith(".sgm")]
    pairs_per_file = NUM_TRAIN // (len(training) // 2)
    for archive, names in layout.items():
        with tarfile.open(folder / archive, "w:gz" if archive.endswith("gz") else "w") as tar:
            for name in names:
                if name in training:
                    first = training.index(name) // 2 * pairs_per_file
                    chosen = pairs.train[first : first + pairs_per_file]
                else:
                    chosen = pairs.dev
                side = int(".en" not in name.removesuffix(".gz").removesuffix(".sgm")[-3:])
                data = contents(name, [pair[side] for pair in chosen])
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def contents(name: str, lines: list[str]) -> bytes:
    if name.endswith(".sgm"):
        segments = "".join(f'<seg id="{number}">{line}</seg>\n' for number, line in enumerate(lines, start=1))
        return f'<refset setid="newstest">\n<doc docid="a">\n<p>\n{segments}</p>\n</doc>\n</refset>\n'.encode()
    text = "".join(f"{line}\n" for line in lines).encode()
    return gzip.compress(text) if name.endswith(".gz") else text


@pytest.fixture
def served(serve: Callable[[type[SimpleHTTPRequestHandler]], tuple[Path, str]]) -> tuple[Path, str]:
    RecordingHandler.requests = []
    return serve(RecordingHandler)


@pytest.mark.parametrize(
    ("experiment", "layout", "test_set", "num_dev"),
    [
        ("wmt16_en_de", WMT16, "newstest2014", NUM_DEV),
        ("wmt14_en_fr_paper", WMT14, "newstest2014", 2 * NUM_DEV),
    ],
)
def test_a_recipe_runs_from_download_to_bleu(
    experiment, layout, test_set, num_dev, served, run_command, tmp_path, monkeypatch
) -> None:
    folder, url = served
    write_archives(folder, layout)
    home = tmp_path / "home"
    home.mkdir()
    command = (f"experiment={experiment}", f"data.mirror={url}", *SMALL)
    trained = run_command("train", *command, "name=try", cwd=home)
    assert trained.code == 0, trained.err
    assert sorted(path.lstrip("/") for path in RecordingHandler.requests) == sorted(layout)

    [preprocessed] = (home / "preprocessed").iterdir()
    manifest = json.loads((preprocessed / "manifest.json").read_text())
    counts = manifest["counts"]
    assert (counts["dev"], counts[f"test.{test_set}"]) == (num_dev, NUM_DEV)
    report = json.loads((preprocessed / "cleaning_report.json").read_text())
    num_files = sum(not name.endswith(".sgm") for names in layout.values() for name in names) // 2
    assert report["num_pairs"] == NUM_TRAIN // num_files * num_files
    [downloads] = (home / "downloads").iterdir()
    assert set(json.loads((downloads / "checksums.json").read_text())) == set(layout)

    again = run_command("train", *command, "name=try", cwd=home)
    assert again.code == 0, again.err
    assert len(RecordingHandler.requests) == len(layout)
    evaluated = run_command(
        "evaluate",
        "checkpoint=runs/try/best.pt",
        f"test_set={test_set}",
        "lowercase=true",
        "bleu_tokenize=intl",
        cwd=home,
    )
    assert evaluated.code == 0, evaluated.err
    assert f"{test_set}, {NUM_DEV} sentences" in evaluated.out
    assert "case:lc" in evaluated.out
    assert "tok:intl" in evaluated.out


@pytest.mark.parametrize("experiment", ["wmt16_en_de", "wmt14_en_fr_paper"])
def test_the_header_says_that_the_recipe_has_not_run(experiment: str) -> None:
    header = (CONFIG_FOLDER / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").split("defaults:")[0]
    for word in ("NOT RUN YET", "Hardware:", "Published BLEU", "CASED"):
        assert word in header
