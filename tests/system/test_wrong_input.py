"""Wrong input on the command line, in files and in checkpoints: one helpful message, exit code 2, no traceback."""

from __future__ import annotations

import re

import pytest
import torch

from gnmt.checkpoint.file import FORMAT_VERSION, read_checkpoint

FOUR = ("train.source", "train.target", "dev.source", "dev.target")
MISSING_FILES = ("data=files", "data.train.pairs=nowhere.tsv", "data.dev.pairs=nowhere.tsv")
# (id, command, fragments of its message); FILES stands for the overrides of a small corpus in files
TABLE: list[tuple[str, list[str], list[str]]] = [
    (
        "unknown key",
        ["train", "trainer.max_step=3"],
        ["trainer.max_step: is no key of this config", "did you mean trainer.max_steps?"],
    ),
    (
        "unknown key of a component",
        ["train", "+model.encoder.hidden=3"],
        ["model.encoder.hidden: LSTMEncoder takes no such key", "model.encoder.hidden_size"],
    ),
    ("unknown choice", ["train", "optimizer=adm"], ["optimizer", "adm", "adam, adamw, sgd", "did you mean adam"]),
    (
        "unknown experiment",
        ["train", "experiment=multi30k_en"],
        ["experiment", "multi30k_en", "allowed is one of demo, ", "did you mean multi30k_en_de?"],
    ),
    ("wrong type", ["train", "seed=two"], ['seed: found "two", allowed is a whole number']),
    (
        "wrong type in a component",
        ["train", "model.encoder.num_layers=2.5"],
        ["model.encoder.num_layers: found 2.5, allowed is a whole number of at least 1"],
    ),
    (
        "out of range",
        ["train", "model.encoder.dropout=1.5"],
        ["model.encoder.dropout: found 1.5, allowed is a number of at least 0 and below 1"],
    ),
    ("out of range for translate", ["translate", "checkpoint=x", "decoding.beam_size=0"], ["decoding.beam_size", "0"]),
    ("missing value", ["evaluate"], ["checkpoint: is missing; give it as checkpoint=..."]),
    ("no such device", ["translate", "checkpoint={tiny}/best.pt", "device=gpu"], ["device", "gpu", "auto, cpu, cuda"]),
    (
        "several errors at once",
        ["train", "seed=x", "sed=1"],
        ["2 errors", 'seed: found "x", allowed is a whole number', "sed: is no key"],
    ),
    (
        "fewer learned positions than tokens",  # it once ended the run at the first long sentence
        ["train", "FILES", "model=transformer_tiny", "model.encoder.learned_positions=3"],
        ["model.encoder.learned_positions is 3, but the longest source of", "data.cleaning.max_length_tokens=3"],
    ),
    (
        "a width of a component without input_size",
        ["train", "model=transformer_tiny", "model.encoder.hidden_size=64"],
        ["model.embedding_size is 128, but model.encoder.hidden_size is 64"],
    ),
    (
        "a decoder whose bridge cannot be left out",
        ["train", "model=seq2seq", "decoding.coverage_beta=0", "model.encoder.num_bidirectional_layers=1"],
        ["final_hidden_1 of width 256", "or use a decoder with attention (model/decoder=attention)"],
    ),
    (
        "a key that the model's config sets for another encoder",
        ["train", "model=transformer_tiny", "model/encoder=lstm"],
        ["model.encoder.num_heads: LSTMEncoder takes no such key", "'~model.encoder.num_heads' leaves out"],
    ),
    (
        "a component that is correctly removed is no second error",
        ["train", "model=gnmt_small", "model/decoder=transformer", "~model/attention", "optimizer.lrr=1"],
        ["1 error in the overrides", "optimizer.lrr: is no key of this config; did you mean optimizer.lr?"],
    ),
    ("a learning rate below 0", ["train", "optimizer.lr=-1"], ["optimizer.lr: found -1, allowed is a number above 0"]),
    ("betas above 1", ["train", "optimizer.betas=[0.9,1.5]"], ["optimizer.betas: found [0.9, 1.5], allowed"]),
    ("runs that is a file", ["train", "FILES", "runs={samples}/a.en"], ["the run's folder", "cannot be made"]),
    (
        "a full device",
        ["translate", "checkpoint={tiny}/best.pt", "input={samples}/a.en", "output=/dev/full"],
        ["No space"],
    ),
    (
        "unknown BLEU tokenization",
        ["train", "data.bleu_tokenize=13b"],
        ["data.bleu_tokenize: BLEU tokenization '13b' is unknown"],
    ),
    (
        "unknown BLEU tokenization for evaluate",
        ["evaluate", "checkpoint={tiny}/best.pt", "bleu_tokenize=foo"],
        ["error: bleu_tokenize: BLEU tokenization 'foo' is unknown"],
    ),
    (
        "test set named twice",
        ["evaluate", "checkpoint={tiny}/best.pt", "source={samples}/a.en", "target={samples}/a.de", "test_set=dev"],
        ["source= and target=, or pairs=, name the test set"],
    ),
    (
        "files that were not named",
        ["train", "data=files"],
        ["2 errors", "data.train names no files", "data.dev names no files", "data.dev.source=FILE"],
    ),
    (
        "a model whose components do not fit",
        ["train", "FILES", "model.encoder.num_layers=1"],
        ["model.decoder.num_layers=1", "use model.decoder.context_to_output=added or model.decoder.num_layers=2"],
    ),
    # Text
    (
        "missing training file",
        ["train", "FILES", "data.train.source={samples}/a.eng"],
        ["{samples}/a.eng: no such file; did you mean {samples}/a.en?"],
    ),
    (
        "four missing files",
        ["train", "data=files", *(f"data.{text}=no.{text}" for text in FOUR)],
        ["4 files cannot be read:", *(f"no.{text}: no such file" for text in FOUR)],
    ),
    (
        "missing test files",
        ["evaluate", "checkpoint={tiny}/best.pt", "source=no.en", "target=no.de"],
        ["2 files cannot be read:", "no.en: no such file", "no.de: no such file"],
    ),
    (
        "half of a pair of files",
        ["train", "FILES", "data.train.target=null"],
        [
            "data.train: source names 1 file ({samples}/a.en) and target names none: "
            "give one target file for each source file"
        ],
    ),
    (
        "missing input",
        ["translate", "checkpoint={tiny}/best.pt", "input={samples}/a.eng"],
        ["{samples}/a.eng: no such file; did you mean {samples}/a.en?"],
    ),
    (
        "missing folder",
        ["translate", "checkpoint={tiny}/best.pt", "input={samples}/a.en", "output={samples}/no/a.de"],
        ["output={samples}/no/a.de cannot be written (its folder {samples}/no does not exist)"],
    ),
    (
        "output that is the input",
        ["translate", "checkpoint={tiny}/best.pt", "input={samples}/a.en", "output={samples}/a.en"],
        ["output={samples}/a.en and {samples}/a.en are the same file"],
    ),
    (
        "unequal training files",
        ["train", "FILES", "data.train.target={samples}/short.de"],
        ["{samples}/a.en has 40 lines and {samples}/short.de has 39"],
    ),
    (
        "unequal test files",
        ["evaluate", "checkpoint={tiny}/best.pt", "source={samples}/a.en", "target={samples}/short.de"],
        ["{samples}/a.en has 40 lines and {samples}/short.de has 39"],
    ),
    (
        "one file of a pair",
        ["evaluate", "checkpoint={tiny}/best.pt", "source={samples}/a.en"],
        ["source= and target= belong together"],
    ),
    (
        "bad UTF-8 in training",
        ["train", "FILES", "data.train.source={samples}/latin1.en"],
        ["{samples}/latin1.en:7: not UTF-8: byte 0xfc"],
    ),
    (
        "bad UTF-8 in input",
        ["translate", "checkpoint={tiny}/best.pt", "input={samples}/latin1.en", "output=a.de"],
        ["{samples}/latin1.en:7: not UTF-8: byte 0xfc"],
    ),
    (
        "empty corpus",
        ["train", "FILES", "data.train.source={samples}/empty", "data.train.target={samples}/empty"],
        ["data.train holds no sentence pair with text on both sides (0 pairs read)"],
    ),
    (
        "empty dev set",
        ["train", "FILES", "data.dev.source={samples}/empty", "data.dev.target={samples}/empty"],
        ["data.dev holds no sentence pair with text on both sides (0 pairs read): {samples}/empty, {samples}/empty"],
    ),
    (
        "empty test set",
        ["evaluate", "checkpoint={tiny}/best.pt", "source={samples}/empty", "target={samples}/empty"],
        ["{samples}/empty and {samples}/empty hold no sentence pair with text on both sides (0 pairs read): there"],
    ),
    (
        "test set of blank lines",
        ["evaluate", "checkpoint={tiny}/best.pt", "source={samples}/blank", "target={samples}/blank"],
        ["{samples}/blank and {samples}/blank hold no sentence pair with text on both sides (2 pairs read)"],
    ),
    (
        "corpus of blank lines",
        ["train", "FILES", "data.train.source={samples}/blank", "data.train.target={samples}/blank"],
        ["data.train holds no sentence pair with text on both sides (2 pairs read)"],
    ),
    (
        "unknown test set",
        ["evaluate", "checkpoint={tiny}/best.pt", "test_set=tset"],
        ["test_set=tset is not in the training data, which has dev, test"],
    ),
    (
        "sentence longer than the batch",
        ["train", "FILES", "trainer.batch_tokens=8"],
        ["trainer.batch_tokens=8 is too small for pair", "or more, or drop long pairs"],
    ),
    # Checkpoints
    (
        "missing checkpoint",
        ["translate", "checkpoint={tiny}/bset.pt"],
        ["checkpoint {tiny}/bset.pt is not a file; existing checkpoints: ", "{tiny}/best.pt"],
    ),
    *[
        (
            f"damaged checkpoint ({kind}) for {command}",
            [command, f"checkpoint={{samples}}/{kind}.pt"],
            [f"checkpoint {{samples}}/{kind}.pt", "damaged"],
        )
        for command in ("evaluate", "translate", "inspect_checkpoint")
        for kind in ("truncated", "flipped", "text")
    ],
    (
        "other format version",
        ["translate", "checkpoint={samples}/future.pt"],
        [f"{{samples}}/future.pt has format version {FORMAT_VERSION + 1}, this code reads {FORMAT_VERSION}"],
    ),
    (
        "weights without a checkpoint",
        ["inspect_checkpoint", "checkpoint={samples}/weights.pt"],
        ["{samples}/weights.pt is a torch file, but not a checkpoint of gnmt"],
    ),
    *[
        (
            f"pickle that would run code, for {command}",
            [command, "checkpoint={samples}/pickle.pt"],
            ["checkpoint {samples}/pickle.pt was refused, and no code from it ran"],
        )
        for command in ("evaluate", "translate", "inspect_checkpoint")
    ],
    (
        "pickle that would run code, to start from",
        ["train", "FILES", "initialize_from={samples}/pickle.pt"],
        ["checkpoint {samples}/pickle.pt was refused, and no code from it ran"],
    ),
    (
        "model that would run code",
        ["translate", "checkpoint={samples}/code_in_model.pt"],
        ["{samples}/code_in_model.pt: the model's config was refused, and nothing was built", "os.system"],
    ),
    (
        "component of a model that would run code",
        ["translate", "checkpoint={samples}/code_in_encoder.pt"],
        ["nothing was built", "model.encoder._target_", "torch.optim.optimizer.torch.load"],
    ),
    (
        "decoding that would run code",
        ["translate", "checkpoint={samples}/code_in_decoding.pt"],
        ["decoding._target_", "builtins.open"],
    ),
    (
        "data that would run code",
        ["evaluate", "checkpoint={samples}/code_in_data.pt"],
        ["the checkpoint's data config was refused", "data._target_", "shutil.rmtree"],
    ),
    (
        "tokenizer other than that of the checkpoint to start from",
        ["train", *MISSING_FILES, "initialize_from={tiny}/best.pt", "tokenizer.vocab_size=7"],
        ["initialize_from={tiny}/best.pt brings its tokenizers, which overrides contradict: ", "420 → 7. Leave them"],
    ),
    (
        "tokenizer other than that of the checkpoint, in prepare.py",
        ["prepare", *MISSING_FILES, "initialize_from={tiny}/best.pt", "tokenizer=unigram"],
        ["initialize_from={tiny}/best.pt brings its tokenizers, which overrides contradict: ", '"bpe" → "unigram"'],
    ),
    (
        "model other than that of the checkpoint to start from",
        ["train", *MISSING_FILES, "initialize_from={tiny}/best.pt", "model=transformer_tiny"],
        ["initialize_from={tiny}/best.pt brings its model, which overrides contradict: ", "more. Leave them out"],
    ),
    (
        "unknown key of the model of the checkpoint to start from",
        ["train", *MISSING_FILES, "initialize_from={tiny}/best.pt", "model.encoder.dropuot=0.1"],
        ["model.encoder.dropuot: LSTMEncoder takes no such key; did you mean model.encoder.dropout?"],
    ),
]


@pytest.mark.parametrize(("command", "fragments"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_wrong_input_gives_one_message(
    run_command, tiny, samples, sample_overrides, tmp_path, command, fragments
) -> None:
    names = {"samples": samples, "tiny": tiny.folder}
    words = [word for text in command for word in (sample_overrides if text == "FILES" else [text.format(**names)])]
    done = run_command(*words, cwd=tmp_path)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("error: ") == 1
    message = done.err[done.err.index("error: ") :]
    for fragment in fragments:
        assert fragment.format(**names) in message
    assert "Traceback" not in done.err
    assert {path.name for path in tmp_path.iterdir()} <= {"preprocessed"}  # no folder of a run that did not start
    assert list(tmp_path.rglob("*.pt")) == []
    assert not (samples / "code_ran").exists()


def test_the_code_in_the_checkpoint_runs_without_protection(samples) -> None:
    """Without this, the table would prove nothing: torch.load with weights_only=False runs the code."""
    torch.load(samples / "pickle.pt", weights_only=False)
    assert (samples / "code_ran").exists()
    (samples / "code_ran").unlink()


def test_a_corpus_smaller_than_one_batch_trains(run_command, sample_overrides, tmp_path) -> None:
    done = run_command("train", *sample_overrides, "name=small", "trainer.batch_tokens=100000", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "about 1 update per epoch" in done.err
    assert read_checkpoint(tmp_path / "runs" / "small" / "last.pt")["step"] == 2


def test_a_corpus_of_one_pair_trains(run_command, sample_overrides, tmp_path) -> None:
    (tmp_path / "a.tsv").write_text("good morning\tguten Morgen\n", encoding="utf-8")
    rest = [text for text in sample_overrides if not text.startswith("data")]
    files = ["data=files", "data.train.pairs=a.tsv", "data.dev.pairs=a.tsv", *rest, "tokenizer.vocab_size=275"]
    done = run_command("train", *files, "name=one", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "data: 1 pair in" in done.err


def test_a_vocabulary_that_is_too_large_names_the_largest_which_then_works(
    run_command, sample_overrides, tmp_path
) -> None:
    data = [text for text in sample_overrides if text.startswith("data")]
    done = run_command("prepare", *data, "tokenizer.vocab_size=9000", cwd=tmp_path)
    assert done.code == 2
    largest = re.search(r"tokenizer\.vocab_size=9000 is too large .* the largest possible is (\d+)", done.err)
    assert largest is not None
    assert list((tmp_path / "preprocessed").glob("*")) == []
    done = run_command("prepare", *data, f"tokenizer.vocab_size={largest[1]}", cwd=tmp_path)
    assert done.code == 0, done.err
