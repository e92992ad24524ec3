"""The end of a run: the last weights are evaluated and saved, and a run fails if they could not be written."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from functools import partial

import pytest
from stub_evaluation import results

import gnmt.training.train as train_module
from gnmt.checkpoint.file import read_checkpoint
from gnmt.errors import InputError, Interrupted
from gnmt.training.run_checkpoints import BackgroundWriter
from gnmt.training.train_metrics import TrainState
from gnmt.training.trainer import Trainer


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGTERM to this process in update `step`."""
    update = Trainer.update

    def stopped(trainer, microbatches, metrics):
        update(trainer, microbatches, metrics)
        if trainer.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", stopped)


def test_a_limit_below_the_updates_done_still_evaluates_a_stopped_run(run, tmp_path, monkeypatch, caplog):
    """Once, this ended with the message that no checkpoint could be written, and without best.pt."""
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted, match="saved up to 5"):
        run(tmp_path, "trainer.max_steps=9")
    monkeypatch.undo()
    assert not (tmp_path / "best.pt").exists()
    with caplog.at_level(logging.INFO):
        result = run(tmp_path, "trainer.max_steps=3")
    assert (result.steps, result.best_step) == (5, 5)
    assert "all 5 updates are done; only the final evaluation and checkpoint are missing" in caplog.text
    assert "-2 updates" not in caplog.text
    best, last = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("best", "last"))
    assert (best["step"], last["step"], last["best"]) == (5, 5, best["best"])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run(tmp_path, "trainer.max_steps=3") == result
    assert "is finished after 5 updates" in caplog.text
    assert run(tmp_path, "trainer.max_steps=6").steps == 6


def test_a_limit_below_the_updates_done_leaves_a_finished_run_unchanged(run, tmp_path):
    """Once, config.json got the lower limit although more updates had been done."""
    run(tmp_path, "trainer.max_steps=4")
    before = {name: (tmp_path / name).read_bytes() for name in ("config.json", "best.pt", "last.pt")}
    run(tmp_path, "trainer.max_steps=2")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    run(tmp_path, "trainer.max_steps=5")
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["max_steps"] == 5


def test_the_final_evaluation_is_missing_until_its_best_is_written():
    best, better, worse = ({"dev/bleu": bleu, "dev/loss": 1.0} for bleu in (3.0, 3.5, 2.5))
    state = partial(TrainState, step=4)
    assert state().needs_final_evaluation(), "never evaluated"
    assert state(best=best, evaluations=[(2, best)]).needs_final_evaluation(), "not at its end"
    assert state(best=best, evaluations=[(2, best), (4, better)]).needs_final_evaluation(), "best.pt was not written"
    assert state(evaluations=[(4, worse)]).needs_final_evaluation(), "no best.pt at all was written"
    assert not state(best=best, evaluations=[(2, best), (4, worse)]).needs_final_evaluation()
    assert state(best=best, evaluations=[(4, worse)], evaluation_due=True).needs_final_evaluation(), "interrupted"


def test_weights_with_a_smaller_bound_of_activations_are_better():
    """Once, best.pt of a quantizable model could have a bound larger than that of its int8 decoding."""
    early, first_with_1, later = (
        {"dev/bleu": bleu, "dev/loss": 1.0, "dev/clipping_delta": delta}
        for bleu, delta in ((30.0, 2.5), (20.0, 1.0), (21.0, 1.0))
    )
    state = TrainState(best=early)
    assert state.is_better_than_best(first_with_1)
    state.best = first_with_1
    assert state.is_better_than_best(later)
    assert not state.is_better_than_best(early)


def full_disk(monkeypatch: pytest.MonkeyPatch, *of_updates: int, name: str = "") -> None:
    """Make writes of these updates fail if the name of what is written starts with `name`."""
    start = BackgroundWriter.start

    def failing(writer, write, what, *args, **options):
        def fail() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        fails = what.startswith(name) and int(what.split()[-1]) in of_updates
        start(writer, fail if fails else write, what, *args, **options)

    monkeypatch.setattr(BackgroundWriter, "start", failing)


def test_a_run_fails_if_no_checkpoint_could_be_written(run, tmp_path, monkeypatch, caplog):
    full_disk(monkeypatch, 2)
    with pytest.raises(InputError) as caught:
        run(tmp_path, "trainer.max_steps=2")
    monkeypatch.undo()
    assert "no checkpoint could be written, so nothing of this training is kept" in str(caught.value)
    assert "the same command starts from scratch" in str(caught.value)
    assert "the previous one stays" not in caplog.text
    assert (
        "best.pt of update 2 was not written ([Errno 28] No space left on device); there is no previous one"
        in caplog.text
    )
    assert run(tmp_path, "trainer.max_steps=2").steps == 2


def test_a_run_fails_and_names_the_newest_files_if_its_last_checkpoint_could_not_be_written(run, tmp_path, monkeypatch):
    """Once, such a run exited with code 0, and its last updates were lost without a message."""
    command = ("trainer.max_steps=4", "trainer.save_every_steps=2", "trainer.evaluate_every_steps=2")
    full_disk(monkeypatch, 4, name="the checkpoint")
    with pytest.raises(InputError) as caught:
        run(tmp_path, *command)
    monkeypatch.undo()
    assert str(caught.value).startswith(
        f"{tmp_path}: the checkpoint of update 4 could not be written (the reason is logged above); "
        "best.pt is of update "
    )
    assert "the newest checkpoint is of update 2: make room on the disk" in str(caught.value)
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 2
    assert run(tmp_path, *command).steps == 4
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_the_same_command_writes_a_best_that_could_not_be_written_at_the_end(run, tmp_path, monkeypatch):
    full_disk(monkeypatch, 2, name="best.pt")
    with pytest.raises(InputError, match=r"best\.pt of update 2 could not be written"):
        run(tmp_path, "trainer.max_steps=2")
    monkeypatch.undo()
    assert not (tmp_path / "best.pt").exists()
    result = run(tmp_path, "trainer.max_steps=2")
    assert (result.steps, result.best_step, len(read_checkpoint(tmp_path / "last.pt")["evaluations"])) == (2, 2, 1)
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_only_the_best_evaluation_is_logged_as_the_best(make_trainer, preprocessed, monkeypatch, caplog):
    """Once, after a best.pt that could not be written, a worse evaluation was logged as `best so far`."""
    trainer = make_trainer("trainer.max_steps=4", "trainer.evaluate_every_steps=1")
    trainer.evaluate = results([1.0, 3.0, 2.0, 1.5], preprocessed)
    full_disk(monkeypatch, 2, name="best.pt")
    with caplog.at_level(logging.INFO):
        state = trainer.fit()
    endings = {
        int(message.split()[1].rstrip(",")): message.partition("chrF 0.00")[2].strip()
        for message in caplog.messages
        if ", dev: " in message
    }
    assert endings == {1: "(best so far)", 2: "(best so far)", 3: "(better than best.pt)", 4: ""}
    assert "best.pt of update 2 was not written" in caplog.text
    assert (state.best_step, state.stale_evaluations) == (3, 2)


@pytest.mark.parametrize(
    ("function", "number", "exit_code"),
    [
        ("preprocess", signal.SIGINT, 130),
        ("build_trainer", signal.SIGINT, 130),
        ("check_model", signal.SIGTERM, 143),
        ("preprocess", signal.SIGUSR1, 75),
        ("preprocess", signal.SIGUSR2, 75),
    ],
)
def test_a_signal_before_the_first_update_tells_the_next_step(run, tmp_path, monkeypatch, function, number, exit_code):
    """Once, SIGTERM and SIGUSR1 killed the process without a message, and no batch script saw exit code 75."""
    before = signal.getsignal(number)

    def interrupted(*_, **__):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(train_module, function, interrupted)
    with pytest.raises(
        Interrupted, match="before the first update: nothing is trained yet, and the same command starts from scratch"
    ) as caught:
        run(tmp_path, "trainer.max_steps=1")
    assert str(caught.value).startswith(f"{number.name}: ")
    assert caught.value.exit_code == exit_code
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    run(tmp_path, "trainer.max_steps=1")
    monkeypatch.setattr(train_module, function, interrupted)
    with pytest.raises(Interrupted, match="the same command resumes from the newest checkpoint"):
        run(tmp_path, "trainer.max_steps=2")


def test_a_run_continues_if_config_json_cannot_be_written(run, tmp_path, monkeypatch, caplog):
    """Once, a run that was resumed on a full disk ended with an error."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train_module, "write_atomically", full)
    assert run(tmp_path, "trainer.max_steps=1").steps == 1
    assert "config.json cannot be written (No space left on device)" in caplog.text
    assert json.loads(read_checkpoint(tmp_path / "last.pt")["config"])["trainer"]["max_steps"] == 1
