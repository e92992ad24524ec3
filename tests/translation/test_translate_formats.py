"""How translations are written, to files and streams, and what is said of them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from pathlib import Path

import pytest
from stub_translator import NUM_LINES, Killed, StubTranslator, expected, kill_at, names, translate

from gnmt.decoding.options import SearchOptions
from gnmt.decoding.translation import Translation
from gnmt.errors import InputError
from gnmt.fileio import read_lines
from gnmt.translation.formats import Origin, OutputFormat
from gnmt.translation.partial_output import PartFolder
from gnmt.translation.translate_files import Job

# Formats


def written(kind, line, translation, alignments=False):
    options, origin = SearchOptions(coverage_beta=0.3), Origin("int8", ("5a5a", "1b1b"))
    return OutputFormat(kind, alignments).write(9, [line], [translation], None, options, origin).decode()


HOSTILE = "a\tb\u2028c\rd\x0be"


def test_text_is_one_line_whatever_it_holds():
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


@pytest.mark.parametrize("output", ["a.de", "-"])
def test_jsonl_says_from_which_models_and_in_which_precision(home, capfdbinary, output):
    translate(StubTranslator(), Job("a.en", output), kind="jsonl")
    written = capfdbinary.readouterr().out if output == "-" else (home / output).read_bytes()
    digest = hashlib.sha256((home / "best.pt").read_bytes()).hexdigest()[:12]
    records = [json.loads(line) for line in written.splitlines()]
    assert [(one["precision"], one["checkpoints"]) for one in records] == [("fp32", [digest])] * NUM_LINES


def test_n_best_goes_through(home):
    translate(StubTranslator(n_best=3), kind="tsv")
    rows = [line.split("\t") for line in (home / "a.de").read_text().splitlines()[1:]]
    assert [row[:2] for row in rows] == [[str(n), str(rank)] for n in range(1, NUM_LINES + 1) for rank in (1, 2, 3)]


def test_text_refuses_what_it_cannot_hold(home):
    with pytest.raises(InputError, match=r"decoding\.n_best is 3: use format=tsv"):
        translate(StubTranslator(n_best=3))
    for kind in ("text", "tsv"):
        with pytest.raises(InputError, match=f"format={kind} has no place for word_attention=true: use format=jsonl"):
            OutputFormat(kind, word_attention=True).check(StubTranslator().options)
    with pytest.raises(InputError, match="no place for alignments=true"):
        OutputFormat("text", alignments=True).check(StubTranslator().options)
    assert names(home) == ["a.en", "best.pt"]


# Streams


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def test_at_a_terminal_each_line_is_answered_before_the_next_is_read(home, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    answered = []

    class Typed(io.BytesIO):
        def __next__(self):
            answered.append(out.buffer.getvalue().count(b"\n"))
            return super().__next__()

    monkeypatch.setattr("sys.stdin", Terminal(Typed(b"one\n\ntwo\n")))
    monkeypatch.setattr("sys.stdout", out)
    translator = StubTranslator()
    translate(translator, Job("-", "-"))
    assert translator.calls == [(1, 1), (2, 1), (3, 1)]
    assert answered == [0, 1, 2, 3]


def test_a_pipe_is_translated_window_by_window(home, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((home / "a.en").read_bytes())))
    monkeypatch.setattr("sys.stdout", out)
    translator = StubTranslator()
    translate(translator, Job("-", "-"))
    assert out.buffer.getvalue().decode() == expected()
    assert translator.calls[-1] == (17, 2)


def test_a_stream_to_a_file_leaves_what_was_there_until_it_ends(home, monkeypatch):
    (home / "a.de.gz").write_bytes(b"before")
    for translator, error in ((kill_at(9), Killed), (StubTranslator(), None)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((home / "a.en").read_bytes())))
        if error:
            with pytest.raises(error):
                translate(translator, Job("-", "a.de.gz"))
            assert (home / "a.de.gz").read_bytes() == b"before"
        else:
            translate(translator, Job("-", "a.de.gz"))
    assert list(read_lines("a.de.gz")) == expected().splitlines()
    assert names(home) == ["a.de.gz", "a.en", "best.pt"]


# What is said


def test_the_end_says_how_many_and_how_fast_and_warns_of_those_cut_off(home, caplog):
    with pytest.raises(Killed):
        translate(kill_at(10))
    with caplog.at_level(logging.INFO):
        translate(StubTranslator())
    going_on, done, cut_off = [record.getMessage() for record in caplog.records]
    assert going_on.startswith("a.de: 8 of 18 lines are done, going on from ")
    assert done.startswith("a.de: 10 lines in ")
    assert "lines per second, after 8 that were done" in done
    assert cut_off == "3 of 18 translations were cut off by the length limit"


def test_the_end_counts_lines_blank_ones_too(home, caplog):
    """They were called sentences, and one of them sentences as well."""
    (home / "a.en").write_text("\n")
    with caplog.at_level(logging.INFO):
        translate(StubTranslator())
    assert caplog.records[-1].getMessage().startswith("a.de: 1 line in ")


def test_a_log_line_now_and_then_says_how_long_it_takes(home, caplog, monkeypatch):
    monkeypatch.setattr("gnmt.translation.translate_files._LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        translate(StubTranslator())
    lines = [record.getMessage() for record in caplog.records if "lines/s" in record.getMessage()]
    told = dict.fromkeys(line.split(",")[0] for line in lines)  # after each line, and after each window once more
    assert list(told) == [f"{n} of 18 lines translated" for n in range(1, NUM_LINES + 1)]
    assert all(line.endswith(" left") for line in lines)


def test_a_disk_that_fills_up_keeps_what_is_done(home, monkeypatch):
    keep = PartFolder.keep

    def full(self, number, sha256, data, num_unfinished):
        if number == 3:
            raise OSError(28, os.strerror(28))
        keep(self, number, sha256, data, num_unfinished)

    monkeypatch.setattr(PartFolder, "keep", full)
    message = r"output=a\.de cannot be written \(No space left on device\); .*a\.de\.part keeps 3 windows"
    with pytest.raises(InputError, match=message):
        translate(StubTranslator())
    monkeypatch.setattr(PartFolder, "keep", keep)
    again = StubTranslator()
    translate(again)
    assert again.calls == [(13, 4), (17, 2)]
    assert Path("a.de").read_text() == expected()
