"""Ranks, barriers and the failure protocol, with threads in place of the processes of a job."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import DistNetworkError, HashStore

from gnmt.distributed import Failures, Ranks, Watchdog, ending_together, fresh_store
from gnmt.errors import InputError, Interrupted
from gnmt.signals import EXIT_CODES, agreed_stop


def never_writing() -> bool:
    return False


@pytest.fixture
def pair(monkeypatch) -> tuple[Ranks, Ranks]:
    """Return two ranks in one process, without watchdogs, because a watchdog would end the test run."""
    watchdog = SimpleNamespace(start=lambda: None, dismiss=lambda: None)
    monkeypatch.setattr(Failures, "watchdog", lambda failures, is_writing: watchdog)
    monkeypatch.setattr("gnmt.distributed.EXIT_SECONDS", 0.1)
    store = HashStore()
    return Ranks(0, 2, 0, store), Ranks(1, 2, 1, store)


# Ranks and barriers


def test_without_torchrun_a_process_runs_alone_and_never_waits(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.world_size, ranks.is_rank_0) == (0, 1, True)
    with ranks.failures.propagated():
        ranks.wait_for_rank_0()
        ranks.wait_for_all()
        ranks.failures.check()
    count = ranks.counter()
    assert (count(2), count(3)) == (2, 5)
    ranks.wait_before_exit()


@pytest.mark.parametrize(
    ("devices", "backend"),
    [
        (("cpu", "cpu"), "gloo"),
        (("cuda:0", "cuda:1"), "cpu:gloo,cuda:nccl"),
        (("cuda:0", "cuda:0"), "gloo"),
    ],
)
def test_processes_that_share_a_gpu_communicate_by_gloo(pair, devices, backend, monkeypatch, caplog):
    """NCCL refuses to connect them."""
    backends: list[str] = []
    monkeypatch.setattr("gnmt.distributed.dist.init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr("gnmt.distributed._destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def join(ranks: Ranks, device: str) -> None:
        with ranks.process_group(torch.device(device)):
            pass

    threads = [threading.Thread(target=join, args=pair_of) for pair_of in zip(pair, devices, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert backends == [backend, backend]
    assert ("processes share a GPU" in caplog.text) is (devices == ("cuda:0", "cuda:0"))


def test_an_incomplete_environment_is_an_input_error(monkeypatch):
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
def test_each_process_takes_its_local_gpu(monkeypatch, name, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert Ranks(7, 8, 3, HashStore()).local_device_name(name) == expected
    assert Ranks().local_device_name(name) == name


def test_the_others_wait_for_rank_0_and_rank_0_for_all_others():
    store, events = HashStore(), []

    def run(rank):
        ranks = Ranks(rank, 3, rank, store)
        if rank == 0:
            time.sleep(0.3)
            events.append("rank 0 is ready")
        ranks.wait_for_rank_0()
        if rank != 0:
            events.append("another continues")
        ranks.wait_for_all()
        if rank == 0:
            events.append("all are ready")

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert events == ["rank 0 is ready", "another continues", "another continues", "all are ready"]


def test_all_ranks_get_the_message_of_rank_0():
    store = HashStore()
    assert Ranks(0, 2, 0, store).wait_for_rank_0("step 7") == "step 7"
    assert Ranks(1, 2, 1, store).wait_for_rank_0() == "step 7"
    assert Ranks().wait_for_rank_0("alone") == "alone"


def test_before_exit_all_ranks_wait_for_the_last_one_but_not_for_ever(monkeypatch):
    store, events = HashStore(), []

    def run(rank):
        if rank == 2:
            time.sleep(0.3)
            events.append("last rank is ready")
        Ranks(rank, 3, rank, store).wait_before_exit()
        events.append(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert events[0] == "last rank is ready"
    assert sorted(events[1:]) == [0, 1, 2]
    monkeypatch.setattr("gnmt.distributed.EXIT_SECONDS", 0.2)
    Ranks(1, 2, 1, HashStore()).wait_before_exit()  # rank 0 never reaches this call


def test_restarted_processes_do_not_read_the_keys_of_earlier_ones():
    """torchrun keeps its store. The new processes read the failure of the earlier rank 1, and ended at once."""
    store, stores = HashStore(), {}

    def connect(attempt, rank, delay):
        time.sleep(delay)
        stores[attempt, rank] = fresh_store(store, rank, 3, limit_seconds=30)

    for attempt, delays in enumerate([(0, 0.2, 0), (0.2, 0, 0.3)]):
        threads = [threading.Thread(target=connect, args=(attempt, rank, delays[rank])) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        failures = [Ranks(rank, 3, rank, stores[attempt, rank]).failures for rank in range(3)]
        assert [each.message() for each in failures] == [None] * 3
        with pytest.raises(ZeroDivisionError), failures[1].propagated():
            raise ZeroDivisionError("by zero")
        assert {each.message() for each in failures} == {"stopped, because rank 1 did: by zero"}


@pytest.mark.parametrize(("rank", "missing"), [(0, "ranks 1, 2"), (1, "rank 0")])
def test_a_process_that_never_starts_is_named(monkeypatch, caplog, rank, missing):
    monkeypatch.setattr("gnmt.logs.NOTICE_SECONDS", 0.1)
    expected = rf"not all of the 3 processes have started within 300 seconds \({missing} did not answer\)"
    with pytest.raises(InputError, match=expected):
        fresh_store(HashStore(), rank, 3, limit_seconds=0.5)
    assert caplog.messages[0] == f"waiting for {missing} to start (00:00 so far)"


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_barrier_names_the_ranks_that_it_waits_for(monkeypatch, caplog, waiting):
    monkeypatch.setattr("gnmt.logs.NOTICE_SECONDS", 0.1)
    store = HashStore()
    ranks = [Ranks(rank, 3, rank, store) for rank in range(3)]
    if waiting == 0:
        thread = threading.Thread(target=ranks[0].wait_for_all)
        ranks[1].wait_for_all()
    else:
        thread = threading.Thread(target=ranks[1].wait_for_rank_0)
    thread.start()
    while not caplog.messages:
        time.sleep(0.01)
    (ranks[2].wait_for_all if waiting == 0 else ranks[0].wait_for_rank_0)()
    thread.join(30)
    assert caplog.messages[0] == f"waiting for rank {2 if waiting == 0 else 0} (00:00 so far)"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_peers_are_absent_says_so_and_obeys_signals(rank):
    """It waited for ten minutes without a word, and only SIGKILL ended it."""
    code = """
import gnmt.distributed, gnmt.logs, gnmt.signals
gnmt.logs.NOTICE_SECONDS = 0.1
gnmt.logs.configure_logging()
try:
    with gnmt.signals.interrupt_on_signals():
        gnmt.distributed.Ranks.from_environment()
except KeyboardInterrupt as stop:
    raise SystemExit(str(stop))
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env={**os.environ, **job}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        notice = next(line for line in process.stderr if "waiting for" in line)
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    expected = "waiting for rank 1 to start" if rank == 0 else f"rank 1: waiting for rank 0 at 127.0.0.1:{port}"
    assert expected in notice
    assert rest.splitlines()[-1] == "SIGTERM: stopped"
    assert process.returncode == 1


# Failures


def test_a_failure_ends_the_other_processes_at_their_next_barrier_or_check(pair):
    first, second = pair
    with pytest.raises(ZeroDivisionError), second.failures.propagated():
        raise ZeroDivisionError
    message = "stopped, because rank 1 did: ZeroDivisionError"
    with pytest.raises(InputError, match=message), first.failures.propagated():
        first.wait_for_all()
    with pytest.raises(InputError, match=message):
        second.failures.check()


def test_the_message_of_the_first_of_two_failures_counts(pair):
    first, second = pair
    assert second.failures.message() is None
    for ranks in (second, first):
        with pytest.raises(ZeroDivisionError), ranks.failures.propagated():
            raise ZeroDivisionError("by zero")
    assert (first.failures.failed_first, second.failures.failed_first) == (False, True)
    assert first.failures.message() == second.failures.message() == "stopped, because rank 1 did: by zero"


def conclude_and_raise(ranks: Ranks, error: BaseException) -> None:
    ranks.failures.conclude()
    raise error


def test_after_the_conclusion_an_error_does_not_end_the_others(pair):
    first, second = pair
    with pytest.raises(KeyboardInterrupt), second.failures.propagated():
        conclude_and_raise(second, KeyboardInterrupt())
    assert first.failures.message() is None
    with pytest.raises(ZeroDivisionError), second.failures.propagated():  # the next task is propagated again
        raise ZeroDivisionError
    assert first.failures.message() is not None


def test_the_failed_process_names_its_rank_and_the_other_logs_one_line_and_exits(pair, caplog):
    first, second = pair
    with pytest.raises(InputError, match=r"^rank 1: no such file$"), ending_together(second, never_writing):
        raise InputError("no such file")
    with pytest.raises(SystemExit) as exit_, ending_together(first, never_writing):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert exit_.value.code == 1
    assert caplog.messages == ["stopped, because rank 1 did: no such file"]


def test_an_error_of_all_processes_is_reported_once(pair, caplog):
    """All processes find the same wrong file name, for example. The slower process adds no message."""
    first, second = pair
    with pytest.raises(InputError, match=r"^no such file$"), ending_together(first, never_writing):
        raise InputError("no such file")
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit), ending_together(second, never_writing):
        raise InputError("no such file")
    assert caplog.messages == []


@pytest.mark.parametrize("error", [RuntimeError("[gloo/pair.cc] Connection reset"), DistNetworkError("gone")])
def test_a_killed_process_is_an_input_error_without_a_traceback(pair, error):
    with (
        pytest.raises(InputError, match=r"another process has ended without an error message .*memory"),
        ending_together(pair[0], never_writing),
    ):
        raise error


def test_a_bug_keeps_its_traceback_and_names_its_process(pair, caplog):
    with pytest.raises(ZeroDivisionError), ending_together(pair[1], never_writing):
        raise ZeroDivisionError("by zero")
    assert caplog.messages == ["ZeroDivisionError: by zero"]


def test_an_agreed_stop_is_no_failure_and_later_signals_change_nothing(pair):
    """torchrun sends SIGTERM to the remaining processes as soon as one has ended."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    try:
        with pytest.raises(Interrupted) as caught, ending_together(pair[0], never_writing):
            conclude_and_raise(pair[0], agreed_stop(signal.SIGUSR1, "saved"))
        assert caught.value.exit_code == 75
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert pair[1].failures.message() is None


def test_a_second_signal_ends_the_others_too(pair):
    with pytest.raises(Interrupted), ending_together(pair[0], never_writing):
        raise Interrupted("SIGINT: stopped at once", 130)
    assert pair[1].failures.message() == "stopped, because rank 0 did: SIGINT: stopped at once"


def test_a_process_that_runs_alone_keeps_its_errors(caplog):
    with pytest.raises(InputError, match=r"^as it is$"), ending_together(Ranks(), never_writing):
        raise InputError("as it is")
    assert caplog.messages == []


# Watchdog


def test_a_dismissed_watchdog_does_not_end_the_process(monkeypatch):
    monkeypatch.setattr("gnmt.distributed.WATCH_SECONDS", 0.01)
    watchdog = Watchdog(HashStore(), reports=True)
    watchdog.start()
    watchdog.dismiss()
    assert not watchdog.is_alive()


@pytest.mark.slow
def test_a_watchdog_ends_a_process_that_hangs():
    code = """
import time
import gnmt.distributed as distributed
distributed.WATCH_SECONDS = distributed.GRACE_SECONDS = 0.05
store = distributed.torch.distributed.HashStore()
distributed.Watchdog(store, reports=True).start()
store.set("failed", "stopped, because rank 1 did: no memory")
time.sleep(300)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "stopped, because rank 1 did: no memory" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("writing_seconds", "is_complete"), [(60.0, True), (0.2, False)])
def test_a_watchdog_waits_for_a_write_but_not_for_ever(tmp_path, writing_seconds, is_complete):
    """A checkpoint that took more than ten seconds to write was lost when another process failed meanwhile."""
    code = f"""
import pathlib, threading, time
import gnmt.distributed as distributed
distributed.WATCH_SECONDS = distributed.GRACE_SECONDS = 0.05
distributed.WRITING_SECONDS = {writing_seconds}
write = threading.Thread(target=lambda: (time.sleep(1), pathlib.Path("checkpoint").touch()), daemon=True)
write.start()
store = distributed.torch.distributed.HashStore()
distributed.Watchdog(store, reports=True, is_writing=write.is_alive).start()
store.set("failed", "stopped, because rank 1 did: no memory")
time.sleep(300)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "stopped, because rank 1 did: no memory" in done.stderr
    assert (tmp_path / "checkpoint").exists() == is_complete


@pytest.mark.slow
def test_a_watchdog_obeys_signals_for_a_process_that_hangs_in_a_collective():
    """Python calls no handler while the main thread is in C++. Such a process ignored all signals for half an hour."""
    code = """
import threading
import gnmt.distributed as distributed, gnmt.logs, gnmt.signals
distributed.WATCH_SECONDS = distributed.GRACE_SECONDS = distributed.SIGNAL_SECONDS = 0.1
gnmt.logs.configure_logging()
with gnmt.signals.interrupt_on_signals():
    distributed.Watchdog(distributed.HashStore(), reports=True).start()
    # Another thread logs this when the main thread is in C++. Earlier, Python would call the handler itself.
    threading.Timer(2, lambda: gnmt.logs.logging.warning("blocked")).start()
    distributed.HashStore().wait(["a key that is never set"])
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        next(line for line in lines if "blocked" in line)
        process.send_signal(signal.SIGTERM)
        explained = next(line for line in lines if "SIGTERM" in line)
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    assert "still waits for another one (a second signal stops it at once)" in explained
    assert "SIGTERM: stopped at once, nothing more was saved" in rest
    assert process.returncode == 143
