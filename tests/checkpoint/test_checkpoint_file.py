"""The checkpoint file: whole or absent, checked before use, and never code."""

from __future__ import annotations

import errno
import json
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
from gnmt.checkpoint.file import git_revision, read_checkpoint, write_checkpoint
from gnmt.checkpoint.load import build_model, load_model
from gnmt.data.tokenizer import TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.errors import InputError
from gnmt.model.seq2seq import Seq2Seq

CPU = torch.device("cpu")
WIDTHS = {"input_size": 4, "hidden_size": 4, "num_layers": 2}
ATTENTION = {"_target_": "gnmt.model.attention.AdditiveAttention", "query_size": 4, "memory_size": 4, "hidden_size": 3}
MODEL = {
    "_target_": "gnmt.model.seq2seq.Seq2Seq",
    "embedding_size": 4,
    "tie_embeddings": "all",
    "encoder": {"_target_": "gnmt.model.recurrent.encoder.LSTMEncoder", **WIDTHS},
    "decoder": {"_target_": "gnmt.model.recurrent.gnmt_decoder.GNMTDecoder", **WIDTHS, "attention": ATTENTION},
}


@pytest.fixture(scope="session")
def tokenizers() -> Tokenizers:
    lines = ["a red house", "no tree sleeps", "the end"]
    return train_tokenizers(lines, lines, TokenizerOptions(vocab_size=280))


@pytest.fixture
def contents(tokenizers: Tokenizers) -> dict[str, Any]:
    """A small whole checkpoint, as a run writes it."""
    torch.manual_seed(1)
    model = build_model(MODEL, tokenizers, (), "the test")
    return {
        "config": json.dumps({"model": MODEL, "name": "Größe"}),
        "tokenizers": tokenizers.to_checkpoint(),
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.98), "lr": 1e-3}]},
        "step": 3,
        "best": {"dev/bleu": 12.5},
        "best_step": 2,
        "data_fingerprint": "0" * 64,
        "preprocessed_folder": "preprocessed/demo",
        "precision": "fp32",
        "unused_target_ids": [],
        "git_revision": None,
        "torch_version": str(torch.__version__),
        "versions": {"gnmt": "0"},
        "average": None,
        "rng": {"cpu": torch.get_rng_state(), "cuda": []},
        "tied": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def written(tmp_path: Path, contents: dict[str, Any]) -> Path:
    path = tmp_path / "best.pt"
    write_checkpoint(path, contents)
    return path


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


# Whole or absent


def test_what_is_read_is_what_was_written(written, contents):
    found = read_checkpoint(written)
    assert found.pop("format_version") == 2
    found.pop("checksum")
    assert {**found, "model": dict(found["model"])}.keys() == contents.keys()
    assert equal(found["optimizer"]["param_groups"][0], contents["optimizer"]["param_groups"][0])
    assert all(equal(found[key], contents[key]) for key in ("config", "model", "step", "best", "tied", "empty", "rng"))
    assert [path.name for path in written.parent.iterdir()] == ["best.pt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(written, contents, monkeypatch, failing):
    before = written.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", fail) if failing == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(written, {**contents, "step": 4})
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["best.pt"]


def test_ctrl_c_while_writing_leaves_the_old_file_and_no_other(written, contents, monkeypatch):
    before = written.read_bytes()

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(written, {**contents, "step": 4})
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["best.pt"]


def test_the_data_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (calls.append("replace"), replace(path, target)))
    write_checkpoint(tmp_path / "a.pt", {"step": 1})
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("value", [np.float64(1.5), np.int64(3), Path("x"), {1, 2}, torch.float32], ids=type)
def test_what_could_not_be_read_is_not_written(tmp_path, value):
    """np.float64 is a float, and a file with one is refused by weights_only after hours of training."""
    with pytest.raises(TypeError, match=rf"tensors and plain values, found {type(value).__name__}"):
        write_checkpoint(tmp_path / "a.pt", {"best": {"dev/bleu": [value]}})
    assert list(tmp_path.iterdir()) == []


# Damaged, foreign, of another version


def test_a_missing_file_names_those_that_are_there(written):
    with pytest.raises(InputError, match=r"last\.pt is not a file; there are: .*best\.pt"):
        read_checkpoint(written.parent / "last.pt")
    with pytest.raises(InputError, match=r"is not a file; there are: .*best\.pt"):
        read_checkpoint(written.parent)
    with pytest.raises(InputError, match=r"x\.pt is not a file; .*nowhere has no \*\.pt either"):
        read_checkpoint(written.parent / "nowhere" / "x.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(written, share):
    data = written.read_bytes()
    written.write_bytes(data[: int(share * len(data))])
    # torch spoke of "internal miniz errors" and of "EOFError: EOFError".
    what = "its end is missing" if share else "it is empty"
    with pytest.raises(InputError, match=rf"best\.pt is damaged: {what}: use another one of its folder$"):
        read_checkpoint(written)


@pytest.mark.parametrize("name", ["model", "tokenizers"])
def test_a_flipped_bit_in_a_tensor_is_noticed(written, contents, name):
    tensor = (
        contents["model"]["source_embedding.weight"] if name == "model" else contents[name]["source"]["files"]["model"]
    )
    raw = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
    data = bytearray(written.read_bytes())
    place = bytes(data).find(raw)
    assert place > 0
    data[place + len(raw) // 2] ^= 1
    written.write_bytes(data)
    with pytest.raises(InputError, match=r"best\.pt is damaged"):
        read_checkpoint(written)


@pytest.mark.filterwarnings("ignore")  # of torch, about the pickles that damage makes
def test_a_changed_byte_anywhere_is_refused_or_harmless(tmp_path):
    """Damaged bytes lead torch's reader to errors of every kind, and each must become one message."""
    small = {"model": {"w": torch.arange(8.0)}, "config": "{}", "step": 3, "opt": {"betas": (0.9, 0.98)}}
    path = tmp_path / "small.pt"
    write_checkpoint(path, small)
    original, data = read_checkpoint(path), path.read_bytes()
    messages = []
    for place in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        try:
            assert equal(read_checkpoint(path), original), place
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
def test_torch_files_of_others_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt is a torch file, but not a checkpoint of gnmt"):
        read_checkpoint(tmp_path / "other.pt")


def test_another_format_version_is_named(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT_VERSION", 7)
    write_checkpoint(tmp_path / "new.pt", contents)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"new\.pt has format version 7, this code reads 2: use the version of gnmt"):
        read_checkpoint(tmp_path / "new.pt")


# Nothing in it runs


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
    evil = {"format_version": 2, "model": Malicious(victim)}
    torch.save(evil, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"evil\.pt was refused, and nothing in it ran"):
        read_checkpoint(path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(evil))  # the trap works
    assert victim.exists()


def test_numpy_scalars_of_a_foreign_file_are_refused(tmp_path):
    torch.save({"format_version": 2, "best": np.float64(1.5)}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match=r"foreign\.pt was refused"):
        read_checkpoint(tmp_path / "foreign.pt")


def rewritten(path: Path, contents: dict[str, Any], **changes: Any) -> Path:
    """The checkpoint with other parts, sealed anew, as an attacker would."""
    write_checkpoint(path, {**contents, **changes})
    return path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.load", "lies outside the trusted packages"),
        ("os.system", "lies outside the trusted packages"),
        ("gnmt.checkpoint.file.os.system", "found gnmt.checkpoint.file.os.system"),
        ("gnmt.checkpoint.file.read_checkpoint", "leads to a function, not to a class"),
        ("torch.optim.optimizer.torch.load", "found torch.optim.optimizer.torch.load"),
        ("gnmt.reporting.tensorboard.Reporter", "allowed is gnmt.model.seq2seq.Seq2Seq or a class derived from it"),
        ("gnmt.decoding.options.SearchOptions", "allowed is gnmt.model.seq2seq.Seq2Seq or a class derived from it"),
        ("torch.optim.SGD", "allowed is gnmt.model.seq2seq.Seq2Seq or a class derived from it"),
    ],
)
def test_a_config_that_names_other_code_is_refused(tmp_path, contents, target, message):
    """Reporter is of this project, and would make a folder."""
    victim = tmp_path / "victim"
    for node in ({"_target_": target, "folder": str(victim)}, {"_target_": target}):
        path = rewritten(tmp_path / "evil.pt", contents, config=json.dumps({"model": node}))
        with pytest.raises(InputError, match=r"evil\.pt: the model's config was refused, nothing was built") as caught:
            load_model(path, CPU)
        assert f"model._target_: found {target}" in str(caught.value)
        assert message in str(caught.value)
    assert not victim.exists()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_other_code_inside_the_model_is_refused(tmp_path, contents, part):
    victim = tmp_path / "victim"
    node = {**MODEL, part: {"_target_": "gnmt.reporting.tensorboard.Reporter", "folder": str(victim)}}
    path = rewritten(tmp_path / "evil.pt", contents, config=json.dumps({"model": node}))
    with pytest.raises(InputError, match=rf"model\.{part}\._target_: found gnmt\.reporting"):
        load_model(path, CPU)
    assert not victim.exists()


# The model of a checkpoint


def test_load_model(written, contents, tokenizers):
    loaded = load_model(written, CPU)
    assert isinstance(loaded.model, Seq2Seq)
    assert not loaded.model.training
    assert all(torch.equal(weight, contents["model"][name]) for name, weight in loaded.model.state_dict().items())
    assert loaded.model.output_layer.weight is loaded.model.source_embedding.weight
    assert loaded.tokenizers.digest == tokenizers.digest
    assert loaded.config["name"] == "Größe"
    assert loaded.contents["step"] == 3


@pytest.mark.parametrize("part", ["config", "tokenizers", "model", "precision", "preprocessed_folder"])
def test_a_part_that_is_missing_is_named(tmp_path, contents, part):
    path = tmp_path / "part.pt"
    write_checkpoint(path, {key: value for key, value in contents.items() if key != part})
    with pytest.raises(InputError, match=rf"part\.pt lacks required entries: {part}"):
        load_model(path, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "not JSON"}, "has a malformed config or tokenizer entry: Expecting value"),
        ({"config": "[1]"}, "has a malformed config"),
        ({"config": json.dumps({"model": "gnmt"})}, 'model: found "gnmt", allowed is a component'),
        ({"tokenizers": {"source": 3}}, "tokenizers.source must hold kind, files and framing"),
        ({"model": {}}, "its weights do not fit the model: the checkpoint lacks "),
        ({"model": 5}, "its weights do not fit the model"),
    ],
)
def test_garbled_parts_are_refused(tmp_path, contents, changes, message):
    path = rewritten(tmp_path / "garbled.pt", contents, **changes)
    with pytest.raises(InputError, match=re.compile(rf"garbled\.pt.*{message}", re.DOTALL)):
        load_model(path, CPU)


def test_weights_of_another_shape_are_refused(tmp_path, contents):
    wider = {**MODEL, "encoder": {**MODEL["encoder"], "num_layers": 3}}
    path = rewritten(tmp_path / "wide.pt", contents, config=json.dumps({"model": wider}))
    with pytest.raises(
        InputError,
        match=r"wide\.pt: its weights do not fit the model: the checkpoint lacks encoder\.layers\.2\S+ \(and \d+ mo",
    ):
        load_model(path, CPU)


def test_git_revision_is_a_commit_or_none(monkeypatch, tmp_path):
    revision = git_revision()
    assert revision is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", revision)
    monkeypatch.setattr(checkpoint_module, "__file__", str(tmp_path / "checkpoint.py"))
    assert git_revision() is None


def test_the_commit_of_another_project_around_an_installed_gnmt_is_not_ours(monkeypatch, tmp_path):
    """`git describe` in site-packages told the commit of whatever repository the environment lay in."""
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
    subprocess.run([*git, "add", "-f", ".venv"], check=True)  # a copy of the sources that a project keeps as its own
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", str(git_revision()))
