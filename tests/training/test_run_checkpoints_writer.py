"""Writing in the background: one copy, one write at a time, and every failure is reported."""

from __future__ import annotations

import errno
import logging
import threading
import time

import pytest
import torch

from gnmt.errors import Interrupted
from gnmt.training.run_checkpoints import BackgroundWriter, is_writing, snapshot


def test_a_snapshot_shares_no_memory_with_its_original():
    weight, history = torch.ones(3), [(1, 2.0)]
    contents = {"model": {"weight": weight}, "list": history, "pair": (weight, None), "text": "a"}
    taken = snapshot(contents)
    weight += 1
    history.append((2, 3.0))
    assert taken["model"]["weight"].tolist() == [1, 1, 1]
    assert taken["list"] == [(1, 2.0)]
    assert (taken["pair"][1], taken["text"], type(taken["pair"])) == (None, "a", tuple)


def test_tied_weights_are_copied_once():
    table = torch.nn.Parameter(torch.ones(4, 2))
    taken = snapshot({"one": table, "other": table.detach(), "part": table.detach()[:2], "empty": torch.zeros(0)})
    assert taken["one"].data_ptr() == taken["other"].data_ptr()
    assert taken["part"].data_ptr() != taken["one"].data_ptr()
    assert not taken["one"].requires_grad


def test_the_caller_continues_during_a_write_and_gets_its_outcome_later():
    writer, may_write, heard = BackgroundWriter(), threading.Event(), []
    writer.start(may_write.wait, "a", lambda: heard.append("a"), has_older=True)
    writer.poll()
    assert heard == [], "the write has not ended, and poll does not wait"
    assert is_writing()
    may_write.set()
    writer.wait()
    assert heard == ["a"]
    assert not is_writing()
    writer.wait()
    writer.poll()
    assert heard == ["a"], "only once"


def test_the_next_write_waits_for_the_previous_one():
    writer, order = BackgroundWriter(), []
    with writer:
        for name in "abc":
            writer.start(
                lambda name=name: order.append(name), name, lambda name=name: order.append(name.upper()), has_older=True
            )
    assert order == list("aAbBcC")


def test_a_full_disk_is_logged_and_the_next_write_runs(caplog):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    heard = []
    with caplog.at_level(logging.ERROR), BackgroundWriter() as writer:
        writer.start(fail, "the checkpoint of update 5", lambda: heard.append(5), has_older=False)
        writer.start(fail, "the checkpoint of update 6", lambda: heard.append(6), has_older=True)
        writer.start(lambda: None, "the checkpoint of update 7", lambda: heard.append(7), has_older=True)
    assert heard == [7]
    assert [record.getMessage() for record in caplog.records] == [
        "the checkpoint of update 5 was not written ([Errno 28] No space left on device); there is no previous one",
        "the checkpoint of update 6 was not written ([Errno 28] No space left on device); the previous one stays",
    ]


def test_another_error_in_the_thread_is_raised_in_the_caller():
    writer = BackgroundWriter()
    writer.start(lambda: {}["missing"], "a", lambda: None, has_older=True)
    while writer._thread.is_alive():
        threading.Event().wait(0.001)
    with pytest.raises(KeyError, match="missing"):
        writer.poll()
    writer.wait()


def test_the_end_of_the_block_waits_but_a_second_signal_does_not():
    may_write, written = threading.Event(), []
    writer = BackgroundWriter()
    writer.start(lambda: (may_write.wait(), written.append(1)), "a", lambda: None, has_older=True)
    with pytest.raises(Interrupted), writer:
        raise Interrupted("at once", 143)
    assert written == []
    may_write.set()
    writer.wait()
    writer.start(lambda: (time.sleep(0.02), written.append(2)), "b", lambda: None, has_older=True)
    with pytest.raises(RuntimeError, match="a crash"), writer:
        raise RuntimeError("a crash")
    assert written == [1, 2]
