"""Runs that start from the checkpoint of another run, which brings weights, model and tokenizers; and refusals."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal

import pytest
import torch
from hydra import compose, initialize_config_dir
from run_outcome import differences, outcome, scalars

from gnmt.checkpoint.file import read_checkpoint, write_checkpoint
from gnmt.config.build import resolve
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.store import read_preprocessed
from gnmt.data.tokenizer import Tokenizers
from gnmt.errors import InputError, Interrupted
from gnmt.training.dev_evaluation import DevEvaluator
from gnmt.training.initial_checkpoint import InitialCheckpoint

ONE_STEP = ("trainer.max_steps=1",)
OTHER_MODEL = ("model.embedding_size=12", "model.encoder.num_layers=3", "tokenizer.vocab_size=290")
"""Settings of a config file, which differ from those of the first run."""
NO_DATA = ("data.train.source=nowhere.en", "data.preprocessed=nowhere")


@pytest.fixture
def first(run, tmp_path):
    """The folder of the other run."""
    run(tmp_path / "first", "trainer.max_steps=3")
    return tmp_path / "first"


@pytest.fixture
def changed(first, tmp_path):
    """changed(config_changes, **entries): write a changed copy of best.pt and return the override that names it."""

    def write(config: dict | None = None, **entries: object) -> str:
        contents = read_checkpoint(first / "best.pt")
        recorded = json.loads(contents["config"])
        for key, value in (config or {}).items():
            node = recorded
            *parents, last = key.split(".")
            for part in parents:
                node = node[part]
            node[last] = value
        write_checkpoint(tmp_path / "changed.pt", {**contents, "config": json.dumps(recorded), **entries})
        return f"initialize_from={tmp_path}/changed.pt"

    return write


def model_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]


def test_initialize_from_loads_the_weights_and_nothing_else(run, first, tmp_path):
    start = f"initialize_from={first}/best.pt"
    run(tmp_path / "second", *ONE_STEP, start, "optimizer.lr=0", "loss.smoothing=0.3")
    one, two = (read_checkpoint(folder / "last.pt") for folder in (first, tmp_path / "second"))
    assert all(torch.equal(two["model"][name], weight) for name, weight in one["model"].items())
    assert (two["step"], tuple(two["loader_state"])) == (1, (0, 1, 0))
    assert {float(state["step"]) for state in one["optimizer"]["state"].values()} == {3.0}
    assert {float(state["step"]) for state in two["optimizer"]["state"].values()} == {1.0}


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_the_checkpoint_brings_model_and_tokenizers_to_other_data(run, first, tmp_path, other_corpus, name):
    """Once, the architecture had to be typed again, and other tokenizers were refused after preprocessing."""
    data = (*other_corpus[1:], f"data.preprocessed={tmp_path}/preprocessed")
    run(tmp_path / "second", *ONE_STEP, f"initialize_from={first}/{name}", *data, *OTHER_MODEL)
    assert model_of(tmp_path / "second") == model_of(first)
    one, two = (read_checkpoint(folder / "best.pt") for folder in (first, tmp_path / "second"))
    tokenizers = Tokenizers.from_checkpoint(one["tokenizers"])
    assert Tokenizers.from_checkpoint(two["tokenizers"]).digest == tokenizers.digest
    preprocessed = read_preprocessed(tmp_path / "preprocessed")
    assert preprocessed.tokenizers.source.to_bytes() == tokenizers.source.to_bytes()
    assert set(preprocessed.manifest["settings"]["tokenizer"]) == {"source_sha256", "target_sha256"}


def test_the_dev_loss_starts_at_that_of_the_checkpoint_and_falls(run, first, tmp_path):
    start = (f"initialize_from={first}/best.pt", *OTHER_MODEL)
    before = read_checkpoint(first / "best.pt")["best"]["dev/loss"]
    unchanged = run(tmp_path / "unchanged", *ONE_STEP, *start, "optimizer.lr=0")
    assert unchanged.best["dev/loss"] == pytest.approx(before, abs=1e-6)
    better = run(tmp_path / "better", "trainer.max_steps=6", *start)
    assert better.best["dev/loss"] < before - 0.1


def test_the_checkpoint_is_the_first_best_which_only_better_weights_replace(run, first, tmp_path):
    """Once, the initial weights were not evaluated, and best.pt had weights that were worse."""
    command = (f"initialize_from={first}/best.pt", "trainer.best_metric=dev/loss", "trainer.evaluate_every_steps=1")
    result = run(tmp_path / "worse", *command, "optimizer.lr=0.5", "trainer.max_steps=2")
    before, best = (read_checkpoint(folder / "best.pt") for folder in (first, tmp_path / "worse"))
    assert (result.best_step, result.best["dev/loss"]) == (0, pytest.approx(before["best"]["dev/loss"], abs=1e-6))
    assert all(torch.equal(best["model"][name], weight) for name, weight in before["model"].items())
    losses = scalars(tmp_path / "worse")["dev/loss"]
    assert [step for step, _ in losses] == [0, 1, 2]
    assert min(losses, key=lambda point: point[1])[0] == 0
    patient = run(tmp_path / "patience", *command, "optimizer.lr=0.5", "trainer.patience_evaluations=2")
    assert (patient.steps, patient.best_step) == (2, 0)
    better = run(tmp_path / "better", *command, "trainer.max_steps=3")
    assert better.best_step > 0
    assert better.best["dev/loss"] < result.best["dev/loss"]


def test_the_bound_of_activations_falls_from_that_of_the_checkpoint(run, tmp_path, caplog):
    """Once, it began at 8 again, so no later evaluation could be better than that of the checkpoint."""
    quantizable = ("model/clipping=annealed", "model.encoder.cell=quantizable_lstm", "model.clipping.steps=3")
    run(tmp_path / "first", *quantizable, "trainer.max_steps=3")
    start = f"initialize_from={tmp_path}/first/best.pt"
    run(tmp_path / "second", start, "trainer.max_steps=2", "trainer.evaluate_every_steps=1")
    clipping = model_of(tmp_path / "second")["clipping"]
    assert (clipping["start"], clipping["end"], clipping["steps"]) == (pytest.approx(8 - 7 * 2 / 3), 1.0, 3)
    deltas = [delta for _, delta in scalars(tmp_path / "second")["dev/clipping_delta"]]
    assert deltas == pytest.approx([8 - 7 * 2 / 3, 8 - 7 * 2 / 3, (1 + 2 * (8 - 7 * 2 / 3)) / 3], rel=1e-5)
    run(tmp_path / "second", start, "trainer.max_steps=3", "trainer.evaluate_every_steps=1")
    caplog.clear()
    run(tmp_path / "third", *ONE_STEP, start, given=(*quantizable, "model.clipping.start=1"))
    assert model_of(tmp_path / "third")["clipping"]["start"] == 1
    assert "activations are clipped" not in caplog.text, "once, a bound that does not fall was warned about"


def test_a_signal_interrupts_the_evaluation_of_the_checkpoint_and_the_resumed_run_repeats_it(
    run, first, tmp_path, monkeypatch
):
    command = (f"initialize_from={first}/best.pt", "trainer.max_steps=2", "trainer.ema_decay=0.9")
    run(tmp_path / "whole", *command)
    translations = DevEvaluator.translations

    def signal_before_the_work(evaluator):
        os.kill(os.getpid(), signal.SIGTERM)
        return translations(evaluator)

    monkeypatch.setattr(DevEvaluator, "translations", signal_before_the_work)
    with pytest.raises(Interrupted) as stopped:
        run(tmp_path / "split", *command)
    assert str(stopped.value) == (
        "SIGTERM: stopped after update 0, saved up to 0: the same command resumes from there"
    ), "once, update 0 was taken for no checkpoint"
    monkeypatch.undo()
    run(tmp_path / "split", *command)
    assert differences(outcome(tmp_path / "split"), outcome(tmp_path / "whole")) == []
    assert [step for step, _ in scalars(tmp_path / "split")["dev/bleu"]] == [0, 2]


def test_a_run_resumes_without_the_other_run(run, first, tmp_path):
    command = (f"initialize_from={first}/best.pt", "trainer.save_every_steps=1", *OTHER_MODEL)
    run(tmp_path / "split", *command, "trainer.max_steps=1")
    run(tmp_path / "whole", *command, "trainer.max_steps=2")
    shutil.rmtree(first)
    with pytest.raises(InputError) as caught:
        run(tmp_path / "split", *command[1:], "trainer.max_steps=2")
    [change] = str(caught.value).splitlines()[1:-1]  # a long path is shortened
    assert change.startswith("  initialize_from: ")
    assert change.endswith(" → null")
    run(tmp_path / "split", *command, "trainer.max_steps=2")
    split, whole = (read_checkpoint(tmp_path / name / "last.pt") for name in ("split", "whole"))
    assert split["step"] == 2
    assert all(torch.equal(split["model"][name], weight) for name, weight in whole["model"].items())
    with pytest.raises(InputError, match=r"initialize_from: checkpoint .*first/best\.pt is not a file"):
        run(tmp_path / "new", *command, "trainer.max_steps=1")


def test_the_preprocessed_data_of_the_other_run_is_used_if_its_tokenizers_are_equal(run, first, tmp_path, caplog):
    """It was learned there, so its manifest records other settings."""
    with caplog.at_level(logging.INFO):
        run(tmp_path / "second", *ONE_STEP, f"initialize_from={first}/best.pt")
    assert "preprocessed is up to date" in caplog.text
    one, two = (read_checkpoint(folder / "best.pt") for folder in (first, tmp_path / "second"))
    assert one["data_fingerprint"] == two["data_fingerprint"]


# Overrides of the command line


def test_an_override_may_change_what_has_no_weights(run, first, tmp_path, caplog):
    """The decoder's dropout follows the encoder's, as in the config files."""
    start = f"initialize_from={first}/best.pt"
    with caplog.at_level(logging.INFO):
        run(tmp_path / "second", *ONE_STEP, start, given=("model.encoder.dropout=0.25",))
    assert model_of(first)["encoder"]["dropout"] == model_of(first)["decoder"]["dropout"] == 0.3
    assert model_of(tmp_path / "second")["encoder"]["dropout"] == 0.25
    assert model_of(tmp_path / "second")["decoder"]["dropout"] == 0.25
    assert "other than in the checkpoint: model.decoder.dropout: 0.3 → 0.25, model.encoder.dropout: 0.3" in caplog.text
    run(tmp_path / "third", *ONE_STEP, start, given=("model.encoder.dropout=0", "model.decoder.dropout=0.2"))
    assert model_of(tmp_path / "third")["encoder"]["dropout"] == 0
    assert model_of(tmp_path / "third")["decoder"]["dropout"] == 0.2


def test_overrides_that_repeat_the_settings_of_the_checkpoint_are_no_contradiction(run, first, tmp_path):
    given = ("model=gnmt_tiny", "model.embedding_size=8", "model.encoder.dropout=0.3", "tokenizer.vocab_size=300")
    run(tmp_path / "second", *ONE_STEP, f"initialize_from={first}/best.pt", given=given)
    assert model_of(tmp_path / "second") == model_of(first)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("model.encoder.hidden_size=12", "model.encoder.dropout=0.1"),
            "brings its model, which overrides contradict: model.decoder.dropout: 0.3 → 0.1, model.encoder.dropout: "
            "0.3 → 0.1, model.encoder.hidden_size: 8 → 12. Leave them out; only settings that change no weights",
        ),
        (("model.embedding_size=16",), "brings its model, which overrides contradict: model.embedding_size: 8 → 16."),
        (("model.encoder.num_layers=1000",), "brings its model, which overrides contradict: model.decoder.num_layers"),
        (
            ("model=transformer_tiny",),
            'overrides contradict: model.decoder._target_: "gnmt.model.recurrent.gnmt_decoder.GNMTDecoder" → '
            '"gnmt.model.transformer.TransformerDecoder", ',
        ),
        (("model/attention=dot",), "brings its model, which overrides contradict: model.decoder.attention._target_"),
        (
            ("tokenizer.vocab_size=280",),
            "brings its tokenizers, which overrides contradict: tokenizer.vocab_size: 300 → 280. Leave them out",
        ),
        (("tokenizer=unigram",), 'overrides contradict: tokenizer.kind: "bpe" → "unigram". Leave them out'),
        (("+model.encoder.dropuot=0.1",), "LSTMEncoder takes no such key; did you mean model.encoder.dropout?"),
        (("model.encoder.dropout=2",), "model.encoder.dropout: found 2, allowed is a number of at least 0 and below 1"),
    ],
)
def test_overrides_that_contradict_the_checkpoint_are_refused_before_data_is_read(run, first, tmp_path, given, message):
    with pytest.raises(InputError) as caught:
        run(tmp_path / "second", *ONE_STEP, *NO_DATA, f"initialize_from={first}/best.pt", given=given)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "second").exists(), "the refused run leaves no folder"


def test_a_message_names_some_of_many_differences(run, first, tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*→[^\n]*→[^\n]*→[^\n→]* and \d+ more\. Leave them out"):
        run(tmp_path / "second", *NO_DATA, f"initialize_from={first}/best.pt", given=("model=transformer_tiny",))


# Checkpoints that are not usable


def test_a_config_far_larger_than_the_weights_is_refused_before_it_is_built(run, changed, tmp_path, monkeypatch):
    """Building a thousand wide layers would keep the process busy for minutes."""
    start = changed({"model.encoder.num_layers": 1000, "model.decoder.num_layers": 1000})
    with pytest.raises(InputError, match=r"changed\.pt: its weights do not fit the model: its config asks for more"):
        run(tmp_path / "second", *NO_DATA, start)


def test_code_in_a_checkpoint_is_refused(run, changed, tmp_path):
    for key in ("model", "tokenizer"):
        with pytest.raises(InputError, match=rf"its config was refused, and nothing was built:\n  {key}\._target_: "):
            run(tmp_path / "second", *NO_DATA, changed({key: {"_target_": "os.system", "command": "true"}}))


def test_code_in_the_checkpoint_of_a_resumed_run_is_refused(run, first, tmp_path):
    command = (*ONE_STEP, f"initialize_from={first}/best.pt")
    run(tmp_path / "second", *command)
    newest = (tmp_path / "second" / "last.pt").resolve()
    contents = read_checkpoint(newest)
    config = {**json.loads(contents["config"]), "model": {"_target_": "os.system", "command": "true"}}
    write_checkpoint(newest, {**contents, "config": json.dumps(config)})
    with pytest.raises(InputError, match=r"its config was refused, and nothing was built:\n  model\._target_: "):
        run(tmp_path / "second", *command)


def test_weights_that_do_not_fit_the_model_of_their_checkpoint_are_refused(run, first, changed, tmp_path):
    weights = read_checkpoint(first / "best.pt")["model"]
    start = changed(model={**weights, "target_embedding.weight": torch.zeros(7, 8)})
    with pytest.raises(InputError, match=r"model: target_embedding\.weight is \[7, 8\] in the .* and \[300, 8\]"):
        run(tmp_path / "second", *NO_DATA, start)


def test_subwords_that_preprocessing_cannot_produce_are_refused(run, changed, tmp_path):
    tokenizer = PretokenizedTokenizer(("a", "b", "c", "d", "e@@"))
    start = changed(tokenizers=Tokenizers(tokenizer, tokenizer).to_checkpoint(), unused_target_ids=[])
    with pytest.raises(InputError, match="is an imported checkpoint, whose subwords preprocessing cannot produce"):
        run(tmp_path / "second", *NO_DATA, start)


def test_missing_and_damaged_checkpoints_are_refused_before_data_is_read(run, first, tmp_path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes((first / "best.pt").read_bytes()[:5000])
    for path, reason in ((cut, "is damaged"), (tmp_path / "nowhere.pt", "is not a file")):
        with pytest.raises(InputError, match=rf"^initialize_from: checkpoint {path} {reason}"):
            run(tmp_path / "second", *NO_DATA, f"initialize_from={path}")
    assert sorted(os.listdir(tmp_path)) == ["cut.pt", "first"]


def test_text_of_a_checkpoint_is_no_interpolation(first, changed):
    """Otherwise a foreign checkpoint could read environment variables."""
    changed({"tokenizer.user_symbols": ["${oc.env:HOME}", "\\${seed}"]})
    contents = read_checkpoint(first.parent / "changed.pt")
    initial = InitialCheckpoint.of(contents, "changed.pt", ())
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = resolve(initial.with_its_settings(compose("train"), ()))
    assert config["tokenizer"]["user_symbols"] == ["${oc.env:HOME}", "\\${seed}"]


def test_sentences_beyond_the_learned_positions_of_the_checkpoint_must_be_dropped(run, tmp_path):
    """More positions would be other weights, so the message must not advise them."""
    run(tmp_path / "first", *ONE_STEP, "model=transformer_tiny", "model.encoder.learned_positions=40")
    for side in ("source", "target"):
        (tmp_path / side).write_text("a house and a tree .\n" * 9 + "a " * 60 + "\n", encoding="utf-8")
    data = (
        *(f"data.train.{side}={tmp_path}/{side}" for side in ("source", "target")),
        f"data.preprocessed={tmp_path}/p",
    )
    with pytest.raises(InputError, match=r"with EOS: drop longer pairs \(data\.cleaning\.max_length_tokens=40\)"):
        run(tmp_path / "second", *ONE_STEP, f"initialize_from={tmp_path}/first/best.pt", *data)


# Languages


@pytest.mark.parametrize(
    ("languages", "warns"),
    [
        ((), False),
        (("data.source_language=en", "data.target_language=de"), False),
        (("data.target_language=fr",), True),
        (("data.source_language=de", "data.target_language=en"), True),
    ],
)
def test_other_languages_than_those_of_the_checkpoint_are_warned_about(
    run, changed, tmp_path, caplog, languages, warns
):
    start = changed({"data.source_language": "en", "data.target_language": "de"})
    run(tmp_path / "second", *ONE_STEP, start, *languages)
    assert ("was trained from en to de, and this run has data.source_language=" in caplog.text) == warns
