"""An error of one of several processes: who says what, and with which exit code."""

from __future__ import annotations

import logging
import signal
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import DistNetworkError, HashStore

from gnmt.data.batching import LocalBatch
from gnmt.distributed import Ranks
from gnmt.errors import InputError, Interrupted
from gnmt.signals import EXIT_CODES, stop
from gnmt.training.data_parallel import Group, ending_together


@pytest.fixture
def pair(monkeypatch) -> tuple[Ranks, Ranks]:
    """Two processes in one; without a watchdog, who would end the tests."""
    watchdog = SimpleNamespace(start=lambda: None, dismiss=lambda: None)
    monkeypatch.setattr(Ranks, "watchdog", lambda ranks, is_writing: watchdog)
    monkeypatch.setattr("gnmt.distributed.LEAVING_SECONDS", 0.1)
    store = HashStore()
    return Ranks(0, 2, 0, store), Ranks(1, 2, 1, store)


def test_the_error_of_one_names_it_and_the_other_exits_with_a_line(pair, caplog):
    first, second = pair
    with pytest.raises(InputError, match=r"^rank 1: no such file$"), ending_together(second):
        raise InputError("no such file")
    with pytest.raises(SystemExit) as exit_, ending_together(first):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert exit_.value.code == 1
    assert caplog.messages == ["stopped, because rank 1 did: no such file"]


def test_an_error_that_all_make_is_said_once(pair, caplog):
    """A wrong file name, say: one message, whoever is quicker, and no second one from the other."""
    first, second = pair
    with pytest.raises(InputError, match=r"^no such file$"), ending_together(first):
        raise InputError("no such file")
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit), ending_together(second):
        raise InputError("no such file")
    assert caplog.messages == []


@pytest.mark.parametrize("error", [RuntimeError("[gloo/pair.cc] Connection reset"), DistNetworkError("gone")])
def test_a_process_that_was_killed_is_a_message_and_no_traceback(pair, error):
    with (
        pytest.raises(InputError, match=r"another process has ended without a word .*memory"),
        ending_together(pair[0]),
    ):
        raise error


def test_a_bug_keeps_its_traceback_and_names_its_process(pair, caplog):
    with pytest.raises(ZeroDivisionError), ending_together(pair[1]):
        raise ZeroDivisionError("by zero")
    assert caplog.messages == ["ZeroDivisionError: by zero"]


def part_and_stop(ranks: Ranks) -> None:
    ranks.part()
    raise stop(signal.SIGUSR1, "saved")


def test_an_agreed_stop_is_no_failure_and_later_signals_change_nothing(pair):
    """torchrun sends SIGTERM to all that are left as soon as one has ended."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    try:
        with pytest.raises(Interrupted) as caught, ending_together(pair[0]):
            part_and_stop(pair[0])
        assert caught.value.exit_code == 75
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert pair[1].failure() is None


def test_a_second_signal_ends_the_others_too(pair):
    with pytest.raises(Interrupted), ending_together(pair[0]):
        raise Interrupted("SIGINT: stopped at once", 130)
    assert pair[1].failure() == "stopped, because rank 0 did: SIGINT: stopped at once"


def test_a_process_that_is_alone_keeps_its_errors(caplog):
    with pytest.raises(InputError, match=r"^as it is$"), ending_together(Ranks()):
        raise InputError("as it is")
    assert caplog.messages == []


def test_a_process_that_is_alone_pays_nothing(monkeypatch):
    """No process group is joined, and the objective is called as it is."""
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("joined a group"))
    objective = torch.nn.Linear(2, 2)
    with Group.alone(torch.device("cpu")) as group:
        assert group.replicate(objective) is objective
        state = torch.get_rng_state()
        group.begin_update(3)
        assert torch.equal(torch.get_rng_state(), state)
        loss = torch.tensor(2.0)
        assert group.end_update(loss, None) is loss


def test_a_share_without_pairs_needs_a_filler():
    with pytest.raises(AssertionError):
        LocalBatch([], 3, 4)


def test_on_cuda_the_vote_of_the_update_before_counts():
    """Nobody waits for the present update; what was agreed between updates makes older votes void."""
    group = Group(Ranks(0, 2, 0, HashStore()), torch.device("cuda"), seed=1)
    group._votes.append((torch.tensor([0.0, 0.0, 0.0]), None))
    assert group.voted(None) is None, "the first update's vote is not looked at before the second"
    group._votes.append((torch.tensor([0.0, 2.0, 1.0]), None))
    assert group.voted(None) is None
    group._votes.append((torch.tensor([0.0, 0.0, 0.0]), None))
    assert group.voted(None) == signal.SIGTERM
