"""best.pt is checked when a run resumes: a missing or damaged one is told, and the next evaluation writes it again."""

from __future__ import annotations

import logging

import pytest

import gnmt.training.train as train_module
from gnmt.checkpoint.file import UnreadableCheckpointError, read_checkpoint
from gnmt.errors import InputError
from gnmt.training.run_checkpoints import RunCheckpoints
from gnmt.training.trainer import Trainer

EVERY_UPDATE = ("trainer.evaluate_every_steps=1", "trainer.save_every_steps=1", "trainer.keep_checkpoints=9")


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(("damage", "told"), [(remove, "best.pt is missing"), (cut, "best.pt is damaged")])
def test_a_lost_best_is_written_by_the_next_evaluation(run, tmp_path, caplog, damage, told):
    """Once, the run ended with the path of a best.pt that was missing or cut off."""
    run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=2")
    damage(tmp_path / "best.pt")
    caplog.clear()
    result = run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=4")
    assert told in caplog.text
    assert "the next evaluation writes it again" in caplog.text
    best = read_checkpoint(tmp_path / "best.pt")
    assert best["best_step"] == result.best_step in (3, 4)
    assert best["best"] == result.best


@pytest.mark.parametrize("damage", [remove, cut])
def test_a_finished_run_whose_best_is_lost_evaluates_its_last_weights_again(run, tmp_path, damage):
    first = run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=2")
    damage(tmp_path / "best.pt")
    again = run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=2")
    assert (again.steps, again.best_step) == (2, 2)
    assert read_checkpoint(tmp_path / "best.pt")["best"] == again.best
    saved = read_checkpoint(tmp_path / "last.pt")
    assert [step for step, _ in saved["evaluations"]] == [1, 2], "the repeated evaluation counts once"
    assert run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=2") == again
    assert first.steps == 2


def test_patience_counts_from_the_best_evaluation_although_its_best_is_lost(run, tmp_path, monkeypatch):
    """A worse best.pt that replaces the lost one is no progress."""
    losses = iter([3.0, 2.0, 2.6, 2.5, 2.4, 1.0])
    monkeypatch.setattr("gnmt.training.dev_evaluation.mean_loss", lambda _: next(losses))
    command = (*EVERY_UPDATE, "trainer.best_metric=dev/loss", "trainer.patience_evaluations=3")
    run(tmp_path, *command, "trainer.max_steps=3")
    remove(tmp_path / "best.pt")
    result = run(tmp_path, *command, "trainer.max_steps=9")
    assert (result.steps, result.best_step, result.best["dev/loss"]) == (5, 5, 2.4)
    assert run(tmp_path, *command, "trainer.max_steps=9") == result


def test_the_best_score_is_that_of_the_best_that_exists(run, tmp_path, monkeypatch):
    """A run killed after an evaluation has a best.pt that is newer than its newest full checkpoint."""
    losses = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr("gnmt.training.dev_evaluation.mean_loss", lambda _: next(losses))
    command = (*EVERY_UPDATE, "trainer.best_metric=dev/loss")
    run(tmp_path, *command, "trainer.max_steps=2")
    (tmp_path / "checkpoints" / "step_00000002.pt").unlink()
    result = run(tmp_path, *command, "trainer.max_steps=3")
    assert (result.best_step, result.best["dev/loss"]) == (2, 1.0)
    assert read_checkpoint(tmp_path / "best.pt")["best"] == result.best


def test_a_best_that_cannot_be_read_now_stops_the_run_and_is_kept(run, tmp_path, monkeypatch):
    run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=1")

    def unreadable(path, required=()):
        if path.name == "best.pt":
            raise UnreadableCheckpointError(f"checkpoint {path} cannot be read: Input/output error")
        return read_checkpoint(path, required)

    monkeypatch.setattr(train_module, "read_checkpoint", unreadable)
    with pytest.raises(InputError, match=r"best\.pt cannot be read: Input/output error; it may be intact"):
        run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=2")
    assert (tmp_path / "best.pt").exists()


def test_a_run_that_ends_without_its_best_says_so(run, tmp_path, monkeypatch):
    """The last line of train.py names best.pt, which somebody has removed meanwhile."""
    save = Trainer.save

    def save_and_remove(trainer):
        save(trainer)
        trainer.writer.wait()
        RunCheckpoints(tmp_path, 1).best.unlink()

    monkeypatch.setattr(Trainer, "save", save_and_remove)
    with pytest.raises(InputError, match=r"best\.pt was removed during the run: the same command writes it again"):
        run(tmp_path, "trainer.max_steps=1")
    monkeypatch.undo()
    assert run(tmp_path, "trainer.max_steps=1").best_step == 1
    assert (tmp_path / "best.pt").exists()


def test_an_intact_best_is_not_mentioned(run, tmp_path, caplog):
    run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=1")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(tmp_path, *EVERY_UPDATE, "trainer.max_steps=2")
    assert "the next evaluation writes it again" not in caplog.text
