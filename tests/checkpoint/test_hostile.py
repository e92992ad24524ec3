"""Checkpoints with wrong or hostile values are refused by every command that reads them: a message, and soon."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from gnmt.checkpoint.average import average_checkpoints
from gnmt.checkpoint.export import JSON_FILE, export_folder
from gnmt.checkpoint.file import read_checkpoint, write_checkpoint
from gnmt.checkpoint.import_checkpoint import import_checkpoint
from gnmt.checkpoint.inspect import as_json, as_text, describe_checkpoint
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError

DEEP = "[" * 100_000 + "]" * 100_000
NESTED: list[Any] = []
for _ in range(200):
    NESTED = [NESTED]
VALUES = (None, "text", 10**30, -1, 1e308, [], [None], {}, {"a": 1}, True, NESTED)
PLAIN_ENTRIES = ("step", "best", "best_step", "data_fingerprint", "preprocessed_folder", "precision",
                 "unused_target_ids", "git_revision", "torch_version", "versions", "average", "model", "tokenizers",
                 "config")  # fmt: skip


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths_in(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a JSON value with another value at a path."""
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def use(path: Path) -> None:
    """Do with a checkpoint what the commands do; each may refuse it, with an InputError."""
    folder = path.with_suffix("")

    def translate() -> None:
        Translator.load([path, path], device="cpu", precision="fp32").translate(["a red house"])

    def describe() -> None:
        description = describe_checkpoint(path)
        as_text(description)
        as_json(description)

    def export() -> None:
        export_folder(path, folder)
        import_checkpoint("safetensors", folder, folder / "back.pt")

    for action in (translate, describe, export, lambda: average_checkpoints([path], folder.with_suffix(".average"))):
        start = time.monotonic()
        with suppress(InputError):
            action()
        assert time.monotonic() - start < 20


@pytest.mark.slow
def test_any_wrong_value_of_the_config_gives_a_message(tmp_path, contents, config):
    pytest.importorskip("safetensors")
    number = 0
    for place, path in enumerate(paths_in(config)):
        for value in VALUES[place % 3 :: 3]:  # a third of the values for each key; every third key has the same ones
            number += 1
            changed = {**contents, "config": json.dumps(replaced(config, path, value))}
            write_checkpoint(tmp_path / f"{number}.pt", changed)
            use(tmp_path / f"{number}.pt")


@pytest.mark.slow
def test_any_wrong_entry_gives_a_message(tmp_path, contents):
    pytest.importorskip("safetensors")
    values = (*VALUES, torch.zeros(3), {"a": torch.zeros(2)}, {"source_embedding.weight": torch.zeros(2)}, [-1], [280])
    for entry in PLAIN_ENTRIES:
        for number, value in enumerate(values):
            write_checkpoint(tmp_path / f"{entry}{number}.pt", {**contents, entry: value})
            use(tmp_path / f"{entry}{number}.pt")
    for key in ("kind", "files", "framing"):
        for number, value in enumerate(values):
            tokenizers = {**contents["tokenizers"], "source": {**contents["tokenizers"]["source"], key: value}}
            write_checkpoint(tmp_path / f"tokenizers-{key}{number}.pt", {**contents, "tokenizers": tokenizers})
            use(tmp_path / f"tokenizers-{key}{number}.pt")


@pytest.mark.parametrize("value", [None, {"a": 1}, [None], [-1], [280], NESTED])
def test_wrong_unused_target_ids_give_a_message(tmp_path, contents, value):
    """Null was a TypeError."""
    write_checkpoint(tmp_path / "wrong.pt", {**contents, "unused_target_ids": value})
    for action in (Translator.load, describe_checkpoint, lambda path: average_checkpoints([path], tmp_path / "a.pt")):
        with pytest.raises(InputError, match=r"wrong\.pt: unused_target_ids (is|holds)"):
            action(tmp_path / "wrong.pt")


@pytest.mark.parametrize("text", [DEEP, f'{{"model": {DEEP}}}', '{"model":' * 400 + "1" + "}" * 400])
def test_deeply_nested_json_is_refused(tmp_path, contents, text):
    """It ended in a RecursionError."""
    write_checkpoint(tmp_path / "deep.pt", {**contents, "config": text})
    for read in (describe_checkpoint, Translator.load):
        with pytest.raises(InputError, match=r"deep\.pt has a malformed config .*nested too deeply"):
            read(tmp_path / "deep.pt")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / JSON_FILE).write_text(text)
    with pytest.raises(InputError, match="nested too deeply"):
        import_checkpoint("safetensors", tmp_path / "exported", tmp_path / "back.pt")
    with pytest.raises(InputError, match="nested too deeply"):
        PretokenizedTokenizer.from_bytes(text.encode())


@pytest.mark.parametrize(
    ("part", "key"),
    [("encoder", "num_layers"), ("decoder", "num_layers"), ("encoder", "hidden_size"), ("decoder", "input_size")],
)
@pytest.mark.parametrize("number", [10**4, 10**6, 10**9, 10**18])
def test_a_model_that_is_far_larger_than_the_weights_is_not_built(tmp_path, contents, config, part, key, number):
    """A million layers kept the process busy for more than 40 seconds."""
    node = {**config["model"], part: {**config["model"][part], key: number}}
    if key == "input_size":
        node["embedding_size"] = number
        node["encoder"] = {**node["encoder"], key: number}
    write_checkpoint(tmp_path / "huge.pt", {**contents, "config": json.dumps({**config, "model": node})})
    start = time.monotonic()
    with pytest.raises(InputError, match=r"huge\.pt"):
        Translator.load(tmp_path / "huge.pt", device="cpu")
    assert time.monotonic() - start < 5


def test_the_message_names_what_the_file_holds(tmp_path, contents, config):
    node = {**config["model"], "encoder": {**config["model"]["encoder"], "num_layers": 1000}}
    write_checkpoint(tmp_path / "huge.pt", {**contents, "config": json.dumps({**config, "model": node})})
    num_values = sum(weight.numel() for weight in contents["model"].values())
    with pytest.raises(InputError, match=rf"asks for more than 10 times the \d+ tensors with {num_values:,} numbers"):
        Translator.load(tmp_path / "huge.pt", device="cpu")


def test_a_tensor_that_claims_more_values_than_the_file_holds_is_refused(tmp_path, contents):
    """Computing its checksum would have needed 4 TB."""
    expanded = torch.zeros(1).expand(10**12)
    torch.save({**contents, "model": {"a": expanded}, "format_version": 2, "checksum": 1}, tmp_path / "expanded.pt")
    with pytest.raises(InputError, match=r"expanded\.pt is damaged or is not a checkpoint"):
        read_checkpoint(tmp_path / "expanded.pt")
