"""A run that was stopped and resumed is bitwise the run that was never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from run_outcome import differences, outcome, scalars

import gnmt.training.dev_evaluation as evaluation_module
from gnmt.checkpoint.file import read_checkpoint
from gnmt.errors import Interrupted
from gnmt.evaluation.metrics import Scores
from gnmt.training.dev_evaluation import DevEvaluator
from gnmt.training.trainer import Trainer

# The epoch has 5 updates or so, so 8 updates cross its end, and the second half starts within one.
RECIPES = {
    "average, microbatches, subword sampling": (
        "trainer.ema_decay=0.9",
        "trainer.microbatch_tokens=60",
        "trainer.subword_regularization=0.2",
        "schedule=cosine",
        "schedule.total_steps=10",
        "schedule.warmup_steps=2",
    ),
    "momentum, patience": (
        "optimizer=sgd",
        "optimizer.lr=0.5",
        "optimizer.momentum=0.9",
        "trainer.patience_evaluations=50",
    ),
    "clipping that falls": (
        "model/clipping=annealed",
        "model.encoder.cell=quantizable_lstm",
        "model.clipping.start=1",
        "model.clipping.end=0.1",
        "model.clipping.steps=6",
    ),
}
EVERY_4 = ("trainer.evaluate_every_steps=4", "trainer.save_every_steps=4")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, Path]:
    """The folders of runs that were never stopped, by recipe; filled by `uninterrupted_run`."""
    return {}


def uninterrupted_run(run, uninterrupted, recipe, tmp_path_factory) -> Path:
    if recipe not in uninterrupted:
        uninterrupted[recipe] = tmp_path_factory.mktemp("uninterrupted")
        run(uninterrupted[recipe], *RECIPES[recipe], *EVERY_4, "trainer.max_steps=8")
    return uninterrupted[recipe]


def assert_same_run(found: Path, expected: Path) -> None:
    assert differences(outcome(found), outcome(expected)) == []
    assert [step for step, _ in outcome(found)["train/loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    saved = read_checkpoint(found / "last.pt")
    assert saved["step"] == 8
    assert saved["loader_state"][0] >= 1, "the data must cross the end of an epoch"


@pytest.mark.parametrize("recipe", RECIPES)
def test_4_and_4_updates_are_8_updates(run, uninterrupted, recipe, tmp_path, tmp_path_factory):
    """Equal are weights, optimizer, average, data order, dropout, best score, patience, random state and curves."""
    expected = uninterrupted_run(run, uninterrupted, recipe, tmp_path_factory)
    run(tmp_path, *RECIPES[recipe], *EVERY_4, "trainer.max_steps=4")
    run(tmp_path, *RECIPES[recipe], *EVERY_4, "trainer.max_steps=8")
    assert_same_run(tmp_path, expected)


def test_ctrl_c_saves_and_the_same_command_resumes(run, uninterrupted, tmp_path, tmp_path_factory, monkeypatch):
    recipe = "average, microbatches, subword sampling"
    expected = uninterrupted_run(run, uninterrupted, recipe, tmp_path_factory)
    update = Trainer.update

    def ctrl_c_in_the_third(trainer, microbatches, metrics):
        update(trainer, microbatches, metrics)
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", ctrl_c_in_the_third)
    command = (*RECIPES[recipe], *EVERY_4, "trainer.max_steps=8")
    with pytest.raises(KeyboardInterrupt, match=r"stopped after update 3, .* the same command resumes"):
        run(tmp_path, *command)
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 3
    monkeypatch.undo()
    run(tmp_path, *command)
    assert_same_run(tmp_path, expected)


@pytest.mark.parametrize("updates", [6, 3])
def test_points_reported_after_the_last_checkpoint_of_a_crash_are_purged(
    run, uninterrupted, tmp_path, tmp_path_factory, monkeypatch, updates
):
    """With the checkpoint of update 4 and without any. Once, the points were duplicated without any."""
    recipe = "momentum, patience"
    expected = uninterrupted_run(run, uninterrupted, recipe, tmp_path_factory)
    update = Trainer.update

    def crash_in_the_next(trainer, microbatches, metrics):
        if trainer.state.step == updates:
            raise RuntimeError("the power went")
        update(trainer, microbatches, metrics)

    monkeypatch.setattr(Trainer, "update", crash_in_the_next)
    command = (*RECIPES[recipe], *EVERY_4, "trainer.max_steps=8")
    with pytest.raises(RuntimeError, match="the power went"):
        run(tmp_path, *command)
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == list(range(1, updates + 1))
    monkeypatch.undo()
    run(tmp_path, *command)
    assert_same_run(tmp_path, expected)


@pytest.mark.parametrize("step", [4, 8], ids=["in the middle", "at the end"])
def test_a_signal_interrupts_an_evaluation_and_the_resumed_run_repeats_it(
    run, uninterrupted, tmp_path, tmp_path_factory, monkeypatch, step, caplog
):
    """Some evaluations take longer than the two minutes of a warning, so saving does not wait for them."""
    recipe = "average, microbatches, subword sampling"
    expected = uninterrupted_run(run, uninterrupted, recipe, tmp_path_factory)
    translations = DevEvaluator.translations

    def signal_after_the_work(evaluator):
        translations(evaluator)
        if caplog.text.count("stopping") == 0 and f"update {step}/8" in caplog.text:
            os.kill(os.getpid(), signal.SIGTERM)
        return translations(evaluator)

    monkeypatch.setattr(DevEvaluator, "translations", signal_after_the_work)
    command = (*RECIPES[recipe], *EVERY_4, "trainer.max_steps=8")
    with caplog.at_level("INFO"), pytest.raises(Interrupted, match=rf"SIGTERM: .* update {step}, saved up to {step}:"):
        run(tmp_path, *command)
    assert f"the evaluation after update {step} was interrupted; the resumed run repeats it" in caplog.text
    assert read_checkpoint(tmp_path / "last.pt")["evaluation_due"] is True
    monkeypatch.undo()
    run(tmp_path, *command)
    assert_same_run(tmp_path, expected)


def test_a_log_line_after_a_resume_covers_all_its_updates(run, tmp_path):
    """Once, the mean at update 5 covered only updates 4 and 5 of a run that had stopped after 3."""
    command = ("trainer.log_every_steps=5", "trainer.save_every_steps=3")
    run(tmp_path / "uninterrupted", *command, "trainer.max_steps=5")
    run(tmp_path / "split", *command, "trainer.max_steps=5")
    expected = outcome(tmp_path / "uninterrupted")
    (tmp_path / "split" / "checkpoints" / "step_00000005.pt").unlink()
    run(tmp_path / "split", *command, "trainer.max_steps=5")
    assert differences(outcome(tmp_path / "split"), expected) == []
    assert [step for step, _ in expected["train/loss"]] == [5]


def test_a_resumed_run_has_the_learning_rates_of_the_plateau_schedule(run, tmp_path, monkeypatch):
    """The checkpoint holds the dev metrics on which the rates depend."""
    command = ("schedule=plateau", "schedule.patience_evaluations=1", "optimizer.lr=0.5", "optimizer=sgd")
    command = (*command, "trainer.evaluate_every_steps=1", "trainer.save_every_steps=2", "trainer.keep_checkpoints=9")
    bleus = {1: 3.0, 2: 2.0, 3: 4.0, 4: 3.9, 5: 1.0, 6: 1.0}

    def scored(*_, **__):
        return Scores(bleus[current[0].state.step], 0.0, 0.0, ter=None, gleu=0.0, signatures={}, num_sentences=1)

    current: list[Trainer] = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda trainer: (current.insert(0, trainer), fit(trainer))[1])
    monkeypatch.setattr(evaluation_module, "score_translations", scored)
    run(tmp_path, *command, "trainer.max_steps=4")
    run(tmp_path, *command, "trainer.max_steps=6")
    rates = [rate for _, rate in outcome(tmp_path)["train/learning_rate"]]
    assert rates == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.125, 0.0625])
    saved = read_checkpoint(tmp_path / "last.pt")
    assert [(step, metrics["dev/bleu"]) for step, metrics in saved["evaluations"]] == list(bleus.items())


def test_a_finished_run_is_logged_as_finished_and_stays_unchanged(run, tmp_path, caplog):
    command = ("trainer.max_steps=1",)
    first = run(tmp_path, *command)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.pt")}
    with caplog.at_level("INFO"):
        again = run(tmp_path, *command)
    assert again == first
    assert (
        "is finished after 1 update; to train further, raise the limit that stopped it: trainer.max_steps"
        in caplog.text
    )
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.pt")} == before


def test_dev_scores_over_tokens_survive_a_resume(run, tmp_path, preprocessed):
    """TensorBoard drops all points after the checkpoint's step, and a number of tokens is larger than any step."""
    every = ("trainer.evaluate_every_steps=2", "trainer.log_every_steps=2", "trainer.save_every_steps=3")
    run(tmp_path / "whole", *every, "trainer.max_steps=6")
    run(tmp_path / "split", *every, "trainer.max_steps=3")
    run(tmp_path / "split", *every, "trainer.max_steps=6")
    whole, split = scalars(tmp_path / "whole"), scalars(tmp_path / "split")
    assert [step for step, _ in whole["dev/bleu"]] == [2, 4, 6]
    tokens = [step for step, _ in whole["dev_by_tokens/bleu"]]
    assert [value for _, value in whole["dev_by_tokens/bleu"]] == [value for _, value in whole["dev/bleu"]]
    assert len(tokens) == 3
    # The run that stopped after 3 updates was evaluated there, too.
    assert [point for point in split["dev_by_tokens/loss"] if point[0] in tokens] == whole["dev_by_tokens/loss"]
    assert len(split["dev_by_tokens/loss"]) == 4
    store = preprocessed.store
    epoch = int(store.source_lengths.sum() + store.target_lengths.sum()) + 2 * len(store)  # with EOS on both sides
    last = read_checkpoint(tmp_path / "whole" / "last.pt")
    assert last["tokens_seen"] == tokens[-1]
    run(tmp_path / "epoch", "trainer.max_epochs=2")
    assert read_checkpoint(tmp_path / "epoch" / "last.pt")["tokens_seen"] == 2 * epoch
