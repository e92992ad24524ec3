"""A signal: a wish the first time, an end the second."""

from __future__ import annotations

import logging
import os
import signal

import pytest

from gnmt.errors import Interrupted
from gnmt.signals import EXIT_CODES, Abandoned, StopRequest, stop

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_only_asks_and_the_second_ends_at_once(caplog, number):
    before = [signal.getsignal(other) for other in SIGNALS]
    with caplog.at_level(logging.WARNING), StopRequest() as interruption:
        assert interruption.received is None
        send(number)
        assert interruption.received is not None
        assert f"{number.name}: stopping; this update is finished and saved" in caplog.text
        assert interruption.received == number
        ending = stop(interruption.received, "saved up to 7")
        assert (str(ending), ending.exit_code, ending.agreed) == (
            f"{number.name}: saved up to 7",
            EXIT_CODES[number],
            True,
        )
        with pytest.raises(Interrupted, match="SIGTERM: stopped at once, nothing more was saved") as caught:
            send(signal.SIGTERM)
        assert (caught.value.exit_code, caught.value.agreed) == (143, False)
    assert [signal.getsignal(other) for other in SIGNALS] == before


def test_the_exit_codes_are_those_of_the_documents():
    """130 and 143 as a shell reports them; 75 is what the batch script of docs/slurm.md asks for."""
    assert EXIT_CODES == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}


def test_work_that_can_be_done_again_is_broken_off():
    with StopRequest() as interruption:
        with interruption.abandoning():
            pass
        with pytest.raises(Abandoned), interruption.abandoning():
            send(signal.SIGTERM)
        with pytest.raises(Abandoned), interruption.abandoning():
            pytest.fail("the work began after the signal")
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
    with StopRequest() as interruption:
        send(signal.SIGTERM)
        assert interruption.received is not None, "outside such work it only asks"
