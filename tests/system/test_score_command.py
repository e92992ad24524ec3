"""scripts/score.py, and ensembles of checkpoints."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest

from gnmt.checkpoint.file import read_checkpoint

SOURCES = ["The old man reads a book.", "", "Does the child see the house?", "A house."]
TARGETS = ["Der alte Mann liest ein Buch.", "", "", "Ein Haus."]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with a.en and a.de of four lines, some of them blank."""
    for name, lines in (("a.en", SOURCES), ("a.de", TARGETS)):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_pairs_of_files_are_scored_line_by_line(run_command, tiny, home) -> None:
    checkpoint = f"checkpoint={tiny.folder}/best.pt"
    done = run_command("score", checkpoint, "source=a.en", "target=a.de", "precision=fp32", cwd=home)
    assert done.code == 0, done.err
    scored = records(done.out)
    assert [(one["line"], one["rank"]) for one in scored] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert [len(one["tokens"]) for one in scored[1:3]] == [1, 1]  # EOS alone
    for one in scored:
        assert len(one["token_log_probs"]) == len(one["tokens"])
        assert sum(one["token_log_probs"]) == pytest.approx(one["log_prob"], abs=1e-4)
        # The log-probability of EOS belongs to no word.
        of_words = sum(one["word_log_probs"]) + one["token_log_probs"][-1]
        assert of_words == pytest.approx(one["log_prob"], abs=1e-4)
        assert len(one["word_log_probs"]) == len(one["target"].split())
    assert [(one["source"], one["target"]) for one in scored] == [*zip(SOURCES, TARGETS, strict=True)]
    num_tokens = sum(len(one["tokens"]) for one in scored)
    mean = sum(one["log_prob"] for one in scored) / num_tokens
    summary = re.search(
        r"4 translations, (\d+) tokens, mean log-probability of a token (\S+), perplexity (\S+)", done.err
    )
    assert summary is not None, done.err
    assert int(summary[1]) == num_tokens
    assert float(summary[2]) == pytest.approx(mean, abs=1e-3)
    assert float(summary[3]) == pytest.approx(math.exp(-mean), rel=1e-3)


def test_a_tsv_file_appears_when_it_is_complete(run_command, tiny, home) -> None:
    with gzip.open(home / "a.en.gz", "wt", encoding="utf-8") as file:
        file.write((home / "a.en").read_text(encoding="utf-8"))
    options = ["source=a.en.gz", "target=a.de", "output=scores.tsv", "format=tsv", "batch_size=2"]
    done = run_command("score", f"checkpoint={tiny.folder}/best.pt", *options, cwd=home)
    assert done.code == 0, done.err
    heading, *rows = (home / "scores.tsv").read_text(encoding="utf-8").splitlines()
    assert heading.split("\t") == ["line", "rank", "log_prob", "score", "num_tokens"]
    assert [row.split("\t")[0] for row in rows] == ["1", "2", "3", "4"]

    (home / "a.de").write_text("Ein Haus.\n", encoding="utf-8")
    before = (home / "scores.tsv").read_bytes()
    done = run_command("score", f"checkpoint={tiny.folder}/best.pt", *options, cwd=home)
    assert (done.code, "a.en.gz has 4 lines and a.de has 1" in done.err) == (2, True), done.err
    assert (home / "scores.tsv").read_bytes() == before
    assert {path.name for path in home.iterdir()} == {"a.en", "a.en.gz", "a.de", "scores.tsv"}


def test_given_translations_are_aligned_as_the_search_aligns_its_own(run_command, tiny, home) -> None:
    """Force-decoding the search's own translation gives the alignment and the attention that the search reported."""
    checkpoint, options = (
        f"checkpoint={tiny.folder}/best.pt",
        ["alignments=true", "word_attention=true", "precision=fp32"],
    )
    done = run_command("translate", checkpoint, "input=a.en", "output=t.jsonl", "format=jsonl", *options, cwd=home)
    assert done.code == 0, done.err
    translated = records((home / "t.jsonl").read_text(encoding="utf-8"))
    done = run_command("score", checkpoint, "input=t.jsonl", *options, cwd=home)
    assert done.code == 0, done.err
    for line, one in zip(translated, records(done.out), strict=False):
        (best,) = line["translations"]
        if best["tokens"]:
            assert one["alignment"] == best["alignment"]
            for ours, theirs in zip(one["word_attention"], best["word_attention"], strict=True):
                assert ours == pytest.approx(theirs, abs=2e-4)
    done = run_command("score", checkpoint, "source=a.en", "target=a.de", "format=tsv", "alignments=true", cwd=home)
    heading, first, *_ = done.out.splitlines()
    assert heading.split("\t")[-1] == "alignment"
    assert {pair.split("-")[1] for pair in first.split("\t")[-1].split()} <= {str(word) for word in range(6)}
    done = run_command("score", checkpoint, "source=a.en", "target=a.de", "format=tsv", "word_attention=true", cwd=home)
    assert (done.code, "format=tsv cannot hold word_attention=true" in done.err) == (2, True)


def test_output_of_translate_has_the_scores_of_the_search(run_command, tiny, home) -> None:
    """Token ids are scored, since the tokenizer may split the text otherwise; a long line is scored in its segments.

    The penalties of the search differ from those that training recorded. The scores were computed with the recorded
    ones, without a warning.
    """
    long = " ".join([SOURCES[0]] * 3)
    (home / "a.en").write_text("".join(line + "\n" for line in [*SOURCES, long]), encoding="utf-8")
    common = [f"checkpoint={tiny.folder}/best.pt", "precision=fp32", "max_source_tokens=20"]
    options = ["input=a.en", "output=a.jsonl", "format=jsonl", "decoding.n_best=2", "decoding.max_length_factor=3"]
    penalties = ["decoding.length_penalty_alpha=0.2", "decoding.coverage_beta=0.3"]
    done = run_command("translate", *common, *options, *penalties, cwd=home)
    assert done.code == 0, done.err
    done = run_command("score", *common, "input=a.jsonl", cwd=home)
    assert (done.code, "scores may differ" in done.err) == (0, False), done.err
    scored = {(one["line"], one["rank"]): one for one in records(done.out)}
    written = records((home / "a.jsonl").read_text(encoding="utf-8"))
    assert len(scored) == sum(len(line["translations"]) for line in written) > len(written)
    for line in written:
        for rank, translation in enumerate(line["translations"], start=1):
            one = scored[line["line"], rank]
            tolerance = 1e-5 * max(1, len(one["tokens"]))
            assert one["tokens"] == translation["tokens"]
            assert one["score"] == pytest.approx(translation["score"], abs=tolerance)
            assert one["log_prob"] == pytest.approx(translation["log_prob"], abs=tolerance)


def test_an_ensemble_can_translate_evaluate_and_score(run_command, tiny, home) -> None:
    """An ensemble of one checkpoint twice gives its scores; with another checkpoint, the scores differ."""
    best = tiny.folder / "best.pt"
    steps = {read_checkpoint(path)["step"]: path for path in (tiny.folder / "checkpoints").glob("*.pt")}
    [full] = [path for step, path in steps.items() if step != read_checkpoint(best)["step"]]
    scores = {}
    for name, checkpoints in {"one": f"{best}", "twice": f"[{best},{best}]", "two": f"[{best},{full}]"}.items():
        options = ["source=a.en", "target=a.de", "precision=fp32", "ensemble=probabilities"]
        done = run_command("score", f"checkpoint={checkpoints}", *options, cwd=home)
        assert done.code == 0, done.err
        scores[name] = [one["score"] for one in records(done.out)]
    assert scores["twice"] == pytest.approx(scores["one"], abs=1e-4)
    assert scores["two"] != pytest.approx(scores["one"], abs=1e-4)

    together = f"checkpoint=[{best},{full}]"
    done = run_command("translate", together, "input=a.en", "output=out.de", cwd=home)
    assert done.code == 0, done.err
    assert (home / "out.de").read_bytes().count(b"\n") == len(SOURCES)
    done = run_command("evaluate", together, "test_set=dev", "output=figures", cwd=home)
    assert done.code == 0, done.err
    [path] = (home / "figures").glob("dev-*.best+step_*.json")
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["checkpoint"] == [str(best), str(full)]
    assert figures["search_steps"] >= figures["search_steps_after_best"] >= 0
    done = run_command("evaluate", together, "test_set=dev", cwd=home)
    assert (done.code, "output=FOLDER" in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=a.en"], "source= and target= belong together"),
        ([], "give either source= and target=, two files of text, or pairs="),
        (
            ["source=a.en", "target=a.de", "input=a.jsonl"],
            "give either source= and target=, two files of text, or pairs=",
        ),
        (["input=a.en"], "a.en:1: not a line that translate.py writes with format=jsonl"),
        (["input=a.jsonl"], "a.jsonl:1: source must be text and tokens a list of whole numbers"),
        (["input=b.jsonl"], "b.jsonl:1: token 99999 is not in the target vocabulary, whose ids are 0 to 419"),
        (["source=a.en", "target=a.dee"], "a.dee: no such file; did you mean a.de?"),
        (["source=a.en", "target=a.de", "output=a.de"], "output=a.de and a.de are the same file"),
        (["source=a.en", "target=a.de", "output=link.pt"], "best.pt are the same file"),
        (["source=a.en", "target=a.de", "max_source_tokens=1"], "max_source_tokens: found 1"),
        (["source=a.en", "target=a.de", "ensemble=median"], 'ensemble: found "median", allowed is one of log_probs'),
    ],
)
def test_wrong_input_gives_one_message(run_command, tiny, home, overrides, message) -> None:
    (home / "link.pt").symlink_to(tiny.folder / "best.pt")
    for name, tokens in (("a.jsonl", ["5"]), ("b.jsonl", [99999, 3])):
        entry = {"line": 1, "source": "A house.", "translations": [{"tokens": tokens}]}
        (home / name).write_text(json.dumps(entry) + "\n", encoding="utf-8")
    done = run_command("score", f"checkpoint={tiny.folder}/best.pt", *overrides, cwd=home)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("checkpoint=[]", "checkpoint: found [], allowed is a path or a list"), ("checkpoint=5", "checkpoint: found 5")],
)
@pytest.mark.parametrize("command", ["score", "translate", "evaluate"])
def test_a_checkpoint_must_be_a_path_or_a_list_of_paths(run_command, tmp_path, command, checkpoint, message) -> None:
    done = run_command(command, checkpoint, cwd=tmp_path)
    assert (done.code, message in done.err) == (2, True), done.err
