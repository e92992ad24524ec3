"""Distillation and back-translation: prepare.py text_folder, translate.py format=pairs, train.py data=translated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gnmt.data.store import read_preprocessed


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_prepare_writes_the_pairs_that_training_uses_and_dev_and_test_sets_as_text(run_command, tmp_path) -> None:
    settings = ["data.num_train=60", "data.num_dev=4", "data.num_test=3", "tokenizer.vocab_size=420"]
    short = "data.cleaning.max_length_tokens=24"
    done = run_command("prepare", *settings, short, "text_folder=text", cwd=tmp_path)
    assert done.code == 0, done.err
    [folder] = (tmp_path / "preprocessed").iterdir()
    data = read_preprocessed(folder)
    assert 0 < len(data.store) < 60, "cleaning has removed some pairs"
    text = tmp_path / "text"
    expected = {"train": [(data.store.source_text(n), data.store.target_text(n)) for n in range(len(data.store))]}
    expected |= {"dev": data.dev, **data.tests}
    assert sorted(path.name for path in text.iterdir()) == sorted(
        f"{name}.{end}" for name in expected for end in ("en", "de")
    )
    for name, pairs in expected.items():
        assert list(zip(lines_of(text / f"{name}.en"), lines_of(text / f"{name}.de"), strict=True)) == list(pairs)
        assert f"text/{name}.de\n" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["[source,translation]", "[translation,source]"], ids=["distillation", "back"])
def test_two_commands_train_a_student_on_a_models_translations(run_command, tiny, trained, tmp_path, columns) -> None:
    """For back-translation the model's output is the source."""
    sources = ["The old man reads a book.", "", "Does the child see the house?", "The women sing."]
    targets = ["Der alte Mann liest ein Buch.", "", "Sieht das Kind das Haus?", "Die Frauen singen."]
    (tmp_path / "a.en").write_text("".join(f"{line}\n" for line in sources * 20))
    (tmp_path / "a.de").write_text("".join(f"{line}\n" for line in targets * 20))
    best = f"checkpoint={trained.folder / 'best.pt'}"
    teacher = ["format=pairs", "input=a.en", "output=translated.jsonl", "decoding.n_best=2", "decoding.beam_size=2"]
    done = run_command("translate", best, *teacher, cwd=tmp_path)
    assert done.code == 0, done.err
    pairs = [json.loads(line) for line in lines_of(tmp_path / "translated.jsonl")]
    assert len(pairs) == 2 * 3 * 20, "two hypotheses of each line that is not blank"
    assert {pair["source"] for pair in pairs} == {line for line in sources if line}
    corpora, student = "data.corpora", [one for one in tiny.overrides if not one.startswith(("data.", "name="))]
    done = run_command(
        "train", *student, "name=student", "data=translated", f"{corpora}.translated.text.columns={columns}",
        f"{corpora}.parallel.text.source=a.en", f"{corpora}.parallel.text.target=a.de", f"{corpora}.parallel.weight=3",
        f"{corpora}.translated.text.pairs=translated.jsonl", "data.dev.source=a.en", "data.dev.target=a.de",
        "tokenizer.vocab_size=300", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    [folder] = (tmp_path / "preprocessed").iterdir()
    store = read_preprocessed(folder).store
    found = {(store.source_text(pair), store.target_text(pair)) for pair in range(len(store))}
    keys = columns.strip("[]").split(",")
    assert found == {(pair[keys[0]], pair[keys[1]]) for pair in pairs} | {
        pair for pair in zip(sources, targets, strict=True) if all(pair)
    }
    assert (tmp_path / "runs" / "student" / "best.pt").exists()
