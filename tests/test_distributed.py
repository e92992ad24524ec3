"""Who is who among the processes of torchrun, and waiting for each other."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.distributed import HashStore

from gnmt.distributed import Ranks, Watchdog, fresh_store
from gnmt.errors import InputError


def test_without_torchrun_a_process_is_alone_and_never_waits(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.world_size, ranks.is_rank_0) == (0, 1, True)
    with ranks.together():
        ranks.wait_for_rank_0()
        ranks.wait_for_all()
        ranks.check()


def test_what_torchrun_forgot_is_a_message(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "",
        "MASTER_PORT": "",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="start them with torchrun"):
        Ranks.from_environment()


@pytest.mark.parametrize(
    ("name", "has_cuda", "expected"),
    [("auto", True, "cuda:3"), ("auto", False, "auto"), ("cuda", True, "cuda:3"), ("cpu", True, "cpu")],
)
def test_each_takes_its_own_device(monkeypatch, name, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert Ranks(7, 8, 3, HashStore()).device_name(name) == expected
    assert Ranks().device_name(name) == name


def test_the_others_wait_for_the_first_and_the_first_for_all_others():
    store, said = HashStore(), []

    def run(rank):
        ranks = Ranks(rank, 3, rank, store)
        if rank == 0:
            time.sleep(0.3)
            said.append("first is ready")
        ranks.wait_for_rank_0()
        if rank != 0:
            said.append("another goes on")
        ranks.wait_for_all()
        if rank == 0:
            said.append("all are through")

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said == ["first is ready", "another goes on", "another goes on", "all are through"]


def test_a_failure_is_told_to_the_others_once():
    store = HashStore()
    first, second = Ranks(0, 2, 0, store), Ranks(1, 2, 1, store)
    with pytest.raises(ZeroDivisionError), second.together():
        raise ZeroDivisionError
    message = "stopped, because rank 1 did: ZeroDivisionError"
    with pytest.raises(InputError, match=message), first.together():
        first.wait_for_all()
    with pytest.raises(InputError, match=message):
        second.check()


def test_the_first_says_what_the_others_hear():
    store = HashStore()
    assert Ranks(0, 2, 0, store).wait_for_rank_0("step 7") == "step 7"
    assert Ranks(1, 2, 1, store).wait_for_rank_0() == "step 7"
    assert Ranks().wait_for_rank_0("alone") == "alone"


def test_of_two_failures_the_first_counts():
    store = HashStore()
    first, second = Ranks(0, 2, 0, store), Ranks(1, 2, 1, store)
    assert second.failure() is None
    for ranks in (second, first):
        with pytest.raises(ZeroDivisionError), ranks.together():
            raise ZeroDivisionError("by zero")
    assert (first.failed_first, second.failed_first) == (False, True)
    assert first.failure() == second.failure() == "stopped, because rank 1 did: by zero"


def part_and_stop(ranks: Ranks) -> None:
    ranks.part()
    raise KeyboardInterrupt


def test_after_parting_an_error_is_nobody_elses():
    store = HashStore()
    first, second = Ranks(0, 2, 0, store), Ranks(1, 2, 1, store)
    with pytest.raises(KeyboardInterrupt), second.together():
        part_and_stop(second)
    assert first.failure() is None
    with pytest.raises(ZeroDivisionError), second.together():  # the next piece of work is common again
        raise ZeroDivisionError
    assert first.failure() is not None


def test_the_first_leaves_when_all_have_come_and_the_others_after_it(monkeypatch):
    store, left = HashStore(), []

    def leave(rank):
        if rank == 2:
            time.sleep(0.3)
            left.append("last has come")
        Ranks(rank, 3, rank, store).leave()
        left.append(rank)

    threads = [threading.Thread(target=leave, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert left[0] == "last has come"
    assert sorted(left[1:]) == [0, 1, 2]
    monkeypatch.setattr("gnmt.distributed.LEAVING_SECONDS", 0.2)
    Ranks(1, 2, 1, HashStore()).leave()  # one that never comes is not waited for


def test_a_watchman_who_is_dismissed_lets_the_process_live(monkeypatch):
    monkeypatch.setattr("gnmt.distributed.WATCH_SECONDS", 0.01)
    watchdog = Watchdog(HashStore(), speaks=True)
    watchdog.start()
    watchdog.dismiss()
    assert not watchdog.is_alive()


@pytest.mark.slow
def test_a_watchman_ends_a_process_that_hangs():
    code = """
import time
import gnmt.distributed as distributed
distributed.WATCH_SECONDS = distributed.GRACE_SECONDS = 0.05
store = distributed.torch.distributed.HashStore()
distributed.Watchdog(store, speaks=True).start()
store.set("failed", "stopped, because rank 1 did: no memory")
time.sleep(300)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "stopped, because rank 1 did: no memory" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("writing_seconds", "is_whole"), [(60.0, True), (0.2, False)])
def test_a_watchman_waits_for_what_is_being_written_but_not_for_ever(tmp_path, writing_seconds, is_whole):
    """A checkpoint that took more than ten seconds to write was lost when another process failed meanwhile."""
    code = f"""
import pathlib, threading, time
import gnmt.distributed as distributed
distributed.WATCH_SECONDS = distributed.GRACE_SECONDS = 0.05
distributed.WRITING_SECONDS = {writing_seconds}
write = threading.Thread(target=lambda: (time.sleep(1), pathlib.Path("checkpoint").touch()), daemon=True)
write.start()
store = distributed.torch.distributed.HashStore()
distributed.Watchdog(store, speaks=True, is_writing=write.is_alive).start()
store.set("failed", "stopped, because rank 1 did: no memory")
time.sleep(300)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "stopped, because rank 1 did: no memory" in done.stderr
    assert (tmp_path / "checkpoint").exists() == is_whole


def test_processes_that_are_started_again_do_not_read_what_the_ones_before_left(monkeypatch):
    """torchrun keeps its store: the new processes read that rank 1 had failed, and ended at once."""
    store, stores = HashStore(), {}

    def meet(attempt, rank, delay):
        time.sleep(delay)
        stores[attempt, rank] = fresh_store(store, rank, 3)

    for attempt, delays in enumerate([(0, 0.2, 0), (0.2, 0, 0.3)]):
        threads = [threading.Thread(target=meet, args=(attempt, rank, delays[rank])) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        ranks = [Ranks(rank, 3, rank, stores[attempt, rank]) for rank in range(3)]
        assert [each.failure() for each in ranks] == [None] * 3
        with pytest.raises(ZeroDivisionError), ranks[1].together():
            raise ZeroDivisionError("by zero")
        assert {each.failure() for each in ranks} == {"stopped, because rank 1 did: by zero"}


def test_a_process_that_never_starts_is_a_message(monkeypatch):
    monkeypatch.setattr("gnmt.distributed.MEETING_SECONDS", 0.1)
    for rank in range(2):
        with pytest.raises(InputError, match="the 2 processes did not all come"):
            fresh_store(HashStore(), rank, 2)
