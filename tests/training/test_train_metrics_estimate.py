"""The duration of a run is logged once before the first log line, if that line is far away."""

from __future__ import annotations

import logging
import time

import pytest

from gnmt.training.train_metrics import FirstEstimate


@pytest.fixture
def logged(caplog, monkeypatch):
    """logged(log_every_steps, seconds): step and text of the messages during the first 100 of 1,000 updates."""
    caplog.set_level(logging.INFO)

    def after(log_every_steps: int, seconds: float) -> list[tuple[int, str]]:
        caplog.clear()
        clock = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
        estimate, lines = FirstEstimate(log_every_steps), []
        for step in range(1, 101):
            clock[0] += 60 if step == 1 else seconds  # the first update takes longer
            estimate.after_update(step, 1000)
            lines += [(step, record.getMessage()) for record in caplog.records]
            caplog.clear()
        return lines

    return after


def test_the_estimate_is_logged_once_after_ten_seconds(logged) -> None:
    assert logged(50, 1.0) == [(11, "update 11/1000: about 16:29 left")]
    assert logged(50, 20.0) == [(2, "update 2/1000: about 5:32:40 left")]


def test_the_estimate_is_not_logged_if_the_first_log_line_is_near(logged) -> None:
    assert logged(50, 0.15) == []
    assert logged(5, 2.0) == []
    assert logged(50, 0.01) == []


def test_a_run_logs_the_estimate(run, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("gnmt.training.train_metrics.ESTIMATE_SECONDS", 0.0)
    run(tmp_path, "trainer.max_steps=3", "trainer.log_every_steps=50")
    assert caplog.text.count("update 2/3: about 00:00 left") == 1
