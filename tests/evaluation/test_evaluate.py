"""Names and folders of an evaluation's files: the same evaluation has the same ones, no other evaluation has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.tokenizer import TokenizerOptions, train_tokenizer
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import Translation
from gnmt.errors import InputError
from gnmt.evaluation.evaluate import (
    EvaluationFiles,
    choose_bleu_tokenizer,
    count_changed_references,
    evaluate,
    evaluation_names,
    output_folder,
)

PAIRS = [("A house.", "Ein Haus.")]
OTHER_PAIRS = [("A house.", "Das Haus.")]


def make_run(folder: Path, weights: bytes = b"weights") -> Path:
    """Make a folder that counts as a run, and return its best checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "best.pt").write_bytes(weights)
    return folder / "best.pt"


def name(checkpoint, pairs=PAIRS, test_set="test", variant=""):
    return evaluation_names(test_set, pairs, [checkpoint], variant)[1]


def test_a_name_holds_test_set_text_checkpoint_variant_and_contents(tmp_path):
    best = make_run(tmp_path / "run")
    text_name, full = evaluation_names("test", PAIRS, [best], ".beam_size-1")
    test_set, _, text_hash = text_name.partition("-")
    assert (test_set, len(text_hash)) == ("test", 8)
    start, _, checkpoint_hash = full.rpartition(".")
    assert start == f"test-{text_hash}.best.beam_size-1"
    assert len(checkpoint_hash) == 8
    _, of_two = evaluation_names("test", PAIRS, [best, best], "")
    assert of_two.startswith(f"test-{text_hash}.best+best.")


def test_two_runs_evaluated_into_one_folder_keep_their_files(tmp_path):
    """Both wrote test.best.json."""
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other", b"other weights")
    assert name(one) != name(other)
    assert name(one) == name(one), "the same evaluation again"
    assert name(one, variant=".beam_size-1") != name(one)


def test_other_text_of_the_same_test_set_has_another_name(tmp_path):
    """source=x/test wrote test.best.json over the data's own test, and the other way round."""
    best = make_run(tmp_path / "run")
    assert name(best, OTHER_PAIRS) != name(best)
    assert name(best, [*PAIRS, *PAIRS]) != name(best)


def test_other_references_have_another_name(tmp_path):
    best = make_run(tmp_path / "run")
    assert name(best, [("A house.", "Ein Haus.", "Das Haus.")]) not in (name(best), name(best, OTHER_PAIRS))


def test_a_test_set_is_read_with_its_references_or_from_a_file_of_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, text in (("a.en", "A house.\n"), ("a.de", "Ein Haus.\n"), ("b.de", "Das Haus.\n"), ("c.de", "1\n2\n")):
        Path(path).write_text(text)
    Path("a.tsv").write_text("A house.\tEin Haus.\n")
    Path("a.jsonl").write_text('{"translation": {"en": "A house.", "de": "Ein Haus."}}\n')
    both = EvaluationFiles("a.en", ["a.de", "b.de"])
    assert both.read() == [("A house.", "Ein Haus.", "Das Haus.")]
    assert both.resolved() == {
        "source": str(tmp_path / "a.en"),
        "target": [str(tmp_path / "a.de"), str(tmp_path / "b.de")],
    }
    assert EvaluationFiles("a.en", ["a.de"]).resolved()["target"] == str(tmp_path / "a.de")
    assert EvaluationFiles(None, [], "a.tsv").read() == PAIRS
    assert EvaluationFiles(None, [], "a.tsv").name == "a.tsv"
    nested = EvaluationFiles(None, [], "a.jsonl", ["translation.en", "translation.de"])
    assert nested.read() == PAIRS
    with pytest.raises(InputError, match=r"a\.en has 1 line and c\.de has 2"):
        EvaluationFiles("a.en", ["a.de", "c.de"]).read()
    with pytest.raises(InputError, match=r"source=a\.tsv is a file of TSV, .* give it as pairs="):
        EvaluationFiles("a.tsv", ["a.tsv"])
    for source, targets, pairs in (("a.en", [], None), (None, ["a.de"], None), ("a.en", ["a.de"], "a.tsv")):
        with pytest.raises(InputError, match=r"belong together|not both"):
            EvaluationFiles(source, targets, pairs)


def test_a_copied_checkpoint_and_a_link_have_the_name_of_the_same_contents(tmp_path):
    best = make_run(tmp_path / "run")
    last, copy = best.with_name("last.pt"), make_run(tmp_path / "moved")
    last.symlink_to("best.pt")
    assert name(copy) == name(best)
    assert name(last) == name(best).replace(".best.", ".last.")
    last.unlink()
    last.write_bytes(b"later weights")
    assert name(last).rpartition(".")[2] != name(best).rpartition(".")[2]


def test_a_checkpoint_that_was_deleted_is_named(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint .*gone\.pt cannot be read \(No such file or directory\)"):
        name(tmp_path / "gone.pt")


def test_files_are_written_to_the_run_or_beside_the_checkpoint(tmp_path):
    best = make_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    full, alone = tmp_path / "run" / "checkpoints" / "step_1.pt", tmp_path / "average.pt"
    assert output_folder([best], None) == output_folder([full], None) == tmp_path / "run" / "translations"
    assert output_folder([alone], None) == tmp_path / "average.translations"
    assert output_folder([best, alone], tmp_path / "x") == tmp_path / "x"
    with pytest.raises(InputError, match="output=FOLDER"):
        output_folder([best, alone], None)


def test_a_checkpoint_replaced_during_the_translation_does_not_change_the_names(tmp_path):
    """The files had the hash of the new best.pt, which had not made these translations."""
    best = make_run(tmp_path / "run")
    expected = name(best)

    def translate(sources, **options):
        best.write_bytes(b"later weights")
        return [Translation("Ein Haus.", 0.0, ()) for _ in sources]

    evaluation = evaluate_with(translate, PAIRS, best, tmp_path / "out")
    assert evaluation.scores_file.name == f"{expected}.json"


@pytest.mark.parametrize(
    ("given", "recorded", "language", "reference", "expected"),
    [
        (None, "auto", "de", "eine Katze", "13a"),
        (None, "auto", "zh", "一只猫", "zh"),
        (None, "char", "zh", "一只猫", "char"),
        ("13a", "auto", "zh", "一只猫", "13a"),
        ("zh", "auto", "target", "一只猫", "zh"),
    ],
)
def test_bleu_is_tokenized_as_the_checkpoint_records_unless_the_command_says_otherwise(
    given, recorded, language, reference, expected
):
    data = {"bleu_tokenize": recorded, "target_language": language}
    assert choose_bleu_tokenizer(given, data, [("a cat", reference)]) == expected


def test_references_in_an_unexpected_script_are_refused_with_the_key_to_set():
    data = {"bleu_tokenize": "auto", "target_language": "target"}
    with pytest.raises(InputError, match=r"are Hangul, .*_language=target: choose bleu_tokenize=ko-mecab"):
        choose_bleu_tokenizer(None, data, [("a cat", "고양이가 잔다")])


def evaluate_with(translate, pairs, checkpoint, output, tokenizer=None):
    translator = SimpleNamespace(
        translate=translate,
        tokenizers=SimpleNamespace(target=tokenizer),
        options=SearchOptions(),
        precision=SimpleNamespace(name="fp32"),
        batch_size=1,
    )
    return evaluate(
        translator, pairs, test_set="test", checkpoints=[checkpoint], steps=[1], bleu_tokenize="13a", output=output
    )


def test_references_that_the_tokenizer_changes_are_counted_and_warned_about(tmp_path, caplog):
    """No translation can equal them, and BLEU stayed low without a word."""
    best = make_run(tmp_path / "run")
    pairs = [("a house", "ein Haus！"), ("half", "½ Haus"), ("a house", "ein Haus")]
    lines = [reference for _, reference in pairs]
    for normalization, num_changed in (("nmt_nfkc", 2), ("identity", 0)):
        caplog.clear()
        tokenizer = train_tokenizer(lines, TokenizerOptions(vocab_size=280), normalization)
        evaluation = evaluate_with(
            lambda sources, **_: [Translation("Haus", 0.0, ()) for _ in sources], pairs, best, tmp_path, tokenizer
        )
        assert json.loads(evaluation.scores_file.read_text())["changed_references"] == num_changed
        warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == (num_changed > 0)
        assert all("the references of test: 2 of 3 lines change" in warning for warning in warnings)


def test_references_of_pretokenized_text_are_not_counted(tmp_path, caplog):
    """They are whole words, which this tokenizer cannot split as the training text was split."""
    tokenizer = PretokenizedTokenizer(("<pad>", "<unk>", "<s>", "</s>", "Ha@@", "us"))
    assert count_changed_references(tokenizer, ["Haus"], "test") is None
    assert not caplog.records
