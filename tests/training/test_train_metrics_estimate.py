"""How long a run will take is said before its first log line, where that is far."""

from __future__ import annotations

import logging
import time

import pytest

from gnmt.training.train_metrics import FirstEstimate


@pytest.fixture
def said(caplog, monkeypatch):
    """said(log_every_steps, seconds): what is said at which of 100 updates that take so long each, of 1,000."""
    caplog.set_level(logging.INFO)

    def after(log_every_steps: int, seconds: float) -> list[tuple[int, str]]:
        caplog.clear()
        clock = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
        estimate, lines = FirstEstimate(log_every_steps), []
        for step in range(1, 101):
            clock[0] += 60 if step == 1 else seconds  # the first one takes its time
            estimate.after_update(step, 1000)
            lines += [(step, record.getMessage()) for record in caplog.records]
            caplog.clear()
        return lines

    return after


def test_it_comes_once_after_ten_seconds(said) -> None:
    assert said(50, 1.0) == [(11, "update 11/1000: about 16:29 left")]
    assert said(50, 20.0) == [(2, "update 2/1000: about 5:32:40 left")]


def test_where_log_lines_come_sooner_it_does_not(said) -> None:
    assert said(50, 0.15) == []
    assert said(5, 2.0) == []
    assert said(50, 0.01) == []


def test_a_run_says_it(run, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("gnmt.training.train_metrics.ESTIMATE_SECONDS", 0.0)
    run(tmp_path, "trainer.max_steps=3", "trainer.log_every_steps=50")
    assert caplog.text.count("update 2/3: about 00:00 left") == 1
