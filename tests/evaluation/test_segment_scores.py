"""Segment scores of other programs: files of comet-score, text files, wrong ones, and tables with them."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import numpy as np
import pytest

from gnmt.decoding.segments import Translation
from gnmt.errors import InputError
from gnmt.evaluation.compare import compare
from gnmt.evaluation.compare import with_segment_scores as with_means
from gnmt.evaluation.evaluate import sentences_tsv
from gnmt.evaluation.metrics import sentence_chrf, sentence_gleu
from gnmt.evaluation.run_records import EvaluationRecord, RunRecord
from gnmt.evaluation.segment_scores import read_score_files
from gnmt.evaluation.significance import compare_seeds, compare_systems
from gnmt.evaluation.systems import Scoring, System, read_systems, with_segment_scores

WORDS = ["der", "alte", "Mann", "liest", "heute", "ein", "rotes", "Buch", "im", "Garten"]


def lines(seed: int, noise: float = 0.0) -> list[str]:
    """Return 60 random sentences, the same ones for each noise, in which some words are replaced."""
    texts, noises = random.Random(7), random.Random(seed)
    return [
        " ".join("falsch" if noises.random() < noise else word for word in texts.choices(WORDS, k=7)) for _ in range(60)
    ]


REFERENCES = [lines(0)]
A, B = lines(1, 0.4), lines(2, 0.1)
NONE = Scoring(())


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def write_evaluation(run: Path, translations: list[str], seed: int = 1) -> str:
    """Write a run folder as train.py and evaluate.py leave it, without checkpoints."""
    folder = run / "translations"
    folder.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"seed": seed}))
    rows = [(f"source {number}", reference) for number, reference in enumerate(REFERENCES[0])]
    found = [Translation(text, -1.5, ()) for text in translations]
    table = sentences_tsv(rows, found, sentence_chrf(translations, *REFERENCES))
    (folder / "test-1234.best.5678.tsv").write_text(table, encoding="utf-8")
    scores = {"test_set": "test", "bleu_tokenize": "13a", "lowercase": False}
    (folder / "test-1234.best.5678.json").write_text(json.dumps(scores))
    return str(run)


def scores_of(texts: list[str], references: list[str] = REFERENCES[0]) -> list[float]:
    """Return invented segment scores: the fraction of words that equal those of the reference."""
    pairs = zip(texts, references[: len(texts)], strict=True)
    return [sum(map(str.__eq__, one.split(), other.split())) / len(other.split()) for one, other in pairs]


def comet_file(path: Path, systems: dict[str, list[str]]) -> str:
    """Write what `comet-score --to_json` writes."""
    contents = {
        name: [
            {"src": f"source {n}", "mt": text.strip(), "ref": REFERENCES[0][n], "COMET": score}
            for n, (text, score) in enumerate(zip(texts, scores_of(texts), strict=True))
        ]
        for name, texts in systems.items()
    }
    path.write_text(json.dumps(contents, ensure_ascii=False, indent=4), encoding="utf-8")
    return str(path)


def numbers_file(path: Path, numbers: list[float]) -> str:
    path.write_text("".join(f"{number}\n" for number in numbers), encoding="utf-8")
    return str(path)


def test_comet_scores_belong_to_the_system_with_the_same_translations(tmp_path):
    """The file names the paths that comet-score saw, which need not be those of the systems."""
    runs = [write_evaluation(tmp_path / "a", A), write_evaluation(tmp_path / "b", [f"{text} " for text in B])]
    path = comet_file(tmp_path / "comet.json", {"elsewhere/b.txt": B, "a.txt": A})
    first, second = with_segment_scores(read_systems(runs, [], None), read_score_files(path))
    assert first.segment_scores == {"COMET": scores_of(A)}
    assert second.segment_scores == {"COMET": scores_of(B)}


def test_text_files_belong_to_the_systems_in_their_order(tmp_path):
    systems = [System("a", A), System("b", B)]
    paths = [numbers_file(tmp_path / f"{name}.txt", scores_of(texts)) for name, texts in (("x", A), ("y", B))]
    [unnamed, named] = (with_segment_scores(systems, read_score_files(given)) for given in (paths, {"MetricX": paths}))
    assert unnamed[1].segment_scores == {"segment score": scores_of(B)}
    assert named[0].segment_scores == {"MetricX": scores_of(A)}


def bootstrap(one: list[float], other: list[float], num_samples: int, seed: int) -> float:
    """Return the p-value of the paired bootstrap, computed plainly."""
    indices = np.random.default_rng(seed).choice(len(one), size=(num_samples, len(one)), replace=True)
    differences = np.abs(np.array(other)[indices].mean(1) - np.array(one)[indices].mean(1))
    observed = abs(statistics.fmean(other) - statistics.fmean(one))
    return (int((differences - differences.mean() > observed).sum()) + 1) / (num_samples + 1)


def test_the_paired_bootstrap_resamples_segment_scores():
    close = [score + 0.02 * (index % 3) - 0.018 for index, score in enumerate(scores_of(A))]
    systems = [
        System("a", A, segment_scores={"COMET": scores_of(A)}),
        System("close", A, segment_scores={"COMET": close}),
        System("b", B, segment_scores={"COMET": scores_of(B)}),
    ]
    table = compare_systems(systems, REFERENCES, NONE, num_samples=200, seed=5)
    assert [row[:2] for row in table.rows] == [["COMET", "a"], ["COMET", "close"], ["COMET", "b"]]
    mean, means = statistics.fmean(scores_of(A)), [statistics.fmean(one) for one in (close, scores_of(B))]
    assert [row[2] for row in table.rows] == [f"{value:.4f}" for value in (mean, *means)]
    assert [row[4] for row in table.rows] == ["–", *(f"{value - mean:+.4f}" for value in means)]
    expected = [bootstrap(scores_of(A), other, 200, 5) for other in (close, scores_of(B))]
    assert 0.01 < expected[0] < 1
    assert [row[5] for row in table.rows[1:]] == [f"{value:.4f}" for value in expected]
    low, high = map(float, table.rows[0][3].split(" to "))
    assert low < mean < high
    # The note looked like a signature of sacreBLEU: COMET: nrefs:1|bs:200|seed:5|version:2.6.0
    assert table.notes[-1] == "COMET: mean of the scores that another program gave the sentences"
    randomized = compare_systems(systems, REFERENCES, NONE, test="randomization", num_samples=200)
    assert float(randomized.rows[2][5]) < 0.02


def test_gleu_and_chrfpp_are_tested_beside_the_others():
    systems = [System("a", A), System("b", B)]
    table = compare_systems(systems, REFERENCES, Scoring(), num_samples=50)
    assert [row[0] for row in table.rows[::2]] == ["BLEU", "chrF", "chrF++", "TER", "GLEU"]
    pairs = [(text.split(), reference.split()) for text, reference in zip(B, REFERENCES[0], strict=True)]
    assert table.rows[9][2] == f"{100 * statistics.fmean(sentence_gleu(*pair) for pair in pairs):.2f}"
    assert float(table.rows[9][5]) < 0.05
    assert "nw:2" in table.notes[-3]
    assert table.notes[-1].startswith("GLEU: nrefs:1|bs:50|seed:12345|case:mixed|tok:13a|mean|version:")


def test_means_over_seeds(tmp_path):
    runs = [write_evaluation(tmp_path / f"run{seed}", texts, seed=seed) for seed, texts in enumerate((A, B))]
    files = read_score_files(comet_file(tmp_path / "comet.json", {"a": A, "b": B}))
    table = compare_seeds(with_segment_scores(read_systems(runs, [], None), files), REFERENCES, NONE)
    assert table is not None
    means = [statistics.fmean(scores_of(texts)) for texts in (A, B)]
    assert table.rows[0][0] == "COMET"
    assert table.rows[0][3] == f"{statistics.fmean(means):.4f} ± {statistics.stdev(means):.4f}"


def evaluated_run(folder: Path, name: str, seed: int, **evaluations: list[str]):
    """Return the record of a run with the translations of its evaluations, by the name of the test set."""
    found = {}
    for test_set, texts in evaluations.items():
        path = folder / f"{name}-{test_set}.txt"
        write(path, texts)
        found[f"{test_set}.best"] = EvaluationRecord({"bleu": 30.0, "chrf": 60.0}, {}, [], 9.0, path)
    return RunRecord(Path("runs") / name, {"seed": seed}, evaluations=found)


def test_the_table_of_runs_has_a_column_of_means(tmp_path):
    runs = [
        evaluated_run(tmp_path, "a", 1, test=A, dev=B[:7]),
        evaluated_run(tmp_path, "b", 2, test=B),
        evaluated_run(tmp_path, "c", 3, test=lines(5)),
    ]
    files = read_score_files(comet_file(tmp_path / "comet.json", {"a.txt": A, "b.txt": B}))
    [table] = compare(with_means(runs, files))
    cells = dict(zip(table.header, table.rows[0], strict=True))
    means = [statistics.fmean(scores_of(texts)) for texts in (A, B)]
    assert cells["test COMET"] == f"{statistics.fmean(means):.4f} ± {statistics.stdev(means):.4f} (2 of 3)"
    assert "dev COMET" not in cells
    assert "test COMET" not in compare(runs)[0].header


def test_text_files_of_scores_belong_to_the_runs_in_their_order(tmp_path):
    runs = [evaluated_run(tmp_path, "a", 1, test=A, dev=B[:7]), evaluated_run(tmp_path, "b", 2, test=B)]
    paths = [numbers_file(tmp_path / f"{name}.scores", scores_of(texts)) for name, texts in (("a", A), ("b", B))]
    first, second = with_means(runs, read_score_files({"X": paths}))
    assert first.evaluations["test.best"].segment_means == {"X": statistics.fmean(scores_of(A))}
    assert first.evaluations["dev.best"].segment_means == {}
    assert second.evaluations["test.best"].segment_means == {"X": statistics.fmean(scores_of(B))}
    ambiguous = [evaluated_run(tmp_path, "c", 1, test=A, dev=B), runs[1]]
    for given, files, message in (
        (ambiguous, paths, r"a\.scores has 60 lines, and runs/c has 2 evaluations with as many sentences, allowed is"),
        (
            runs,
            paths[:1],
            r"1 file \(.*a\.scores\) for 2 runs: give one file for each run, in their order: runs/a, runs/",
        ),
        (runs, [paths[0], numbers_file(tmp_path / "short", [1.0])], r"short has 1 line and .*b-test\.txt has 60"),
    ):
        with pytest.raises(InputError, match=message):
            with_means(given, read_score_files(files))
    stale = comet_file(tmp_path / "comet.json", {"old.txt": lines(9)})
    with pytest.raises(InputError, match=r"has scores of old\.txt, but no evaluation of these runs has its 60 transl"):
        with_means(runs, read_score_files(stale))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5\nabc\n", r"x\.txt:2: found 'abc', allowed is a finite number"),
        ("0.5\nnan\n", r"x\.txt:2: found 'nan', allowed is a finite number"),
        ("0.5\n\n0.5\n", r"x\.txt:2: found '', allowed is a finite number"),
        ("inf\n", r"x\.txt:1: found 'inf', allowed"),
    ],
)
def test_lines_that_are_no_finite_numbers(tmp_path, text, message):
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_score_files(str(tmp_path / "x.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"comet\.json is not JSON"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("[1]", r"is not what `comet-score --to_json` writes"),
        ('{"a": 0.5}', r"is not what `comet-score --to_json` writes"),
        ('{"a": [{"mt": "x", "COMET": NaN}]}', r"COMET of segment 1 of a is nan, allowed is a finite number"),
        ('{"a": [{"mt": "x", "COMET": "1"}]}', r"COMET of segment 1 of a is '1', allowed is a finite number"),
        ('{"a": [{"mt": "x", "COMET": 1}, {"mt": "x"}]}', "segment 2 of a has no COMET, only mt"),
        ('{"a": [{"COMET": 1}]}', "segment 1 of a has no mt, only COMET"),
        ('{"a": [{"mt": 1, "COMET": 1}]}', r"mt of segment 1 of a is 1, allowed is text"),
        ('{"a": [7]}', r"COMET of segment 1 of a is None"),
    ],
)
def test_files_that_comet_score_does_not_write(tmp_path, text, message):
    (tmp_path / "comet.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_score_files(str(tmp_path / "comet.json"))


def test_missing_systems_and_wrong_numbers_of_lines(tmp_path):
    systems = [System("a", A), System("b", B)]
    comet = comet_file(tmp_path / "comet.json", {"a.txt": A, "short.txt": B[:5]})
    numbers = numbers_file(tmp_path / "a.txt", scores_of(A))
    short = numbers_file(tmp_path / "short.txt", [0.5])
    for given, message in (
        (
            comet,
            r"no scores of b: it holds those of a\.txt \(60 segments\), short\.txt \(5 segments\), and none has the 60",
        ),
        (numbers, r"1 file \(.*a\.txt\) for 2 systems: give one file for each system"),
        ([numbers, short], r"short\.txt has 1 line and b has 60 translations: line N is the score of translation N"),
        ([comet, numbers], r"for both, name them"),
        ([comet, comet], r"several files hold scores of the name COMET: name them"),
        ([], "the list has no file"),
        ({"TER": comet}, "TER is the name of a metric that gnmt computes"),
        (str(tmp_path / "none.json"), r"none\.json cannot be read \(No such file"),
        (str(tmp_path / "none.txt"), r"none\.txt"),
    ):
        with pytest.raises(InputError, match=message):
            with_segment_scores(systems, read_score_files(given))


def test_the_commands(tmp_path, run_command):
    runs = [write_evaluation(tmp_path / "runs" / name, texts) for name, texts in (("a", A), ("b", B))]
    training_text = write(tmp_path / "training.txt", A)
    comet = comet_file(tmp_path / "comet.json", {"a": A, "b": B})
    options = [f"systems=[{','.join(runs)}]", "num_samples=20", "metrics=[bleu]"]
    done = run_command("significance", *options, f"scores={comet}", "format=tsv", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [line.split("\t")[0] for line in done.out.splitlines()[1:5]] == ["BLEU", "BLEU", "COMET", "COMET"]
    done = run_command("significance", *options, f"scores={{X:{comet}}}", "format=tsv", cwd=tmp_path)
    assert done.out.splitlines()[3].split("\t")[0] == "X", done.err
    done = run_command(
        "report", *options, f"scores={comet}", f"training_text={training_text}", "output=r.html", cwd=tmp_path
    )
    assert done.code == 0, done.err
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '"scores":["COMET"]' in html
    assert f'"given":{{"COMET":{round(scores_of(A)[0], 4)}}}' in html
    done = run_command("compare", f"runs=[{','.join(runs)}]", "scores=7", cwd=tmp_path)
    assert "scores: found 7, allowed is text" in done.err
