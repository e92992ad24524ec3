"""The end of a run: evaluated and saved however it came, and a failure where it is not on the disk."""

from __future__ import annotations

import json
import logging
import os
import signal

import pytest

from gnmt.checkpoint import read_checkpoint
from gnmt.training.progress import Progress
from gnmt.training.trainer import Trainer
from gnmt.types import Interrupted


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM in that update."""
    update = Trainer.update

    def stopped(trainer, microbatches, interval):
        update(trainer, microbatches, interval)
        if trainer.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", stopped)


def test_a_lower_limit_after_a_stop_before_the_first_evaluation(run, tmp_path, monkeypatch, caplog):
    """It said that no checkpoint could be written, and there was no best.pt."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="saved up to 5"):
        stop_after(patch, 5)
        run(tmp_path, "trainer.max_steps=9")
    assert not (tmp_path / "best.pt").exists()
    with caplog.at_level(logging.INFO):
        result = run(tmp_path, "trainer.max_steps=3")
    assert (result.steps, result.best_step) == (5, 5)
    assert "has all its 5 updates: their end is evaluated and saved" in caplog.text
    assert "-2 updates" not in caplog.text
    best, last = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("best", "last"))
    assert (best["step"], last["step"], last["best"]) == (5, 5, best["best"])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run(tmp_path, "trainer.max_steps=3") == result
    assert "is done: 5 updates" in caplog.text
    assert run(tmp_path, "trainer.max_steps=6").steps == 6


def test_a_lower_limit_changes_nothing_of_a_finished_run(run, tmp_path):
    """Its config.json got the lower number, though more updates had been done."""
    run(tmp_path, "trainer.max_steps=4")
    before = {name: (tmp_path / name).read_bytes() for name in ("config.json", "best.pt", "last.pt")}
    run(tmp_path, "trainer.max_steps=2")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    run(tmp_path, "trainer.max_steps=5")
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["max_steps"] == 5


def test_what_is_due_at_the_end():
    written = {"dev/bleu": 3.0}
    assert Progress(step=4).end_is_due(), "never evaluated"
    assert Progress(step=4, best=written, evaluations=[(2, 3.0)]).end_is_due(), "not at its end"
    assert Progress(step=4, best=written, evaluations=[(2, 3.0), (4, 3.5)]).end_is_due(), "its best.pt was not written"
    assert Progress(step=4, evaluations=[(4, 0.0)]).end_is_due(), "no best.pt at all was written"
    assert not Progress(step=4, best=written, evaluations=[(2, 3.0), (4, 2.5)]).end_is_due()
    assert not Progress(step=4, best=written).end_is_due(), "older checkpoints hold no list"
    assert Progress(step=4, best=written, evaluations=[(4, 2.5)], evaluation_due=True).end_is_due(), "broken off"
