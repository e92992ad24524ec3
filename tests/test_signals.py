"""Stop requests: a first signal requests a stop, a second one interrupts at once."""

from __future__ import annotations

import logging
import os
import signal

import pytest

from gnmt.errors import Interrupted
from gnmt.signals import EXIT_CODES, SIGNALS, Abandoned, StopRequest, agreed_stop, exit_code_of, interrupt_on_sigterm


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_requests_a_stop_and_a_second_interrupts_at_once(caplog, number):
    before = [signal.getsignal(other) for other in SIGNALS]
    with caplog.at_level(logging.WARNING), StopRequest() as request:
        assert request.received is None
        send(number)
        assert f"{number.name}: stopping; this update is finished and saved" in caplog.text
        assert request.received == number
        stopped = agreed_stop(request.received, "saved up to 7")
        assert (str(stopped), stopped.exit_code, stopped.agreed) == (
            f"{number.name}: saved up to 7",
            EXIT_CODES[number],
            True,
        )
        with pytest.raises(Interrupted, match="SIGTERM: stopped at once, nothing more was saved") as caught:
            send(signal.SIGTERM)
        assert (caught.value.exit_code, caught.value.agreed) == (143, False)
    assert [signal.getsignal(other) for other in SIGNALS] == before


def test_exit_codes_are_those_of_the_documentation():
    """130 and 143 as a shell reports them; the batch script of docs/slurm.md queues the job again after 75."""
    assert EXIT_CODES == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
    assert exit_code_of(KeyboardInterrupt()) == 130
    assert exit_code_of(Interrupted("stopped", 75)) == 75


def test_a_signal_abandons_work_that_can_be_repeated():
    with StopRequest() as request:
        with request.abandoning():
            pass
        with pytest.raises(Abandoned), request.abandoning():
            send(signal.SIGTERM)
        with pytest.raises(Abandoned), request.abandoning():
            pytest.fail("the work began after the signal")
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
    with StopRequest() as request:
        send(signal.SIGTERM)
        assert request.received is not None, "outside of such work, the signal is only recorded"


def test_sigterm_interrupts_unless_the_program_has_its_own_handler():
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted, match=r"^SIGTERM: stopped$"), interrupt_on_sigterm():
            send(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with interrupt_on_sigterm():
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)
