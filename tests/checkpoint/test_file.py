"""The checkpoint file is written completely or not at all, is verified when it is read, and never runs code."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gnmt.checkpoint.file as checkpoint_module
from gnmt.checkpoint.file import FORMAT_VERSION, git_revision, read_checkpoint, write_checkpoint
from gnmt.errors import InputError


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


# Writing


def test_reading_returns_what_was_written(written, contents):
    found = read_checkpoint(written)
    assert found.pop("format_version") == FORMAT_VERSION
    found.pop("checksum")
    assert {**found, "model": dict(found["model"])}.keys() == contents.keys()
    assert equal(found["optimizer"]["param_groups"][0], contents["optimizer"]["param_groups"][0])
    assert all(equal(found[key], contents[key]) for key in ("config", "model", "step", "best", "tied", "empty", "rng"))
    assert [path.name for path in written.parent.iterdir()] == ["best.pt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_only_the_old_file(written, contents, monkeypatch, failing):
    before = written.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if failing == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(written, {**contents, "step": 4})
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["best.pt"]


def test_an_interrupt_while_writing_leaves_only_the_old_file(written, contents, monkeypatch):
    before = written.read_bytes()

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(written, {**contents, "step": 4})
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["best.pt"]


def test_data_is_flushed_before_the_file_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (calls.append("replace"), replace(path, target)))
    write_checkpoint(tmp_path / "a.pt", {"step": 1})
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("value", [np.float64(1.5), np.int64(3), Path("x"), {1, 2}, torch.float32], ids=type)
def test_values_that_could_not_be_read_are_not_written(tmp_path, value):
    """np.float64 is a float, but weights_only refuses a file with one, after hours of training."""
    with pytest.raises(TypeError, match=rf"tensors and plain values, found {type(value).__name__}"):
        write_checkpoint(tmp_path / "a.pt", {"best": {"dev/bleu": [value]}})
    assert list(tmp_path.iterdir()) == []


# Damaged and foreign files, other versions


def test_the_message_about_a_missing_file_names_nearby_checkpoints(written):
    with pytest.raises(InputError, match=r"last\.pt is not a file; existing checkpoints: .*best\.pt"):
        read_checkpoint(written.parent / "last.pt")
    with pytest.raises(InputError, match=r"is not a file; existing checkpoints: .*best\.pt"):
        read_checkpoint(written.parent)
    with pytest.raises(InputError, match=r"x\.pt is not a file; .*nowhere has no \*\.pt either"):
        read_checkpoint(written.parent / "nowhere" / "x.pt")
    with pytest.raises(InputError, match="is not a file"):  # once, an OSError
        read_checkpoint("x" * 300)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(written, share):
    data = written.read_bytes()
    written.write_bytes(data[: int(share * len(data))])
    what = "its end is missing" if share else "it is empty"
    with pytest.raises(InputError, match=rf"best\.pt is damaged: {what}; use another one from its folder$"):
        read_checkpoint(written)


@pytest.mark.parametrize("name", ["model", "tokenizers"])
def test_a_flipped_bit_in_a_tensor_is_noticed(written, contents, name):
    tensor = (
        contents["model"]["source_embedding.weight"] if name == "model" else contents[name]["source"]["files"]["model"]
    )
    raw = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
    data = bytearray(written.read_bytes())
    index = bytes(data).find(raw)
    assert index > 0
    data[index + len(raw) // 2] ^= 1
    written.write_bytes(data)
    with pytest.raises(InputError, match=r"best\.pt is damaged"):
        read_checkpoint(written)


@pytest.mark.filterwarnings("ignore")  # torch warns about damaged pickles
def test_a_changed_byte_anywhere_is_refused_or_harmless(tmp_path):
    """Damaged bytes make torch's reader raise errors of any type, and each must become one message."""
    small = {"model": {"w": torch.arange(8.0)}, "config": "{}", "step": 3, "opt": {"betas": (0.9, 0.98)}}
    path = tmp_path / "small.pt"
    write_checkpoint(path, small)
    original, data = read_checkpoint(path), path.read_bytes()
    messages = []
    for index in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[index] ^= 0x41
        path.write_bytes(damaged)
        try:
            assert equal(read_checkpoint(path), original), index
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > len(data) // 5 * 0.3
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"PK\x03\x04", b"\x80\x02}.", b"\xff" * 500])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.pt (is damaged|was refused|is a torch file)"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [[1, 2], {"weight": torch.zeros(2)}, torch.zeros(2)], ids=type)
def test_other_torch_files_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt is a torch file, but not a checkpoint of gnmt"):
        read_checkpoint(tmp_path / "other.pt")


def test_another_format_version_is_named(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT_VERSION", 7)
    write_checkpoint(tmp_path / "new.pt", contents)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"new\.pt has format version 7, this code reads 3: use the version of gnmt"):
        read_checkpoint(tmp_path / "new.pt")


# Files that would run code


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, legacy):
    victim = tmp_path / "victim"
    path = tmp_path / "evil.pt"
    evil = {"format_version": FORMAT_VERSION, "model": Malicious(victim)}
    torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"evil\.pt was refused, and no code from it ran"):
        read_checkpoint(path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(evil))  # the file would have run its code
    assert victim.exists()


def test_numpy_scalars_of_a_foreign_file_are_refused(tmp_path):
    torch.save({"format_version": FORMAT_VERSION, "best": np.float64(1.5)}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match=r"foreign\.pt was refused"):
        read_checkpoint(tmp_path / "foreign.pt")


# Versions


def test_git_revision_is_a_commit_or_none(monkeypatch, tmp_path):
    revision = git_revision()
    assert revision is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", revision)
    monkeypatch.setattr(checkpoint_module, "__file__", str(tmp_path / "checkpoint.py"))
    assert git_revision() is None


def test_the_commit_of_a_surrounding_repository_is_not_returned(monkeypatch, tmp_path):
    """`git describe` in site-packages returned the commit of the repository that contains the environment."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "theirs.py").touch()
    subprocess.run([*git, "add", "theirs.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "theirs"], check=True)
    installed = tmp_path / ".venv" / "gnmt" / "checkpoint.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(checkpoint_module, "__file__", str(installed))
    assert git_revision() is None
    subprocess.run([*git, "add", "-f", ".venv"], check=True)  # now tracked by the surrounding repository
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", str(git_revision()))
