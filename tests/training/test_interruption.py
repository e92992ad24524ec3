"""Ctrl-C: a wish the first time, an end the second."""

from __future__ import annotations

import logging
import os
import signal

import pytest

from gnmt.training.interruption import Interruption


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_only_asks_and_the_second_ends_at_once(caplog):
    before = signal.getsignal(signal.SIGINT)
    with caplog.at_level(logging.WARNING), Interruption() as interruption:
        assert not interruption.requested
        press_ctrl_c()
        assert interruption.requested
        assert "the state is saved after this update" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before
