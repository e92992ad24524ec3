"""Stop requests: a first signal requests a stop, a second one interrupts at once."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from gnmt.errors import Interrupted
from gnmt.signals import (
    EXIT_CODES,
    SIGNALS,
    Abandoned,
    StopRequest,
    agreed_stop,
    exit_code_of,
    explain_interrupts,
    interrupt_on_signals,
)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    if number == signal.SIGHUP:
        before[SIGNALS.index(number)] = signal.SIG_IGN
    assert [signal.getsignal(other) for other in SIGNALS] == before


def test_exit_codes_are_those_of_the_documentation():
    """129, 130 and 143 as a shell reports them; the batch script of docs/slurm.md queues the job again after 75."""
    expected = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75, "SIGUSR2": 75}
    assert {number.name: code for number, code in EXIT_CODES.items()} == expected
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


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_a_command_unless_the_program_has_its_own_handler(number):
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, default)
    with pytest.raises(KeyboardInterrupt) as caught, interrupt_on_signals():
        send(number)
    assert str(caught.value) == ("" if number == signal.SIGINT else f"{number.name}: stopped")
    assert exit_code_of(caught.value) == EXIT_CODES[number]
    assert signal.getsignal(number) is (signal.SIG_IGN if number == signal.SIGHUP else default)
    received = []
    signal.signal(number, lambda *_: received.append(number))
    with interrupt_on_signals():
        send(number)
    assert received == [number]


def test_a_closed_terminal_is_one_stop_request_although_two_signals_arrive():
    """The shell and the kernel both send SIGHUP. The second one ended the run at once, without saving."""
    with explain_interrupts(lambda: True), StopRequest() as request:
        send(signal.SIGHUP)
        send(signal.SIGHUP)
        assert request.received == signal.SIGHUP
        signal.raise_signal(signal.SIGHUP)
    with StopRequest() as request:
        signal.signal(signal.SIGHUP, request._receive)
        send(signal.SIGINT)
        send(signal.SIGHUP)
        assert request.received == signal.SIGINT


def test_nohup_keeps_a_training_running():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupt_on_signals(), explain_interrupts(lambda: True), StopRequest() as request:
        send(signal.SIGHUP)
        assert request.received is None


def test_after_saving_the_handler_of_the_surrounding_program_is_called(caplog):
    """The handler of submitit queues the job again, but the run had replaced it."""
    events = []
    signal.signal(signal.SIGUSR2, lambda number, frame: events.append(f"requeue after {signal.Signals(number).name}"))

    def train():
        with StopRequest() as request:
            send(signal.SIGUSR2)
            events.append("saved")
            raise agreed_stop(request.received, "saved up to 7")

    with pytest.raises(Interrupted, match=r"^SIGUSR2: saved up to 7$"), explain_interrupts(lambda: True):
        train()
    assert events == ["saved", "requeue after SIGUSR2"]
    assert "SIGUSR2: saved up to 7" in caplog.messages
    expected = pytest.raises(Interrupted, match=r"^SIGUSR2: interrupted before the first update")
    with expected, interrupt_on_signals(), explain_interrupts(lambda: False):
        send(signal.SIGUSR2)
    assert events[2:] == ["requeue after SIGUSR2"]
