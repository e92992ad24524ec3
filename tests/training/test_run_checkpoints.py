"""The checkpoint files of a run: the newest few, the best, and damaged ones."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from gnmt.checkpoint.file import read_checkpoint
from gnmt.errors import InputError
from gnmt.training.run_checkpoints import RunCheckpoints, choose_checkpoints


def names(checkpoints: RunCheckpoints) -> list[str]:
    return [path.name for path in checkpoints.full()]


def damage(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_the_newest_few_stay_and_last_names_the_newest(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for step in (5, 90, 1000):
        checkpoints.save(step, {"step": step})
        assert read_checkpoint(tmp_path / "last.pt")["step"] == step
    assert names(checkpoints) == ["step_00000090.pt", "step_00001000.pt"]
    assert checkpoints.newest()["step"] == 1000
    assert (tmp_path / "last.pt").readlink().parts == ("checkpoints", "step_00001000.pt")  # the run can be moved
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "last.pt"]


def test_a_file_in_the_way_of_the_checkpoints_is_found_before_the_updates(tmp_path):
    """Once, a whole training was lost: no checkpoint could be written at its end."""
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    checkpoints.check_folder()
    checkpoints.folder.touch()
    with pytest.raises(InputError, match="checkpoints cannot be written as a folder"):
        checkpoints.check_folder()
    checkpoints.folder.unlink()
    checkpoints.save(1, {"step": 1})
    checkpoints.check_folder()


def test_only_half_written_files_of_a_killed_process_are_removed(tmp_path):
    """Once, each kill during a save left a file as large as a checkpoint."""
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    checkpoints.remove_leftovers()
    checkpoints.save(5, {"step": 5})
    checkpoints.save_best({"step": 5})
    sound = sorted(tmp_path.rglob("*"))
    half = [
        tmp_path / "checkpoints" / ".step_00000009.pt.77.tmp",
        tmp_path / ".best.pt.77.tmp",
        tmp_path / ".last.77.tmp",
    ]
    for path in half:
        path.write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"a user's")
    checkpoints.remove_leftovers()
    assert sorted(tmp_path.rglob("*")) == sorted([*sound, tmp_path / ".mine.tmp"])


def test_best_stays_when_full_checkpoints_are_deleted(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    checkpoints.save_best({"step": 3})
    checkpoints.save(9, {"step": 9})
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 3
    assert checkpoints.newest()["step"] == 9


def test_a_damaged_newest_one_falls_back_with_a_warning(tmp_path, caplog):
    checkpoints = RunCheckpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step})
    damage(checkpoints.full()[-1])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest()["step"] == 2
    [message] = [record.getMessage() for record in caplog.records]
    assert "step_00000003.pt is damaged" in message
    assert "falling back to the previous checkpoint" in message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "there is not enough memory"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
    ],
)
def test_no_fallback_from_a_newest_checkpoint_that_cannot_be_read_now(tmp_path, monkeypatch, error, reason):
    """Once, it was called damaged, and the updates since the previous one were lost."""
    checkpoints = RunCheckpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, {"step": step})

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("gnmt.checkpoint.load.torch.load", fail)
    message = rf"step_00000002\.pt cannot be read: {reason}; it may be intact, .* give the same command again"
    with pytest.raises(InputError, match=message):
        checkpoints.newest()


def test_an_error_of_the_disk_is_found_behind_torchs_own_error(tmp_path, monkeypatch):
    path = RunCheckpoints(tmp_path, keep=3).save(1, {"step": 1})

    def fail(*_, **__):
        raise RuntimeError("PytorchStreamReader failed")

    def fail_too(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("gnmt.checkpoint.load.torch.load", fail)
    monkeypatch.setattr("gnmt.checkpoint.file.Path.open", fail_too)
    with pytest.raises(InputError, match=r"step_00000001\.pt cannot be read: Input/output error"):
        read_checkpoint(path)


def test_files_of_other_names_are_ignored_and_steps_compare_as_numbers(tmp_path):
    """Once, a user's copy step_keep.pt was taken for the newest checkpoint."""
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    checkpoints.save(10, {"step": 10})
    kept = tmp_path / "checkpoints" / "step_keep.pt"
    checkpoints.path_of(10).rename(kept)
    for step in (99_999_999, 100_000_000, 100_000_001):
        checkpoints.save(step, {"step": step})
    assert names(checkpoints) == ["step_100000000.pt", "step_100000001.pt"]
    assert checkpoints.newest()["step"] == 100_000_001
    assert kept.exists()


def test_without_links_checkpoints_are_saved_and_old_ones_deleted(tmp_path, monkeypatch, caplog):
    """Once, each save failed on such a file system, and the disk filled up."""

    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step})
    assert names(checkpoints) == ["step_00000002.pt", "step_00000003.pt"]
    [message] = [record.getMessage() for record in caplog.records]
    assert "last.pt cannot be linked to" in message
    assert "step_00000001.pt (Operation not permitted)" in message


def test_if_all_are_damaged_the_run_does_not_start_from_scratch(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
        damage(checkpoints.full()[-1])
    with pytest.raises(
        InputError, match=r"none of the 2 checkpoints in .* can be read; move the folder away"
    ) as caught:
        checkpoints.newest()
    assert "step_00000001.pt" in str(caught.value)
    assert "step_00000002.pt" in str(caught.value)


def test_a_damaged_newest_checkpoint_does_not_displace_those_after_the_fallback(tmp_path):
    """Once, with keep=1, the new checkpoint of step 3 was deleted because the damaged one of step 9 was newer."""
    for step in (2, 9):
        RunCheckpoints(tmp_path, keep=2).save(step, {"step": step})
    checkpoints = RunCheckpoints(tmp_path, keep=1)
    damage(checkpoints.full()[-1])
    checkpoints.save(3, {"step": 3})
    assert checkpoints.newest()["step"] == 3
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 3
    checkpoints.save(9, {"step": 9})
    assert names(checkpoints) == ["step_00000009.pt"]
    assert checkpoints.newest()["step"] == 9


def test_the_newest_checkpoints_of_a_run_are_chosen(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step})
    chosen = choose_checkpoints([], str(tmp_path), 2)
    assert [path.name for path in chosen] == ["step_00000002.pt", "step_00000003.pt"]
    with pytest.raises(InputError, match=r"last=4: .* holds 3 checkpoints; .*trainer\.keep_checkpoints"):
        choose_checkpoints([], str(tmp_path), 4)


def test_missing_and_contradicting_choices_of_checkpoints_are_refused():
    assert choose_checkpoints(["a.pt"], None, 3) == [Path("a.pt")]
    for checkpoints, folder_name in (([], None), (["a.pt"], "runs/x")):
        with pytest.raises(InputError, match=r"give one of them, checkpoints=\[a\.pt,b\.pt\] or run=FOLDER last=N"):
            choose_checkpoints(checkpoints, folder_name, 3)
    with pytest.raises(InputError, match=r"found checkpoints=\[\] and run=null: give one"):
        choose_checkpoints([], None, 3)
    with pytest.raises(InputError, match="run=nowhere: there is no such folder"):
        choose_checkpoints([], "nowhere", 3)
