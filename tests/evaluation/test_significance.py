"""Significance: sacreBLEU's own numbers, equal systems, seeds, and what systems may be."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

from gnmt.decoding.segments import Translation
from gnmt.errors import InputError
from gnmt.evaluation.evaluate import checkpoints_hash, sentences_tsv
from gnmt.evaluation.metrics import sentence_chrf
from gnmt.evaluation.significance import _T_QUANTILES, compare_seeds, compare_systems, mean_and_interval
from gnmt.evaluation.systems import (
    Scoring,
    System,
    choose_references,
    choose_scoring,
    find_evaluation,
    read_systems,
)

WORDS = ["der", "alte", "Mann", "liest", "heute", "ein", "rotes", "Buch", "im", "Garten"]


def lines(seed: int, noise: float = 0.0, number: int = 60) -> list[str]:
    """Return random sentences, the same ones for each noise, in which some words are replaced."""
    texts, noises = random.Random(7), random.Random(seed)
    return [
        " ".join("falsch" if noises.random() < noise else word for word in texts.choices(WORDS, k=7))
        for _ in range(number)
    ]


REFERENCES = [lines(0)]
BLEU_ONLY = Scoring(("bleu",))


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(path)


def write_evaluation(
    run: Path, translations: list[str], *, seed: int = 1, test_set: str = "test", lr: float = 0.1
) -> str:
    """Write a run folder as train.py and evaluate.py leave it."""
    folder = run / "translations"
    folder.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"seed": seed, "optimizer": {"lr": lr}}))
    rows = [(f"source {number}", reference) for number, reference in enumerate(REFERENCES[0])]
    found = [Translation(text, -1.5, ()) for text in translations]
    table = sentences_tsv(rows, found, sentence_chrf(translations, *REFERENCES))
    (folder / f"{test_set}-1234.best.5678.tsv").write_text(table, encoding="utf-8")
    scores = {"test_set": test_set, "bleu_tokenize": "13a", "lowercase": False}
    (folder / f"{test_set}-1234.best.5678.json").write_text(json.dumps(scores))
    return str(run)


def test_the_numbers_are_those_of_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [("a", lines(1, 0.3)), ("b", lines(2, 0.2))]
    table = compare_systems([System(*item) for item in named], REFERENCES, BLEU_ONLY, num_samples=100, seed=5)
    monkeypatch.setenv("SACREBLEU_SEED", "5")
    _, scores = PairedTest(named, {"bleu": BLEU()}, REFERENCES, test_type="bs", n_samples=100)()
    first, second = scores["BLEU"]
    assert table.header == ["metric", "system", "score", "95% interval", "difference", "p"]
    assert table.rows[0][:3] == ["BLEU", "a", f"{first.score:.2f}"]
    assert table.rows[1] == [
        "BLEU",
        "b",
        f"{second.score:.2f}",
        f"{second.mean - second.ci:.2f} to {second.mean + second.ci:.2f}",
        f"{second.score - first.score:+.2f}",
        f"{second.p_value:.4f}",
    ]
    assert table.notes[0] == "60 sentences; baseline: a; paired bootstrap with 100 resampled test sets, seed 5"
    assert "seed:5" in table.notes[-1]


def test_the_table_says_that_a_smaller_ter_is_better() -> None:
    """A difference of -0.5 TER looked like a loss beside +0.6 BLEU."""
    systems = [System("a", lines(1, 0.3)), System("b", lines(2, 0.2))]
    table = compare_systems(systems, REFERENCES, Scoring(("bleu", "ter")), num_samples=20)
    assert [row[:2] for row in table.rows] == [["BLEU", "a"], ["BLEU", "b"], ["TER", "a"], ["TER", "b"]]
    assert table.notes[-1].startswith("TER: smaller is better; nrefs:1|")
    assert "smaller" not in table.notes[-2]


@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
def test_equal_systems_do_not_differ_and_a_much_better_one_does(test) -> None:
    bad, good = lines(1, 0.5), lines(2, 0.05)
    systems = [System("bad", bad), System("same", bad), System("good", good)]
    before = dict(os.environ)
    table = compare_systems(systems, REFERENCES, BLEU_ONLY, test=test, num_samples=200)
    assert table == compare_systems(systems, REFERENCES, BLEU_ONLY, test=test, num_samples=200)
    assert dict(os.environ) == before
    p_values = [row[-1] for row in table.rows]
    assert p_values[0] == "–"
    assert float(p_values[1]) == 1  # sacreBLEU itself gives 1/201
    assert float(p_values[2]) < 0.02


def t_probability(quantile: float, freedom: int) -> float:
    """Return P(T <= quantile) of Student's t-distribution, by the midpoint rule over its density."""
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    width = quantile / 20_000
    heights = ((1 + ((step + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for step in range(20_000))
    return 0.5 + scale * width * sum(heights)


def test_the_t_interval_over_seeds() -> None:
    assert mean_and_interval([30.0]) == ["30.00", "–"]
    # Two values: the 0.975 quantile of t with one degree of freedom is tan(pi * 0.475).
    half_width = math.tan(math.pi * 0.475) * math.sqrt(2) / math.sqrt(2)
    assert mean_and_interval([30.0, 32.0]) == ["31.00 ± 1.41", f"{31 - half_width:.2f} to {31 + half_width:.2f}"]
    assert mean_and_interval([30.0, 30.0]) == ["30.00 ± 0.00", "30.00 to 30.00"]
    # Three values: their standard deviation is 1, and t with two degrees of freedom has the quantile 4.303.
    assert mean_and_interval([1.0, 2.0, 3.0], digits=3) == ["2.000 ± 1.000", "-0.484 to 4.484"]


def test_the_quantiles_are_those_of_students_t_distribution() -> None:
    for freedom, quantile in enumerate(_T_QUANTILES, start=1):
        low, high = (t_probability(quantile + change, freedom) for change in (-0.0006, 0.0006))
        assert low < 0.975 < high, freedom
    many = mean_and_interval([0.0, 2.0] * 50, digits=3)  # more values than the table has: the last quantile
    assert many == ["1.000 ± 1.005", f"{1 - 0.2086 * 1.00504:.3f} to {1 + 0.2086 * 1.00504:.3f}"]


def test_runs_that_differ_in_their_seed_form_a_group(tmp_path: Path) -> None:
    paths = [
        write_evaluation(tmp_path / "a1", lines(1, 0.3), seed=11),
        write_evaluation(tmp_path / "a2", lines(2, 0.3), seed=2),
        write_evaluation(tmp_path / "b", lines(3, 0.1), lr=0.2),
    ]
    systems = read_systems(paths, [], None)
    table = compare_seeds(systems, choose_references(systems, []), BLEU_ONLY)
    assert table is not None
    assert table.header == ["metric", "runs", "seeds", "mean", "95% t-interval"]
    assert [row[:3] for row in table.rows] == [["BLEU", paths[0], "2, 11"], ["BLEU", paths[2], "1"]]
    scores = [BLEU().corpus_score(lines(seed, 0.3), REFERENCES).score for seed in (1, 2)]
    assert table.rows[0][3:] == mean_and_interval(scores)
    assert table.rows[1][4] == "–"
    assert compare_seeds(systems[1:], REFERENCES, BLEU_ONLY) is None


def test_two_evaluations_of_one_run_are_no_seeds(tmp_path: Path) -> None:
    """Greedy and beam search of one run had a row "2 seeds" with a deviation over seeds, and so had a copied run."""
    runs = [write_evaluation(tmp_path / name, lines(1, 0.3)) for name in ("a", "copy")]
    systems = read_systems(runs, [], None)
    assert compare_seeds(systems, REFERENCES, BLEU_ONLY) is None
    [table] = (tmp_path / "a" / "translations").glob("*.tsv")
    greedy = table.with_name("test-1234.best.beam_size-1.5678")
    write_evaluation(tmp_path / "other seed", lines(2, 0.3), seed=2)
    for ending in (".tsv", ".json"):
        shutil.copy(table.with_suffix(ending), f"{greedy}{ending}")
    systems = read_systems([f"{greedy}.tsv", str(tmp_path / "other seed")], [], None)
    assert compare_seeds(systems, REFERENCES, BLEU_ONLY) is None


def test_an_evaluation_of_an_earlier_best_checkpoint_does_not_count(tmp_path: Path) -> None:
    """After more training, systems were compared by the translations of the checkpoint before."""
    run, other = (write_evaluation(tmp_path / name, lines(seed, 0.3)) for seed, name in enumerate("ab"))
    best = tmp_path / "a" / "best.pt"
    best.write_bytes(b"newer")
    with pytest.raises(InputError, match=r"a has an evaluation of an earlier best\.pt, which training has replaced"):
        read_systems([run, other], [], None)
    folder = tmp_path / "a" / "translations"
    for ending in ("tsv", "json"):
        shutil.copy(
            folder / f"test-1234.best.5678.{ending}", folder / f"test-1234.best.{checkpoints_hash([best])}.{ending}"
        )
    assert find_evaluation(tmp_path / "a", None).name == f"test-1234.best.{checkpoints_hash([best])}.tsv"


def test_runs_tables_and_text_files_are_systems(tmp_path: Path) -> None:
    noisy = lines(1, 0.3)
    run = write_evaluation(tmp_path / "a", noisy)
    write_evaluation(tmp_path / "a", lines(4, 0.3), test_set="dev")
    table = str(tmp_path / "a" / "translations" / "test-1234.best.5678.tsv")
    text = write(tmp_path / "b.txt", noisy)
    systems = read_systems([run, table, text], [], "test")
    assert systems[0].translations == systems[1].translations == systems[2].translations == noisy
    assert choose_references(systems, []) == REFERENCES
    others = [write(tmp_path / "r1", lines(8)), write(tmp_path / "r2", lines(9, 0.1))]
    assert choose_references(systems, others) == [lines(8), lines(9, 0.1)]
    assert choose_scoring(systems, ["bleu"], None, None) == Scoring(("bleu",), "13a", False)
    assert choose_scoring(systems, ["bleu"], "char", True) == Scoring(("bleu",), "char", True)


def test_a_test_set_of_another_name_counts_if_its_text_is_the_same(tmp_path: Path) -> None:
    """A student of data=translated calls the test set of its teacher `test`."""
    teacher = write_evaluation(tmp_path / "teacher", lines(1, 0.3))
    student = write_evaluation(tmp_path / "student", lines(2, 0.3), test_set="held_out")
    systems = read_systems([teacher, student], [], "test")
    assert [system.test_set for system in systems] == ["test", "held_out"]
    with pytest.raises(InputError, match="teacher has no evaluation on dev, only on test"):
        read_systems([teacher, student], [], "dev")


def test_damaged_files_of_an_evaluation_are_named(tmp_path: Path) -> None:
    """They ended in a traceback, and a score that is not a number gave a report without sentences."""
    run, other = (write_evaluation(tmp_path / name, lines(seed, 0.3)) for seed, name in enumerate("ab"))
    (tmp_path / "a" / "config.json").write_text('{"a":', encoding="utf-8")
    with pytest.raises(InputError, match=r"a/config\.json cannot be read"):
        read_systems([run, other], [], None)
    [table] = (tmp_path / "b" / "translations").glob("*.tsv")
    text = table.read_text(encoding="utf-8")
    for wrong in ("nan", "-inf", "abc"):
        rows = [row.split("\t") for row in text.splitlines()]
        rows[3][2] = wrong
        table.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(InputError, match=rf"{table.name}:4: score: found '{wrong}', allowed is a finite number"):
            read_systems([other, run], [], None)


def test_wrong_systems(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "a", lines(1, 0.3))
    short = write(tmp_path / "short.txt", lines(1)[:5])
    plain = write(tmp_path / "plain.txt", lines(1))
    (tmp_path / "empty").mkdir()
    wrong = write(tmp_path / "wrong.tsv", ["a\tb"])
    for paths, test_set, message in (
        ([run], None, "give two or more"),
        ([run, run], None, "given twice"),
        ([plain, short], None, "give them with target="),
        ([run, short], None, r"a has 60 translations and .*short\.txt has 5"),
        ([run, str(tmp_path / "empty")], None, r"empty has no evaluation: run scripts/evaluate\.py"),
        ([run, plain], "dev", r"a has no evaluation on dev"),
        ([run, wrong], None, r"wrong\.tsv:1: not a table of evaluate\.py"),
        ([run, str(tmp_path / "none.txt")], None, "none.txt"),
        ([write(tmp_path / "e1", []), write(tmp_path / "e2", [])], None, "e1 has no sentence: there is nothing to com"),
        ([run, str(tmp_path / "a" / "best.pt")], None, r"best\.pt is a checkpoint: give its run folder"),
    ):
        with pytest.raises(InputError, match=message):
            read_systems(paths, [plain] if "e1" in str(paths) else [], test_set)
    with pytest.raises(InputError, match="no evaluation on dev, only on test"):
        read_systems([run, plain], [], "dev")
    write_evaluation(tmp_path / "a", lines(4, 0.3), test_set="dev")
    with pytest.raises(InputError, match=r"a has 2 evaluations: give test_set= one of dev, test, or one of these"):
        read_systems([run, plain], [], None)
    with pytest.raises(InputError, match=r"metrics: the list is empty, and there is no scores="):
        choose_scoring([System("x", lines(1))], [], None, None)
    with pytest.raises(InputError, match=r"60 translations and .*short\.txt has 5 lines"):
        choose_references([System("x", lines(1))], [short])
    mixed = [System("x", [], tokenize="13a"), System("y", [], tokenize="char")]
    with pytest.raises(InputError, match="bleu_tokenize: the systems were evaluated with 13a, char"):
        choose_scoring(mixed, ["bleu"], None, None)


def test_evaluations_of_different_text_are_refused(tmp_path: Path) -> None:
    paths = [write_evaluation(tmp_path / "a", lines(1)), write_evaluation(tmp_path / "b", lines(1))]
    (table,) = (tmp_path / "b" / "translations").glob("*.tsv")
    table.write_text(table.read_text(encoding="utf-8").replace("source 3\t", "another\t"), encoding="utf-8")
    with pytest.raises(InputError, match="have different sources"):
        read_systems(paths, [], None)


def test_the_table_of_sentences_has_the_worst_first_and_one_line_for_each() -> None:
    rows = [("a\tb", "gut"), ("c", "ja\u2028nein")]
    translations = [Translation("gut", -0.5, ()), Translation("falsch", -2.0, ())]
    heading, *found = sentences_tsv(rows, translations, [100.0, 12.345]).splitlines()
    assert heading == "line\tchrf\tscore\tsource\ttranslation\treference"
    assert found == ["2\t12.35\t-2.0000\tc\tfalsch\tja nein", "1\t100.00\t-0.5000\ta b\tgut\tgut"]


def test_the_command(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", lines(1, 0.3))
    write(tmp_path / "b.txt", lines(2, 0.2))
    write(tmp_path / "r.de", lines(0))
    script = Path(__file__).parents[2] / "scripts" / "significance.py"
    options = ["systems=[a.txt,b.txt]", "target=r.de", "num_samples=50", "metrics=[bleu]", "format=tsv"]
    done = subprocess.run([sys.executable, script, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split("\t")[1] for line in done.stdout.splitlines()[:3]] == ["system", "a.txt", "b.txt"]
    assert done.stderr == ""
