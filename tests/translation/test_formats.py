"""Output formats: text, TSV and JSON lines."""

from __future__ import annotations

import hashlib
import json

import pytest
from stub_translator import NUM_LINES, StubTranslator, names, translate

from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import Translation
from gnmt.errors import InputError
from gnmt.translation.formats import Origin, OutputFormat
from gnmt.translation.jobs import Job

# Formats


def written(kind, line, translation, alignments=False):
    options, origin = SearchOptions(coverage_beta=0.3), Origin("int8", ("5a5a", "1b1b"))
    return OutputFormat(kind, alignments).encode(9, [line], [translation], None, options, origin).decode()


HOSTILE = "a\tb\u2028c\rd\x0be"


def test_text_has_one_line_for_each_translation():
    assert written("text", "x", Translation(HOSTILE, -1.0, (3,))) == "a\tb c d e\n"


def test_tsv_has_a_line_for_each_hypothesis():
    second = Translation(HOSTILE, -2.0, (5, 3), log_prob=-4.0)
    best = Translation("best", -1.0, (4,), finished=False, log_prob=-1.5, alternatives=(second,))
    assert written("tsv", "x", best) == (
        "9\t1\t-1.000000\t-1.500000\tfalse\tbest\n9\t2\t-2.000000\t-4.000000\ttrue\ta b c d e\n"
    )
    assert OutputFormat("tsv").heading == b"line\trank\tscore\tlog_prob\tfinished\ttext\n"
    assert OutputFormat("tsv", alignments=True).heading.endswith(b"\ttext\talignment\n")


def test_jsonl_has_an_object_for_each_line():
    second = Translation(HOSTILE, -2.0, (5, 3), log_prob=-4.0)
    best = Translation("größe", -1.0, (4,), finished=False, log_prob=-0.1, alternatives=(second,))
    text = written("jsonl", "x\u2028\u0085\u2029y", best)
    assert text.splitlines() == [text.removesuffix("\n")]
    assert "größe" in text
    assert json.loads(text) == {
        "line": 9,
        "source": "x\u2028\u0085\u2029y",
        "scoring": {"length_penalty_alpha": 0.6, "length_penalty_constant": 5.0, "coverage_beta": 0.3},
        "precision": "int8",
        "checkpoints": ["5a5a", "1b1b"],
        "translations": [
            {"text": "größe", "score": -1.0, "log_prob": -0.1, "tokens": [4], "finished": False},
            {"text": HOSTILE, "score": -2.0, "log_prob": -4.0, "tokens": [5, 3], "finished": True},
        ],
    }


def test_pairs_have_an_object_for_each_finished_hypothesis_with_text():
    """A translation that the length limit cut off, or a blank one, would teach a student to stop early."""
    texts = {HOSTILE: (5, 3), "": (3,), "b": (6, 3), " ": (8, 3)}
    others = tuple(Translation(text, -2.0, tokens) for text, tokens in texts.items())
    best = Translation("cut off", -1.0, (4,), finished=False, alternatives=others)
    lines = written("pairs", "x\u2028\ty", best).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "x\u2028\ty", "translation": HOSTILE},
        {"source": "x\u2028\ty", "translation": "b"},
    ]
    assert written("pairs", "", Translation("", 0.0, ())) == ""
    assert OutputFormat("pairs").num_omitted([best]) == 3


@pytest.mark.parametrize("output", ["a.de", "-"])
def test_jsonl_names_checkpoints_and_precision(home, capfdbinary, output):
    translate(StubTranslator(), Job("a.en", output), kind="jsonl")
    written = capfdbinary.readouterr().out if output == "-" else (home / output).read_bytes()
    digest = hashlib.sha256((home / "best.pt").read_bytes()).hexdigest()[:12]
    records = [json.loads(line) for line in written.splitlines()]
    assert [(one["precision"], one["checkpoints"]) for one in records] == [("fp32", [digest])] * NUM_LINES


def test_tsv_holds_n_best_lists(home):
    translate(StubTranslator(n_best=3), kind="tsv")
    rows = [line.split("\t") for line in (home / "a.de").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [[str(n), str(rank)] for n in range(1, NUM_LINES + 1) for rank in (1, 2, 3)]


def test_text_refuses_n_best_lists_and_alignments(home):
    with pytest.raises(InputError, match=r"decoding\.n_best is 3: use format=tsv"):
        translate(StubTranslator(n_best=3))
    for kind in ("text", "tsv"):
        with pytest.raises(InputError, match=f"format={kind} cannot hold word_attention=true: use format=jsonl"):
            OutputFormat(kind, word_attention=True).check(StubTranslator().options)
    with pytest.raises(InputError, match="cannot hold alignments=true"):
        OutputFormat("text", alignments=True).check(StubTranslator().options)
    assert names(home) == ["a.en", "best.pt"]
