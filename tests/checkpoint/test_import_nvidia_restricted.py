"""The restricted reader refuses every class and function outside a short list, and runs no code from the file."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, OrderedDict, defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
from oracle_nvidia_gnmt import NvidiaGNMT, checkpoint_of, save

from gnmt.checkpoint.import_nvidia import BytePairEncoding, Namespace, read_restricted
from gnmt.errors import InputError


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Foreign:
    """A class that the reader does not allow."""


@pytest.mark.parametrize("legacy", [False, True])
def test_allowed_foreign_objects_become_plain_data(legacy, tmp_path):
    written = checkpoint_of(NvidiaGNMT(2))
    read = read_restricted(save(written, tmp_path / "x.pth", legacy))
    assert type(read["config"]) is Namespace
    assert read["config"].state["math"] == "fp16"
    bpe = read["tokenizer"]["bpe"]
    assert type(bpe) is BytePairEncoding
    assert bpe.state["bpe_codes"] == {("t", "h"): 0, ("th", "e</w>"): 1}
    assert type(read["tokenizer"]["tok2idx"]) is dict
    assert read["tokenizer"]["tok2idx"] == dict(written["tokenizer"]["tok2idx"])
    assert read["state_dict"].keys() == written["state_dict"].keys()
    assert "subword_nmt" not in sys.modules


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda marker: Calls(os.system, f"touch {marker}"), "posix.system"),
        (lambda marker: Calls(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (lambda marker: Calls(open, str(marker), "w"), "io.open"),
        (lambda marker: Calls(partial, open, str(marker), "w"), "io.open"),
        (lambda marker: Calls(torch.load, str(marker)), "torch.serialization.load"),
        (lambda marker: Path(marker), "pathlib"),
        (lambda marker: Foreign(), "Foreign"),
        (lambda marker: partial(int, 2), r"functools.partial that is not functools.partial\(int, 1\)"),
        (lambda marker: partial(int, 1, base=3), r"functools.partial that is not functools.partial\(int, 1\)"),
        (lambda marker: Calls(int, "7"), "calls builtins.int"),
        (lambda marker: defaultdict(int, {1: 2}), "collections.defaultdict whose factory is not"),
        (lambda marker: defaultdict(list, {1: [2]}), "list"),
    ],
)
def test_other_objects_are_refused_with_their_name_and_do_not_run(value, named, legacy, tmp_path):
    marker = tmp_path / "it_ran"
    torch.save({"state_dict": {}, "x": value(marker)}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=named) as caught:
        read_restricted(tmp_path / "x.pth")
    assert "no code from it ran" in str(caught.value)
    assert "weights_only" not in str(caught.value), "torch's advice to load the file without protection"
    assert not marker.exists()


def test_plain_containers_are_allowed(tmp_path):
    contents = {"a": OrderedDict(b=(1, 2.5, None, True, "x")), "c": {3, 4}, "d": Counter("aab"), "e": [b"bytes"]}
    torch.save(contents, tmp_path / "x.pth")
    assert read_restricted(tmp_path / "x.pth") == contents


def test_the_list_does_not_change_later_calls_of_torch_load(tmp_path):
    torch.save({"x": argparse.Namespace(a=1)}, tmp_path / "x.pth")
    read_restricted(tmp_path / "x.pth")
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "x.pth", weights_only=True)


def test_damaged_and_missing_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        read_restricted(tmp_path / "nowhere.pth")
    whole = save(checkpoint_of(NvidiaGNMT(2)), tmp_path / "x.pth").read_bytes()
    for name, content in (("text", b"hello"), ("empty", b""), ("half", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"checkpoint {tmp_path / name} (is damaged|was refused)"):
            read_restricted(tmp_path / name)
