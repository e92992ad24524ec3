"""translate.py with other formats, several files, compressed files and prefixes."""

from __future__ import annotations

import gzip
import json
import re

import pytest

SENTENCES = ["The old man reads a book.", "", "Does the child see the house?"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.en"
    path.write_text("".join(line + "\n" for line in SENTENCES), encoding="utf-8")
    return path


def test_n_best_with_scores_and_alignments(run_command, tiny, text, tmp_path) -> None:
    command = ["translate", f"checkpoint={tiny.folder}/best.pt", "input=a.en", "precision=fp32", "decoding.n_best=2"]
    for kind in ("tsv", "jsonl"):
        options = ["alignments=true", *(["word_attention=true"] if kind == "jsonl" else [])]
        done = run_command(*command, f"output=a.{kind}", f"format={kind}", *options, cwd=tmp_path)
        assert done.code == 0, done.err
    entries = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(entry["line"], entry["source"]) for entry in entries] == list(enumerate(SENTENCES, start=1))
    assert entries[1]["translations"] == [
        {
            "text": "",
            "score": 0.0,
            "log_prob": 0.0,
            "tokens": [],
            "finished": True,
            "alignment": "",
            "word_attention": [],
        }
    ]
    for entry in (entries[0], entries[2]):
        best, second = entry["translations"]
        assert best["score"] >= second["score"]
        assert best["tokens"] != second["tokens"]
        assert best["log_prob"] < 0
        num_words = (len(entry["source"].split()), len(best["text"].split()))
        pairs = [tuple(map(int, pair.split("-"))) for pair in best["alignment"].split()]
        assert all(source < num_words[0] and target < num_words[1] for source, target in pairs)
        matrix = best["word_attention"]
        assert (len(matrix[0]), len(matrix)) == num_words
        for source, target in pairs:
            assert matrix[target][source] == max(matrix[target])
    heading, *rows = (tmp_path / "a.tsv").read_text(encoding="utf-8").splitlines()
    assert heading == "line\trank\tscore\tlog_prob\tfinished\ttext\talignment"
    assert [tuple(row.split("\t")[:2]) for row in rows] == [("1", "1"), ("1", "2"), ("2", "1"), ("3", "1"), ("3", "2")]
    assert rows[0].split("\t")[5:] == [entries[0]["translations"][0][key] for key in ("text", "alignment")]


def test_several_files_are_written_to_a_folder_under_their_names(run_command, tiny, text, tmp_path) -> None:
    (tmp_path / "b.en.gz").write_bytes(gzip.compress(text.read_bytes()))
    command = ["translate", f"checkpoint={tiny.folder}/best.pt", "input=[a.en,b.en.gz]", "output_folder=out"]
    done = run_command(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.en", "b.en.gz"}
    plain, packed = (tmp_path / "out" / "a.en").read_bytes(), (tmp_path / "out" / "b.en.gz").read_bytes()
    assert gzip.decompress(packed) == plain
    assert plain.count(b"\n") == 3
    for name in ("a.en", "b.en.gz"):
        assert re.search(rf"out/{name}: 3 lines in [\d.]+ s, [\d.]+ lines per second", done.err)


def test_translations_begin_with_their_prefixes(run_command, tiny, text, tmp_path) -> None:
    (tmp_path / "p.de").write_text("Der alte\n\n\n", encoding="utf-8")
    command = ["translate", f"checkpoint={tiny.folder}/best.pt", "input=a.en", "output=a.de"]
    assert run_command(*command, "prefixes=p.de", cwd=tmp_path).code == 0
    with_prefix = (tmp_path / "a.de").read_text(encoding="utf-8").split("\n")
    assert run_command(*command, cwd=tmp_path).code == 0
    without = (tmp_path / "a.de").read_text(encoding="utf-8").split("\n")
    assert with_prefix[0].startswith("Der alte")
    assert with_prefix[1:] == without[1:]
    (tmp_path / "p.de").write_text("Der alte\n", encoding="utf-8")
    done = run_command(*command, "prefixes=p.de", cwd=tmp_path)
    assert done.code == 2
    assert "a.en has 3 lines and p.de has 1" in done.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["output=a.de", "decoding.n_best=2"], "format=text holds one translation for each line"),
        (["output=a.de", "alignments=true"], "format=text cannot hold alignments=true"),
        (["output=a.de", "format=xml"], 'format: found "xml", allowed is one of text, tsv, jsonl'),
        (["input=[a.en,a.en]", "output_folder=out"], "two files a.en"),
        (["output=a.de", "resume=no"], "resume: found"),
    ],
)
def test_impossible_outputs_are_refused(run_command, tiny, text, tmp_path, settings, message) -> None:
    done = run_command("translate", f"checkpoint={tiny.folder}/best.pt", "input=a.en", *settings, cwd=tmp_path)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.en"}
