"""The model of a checkpoint: its config is validated before anything is built, and its weights must fit."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from gnmt.checkpoint.file import write_checkpoint
from gnmt.checkpoint.load import build_model, load_model
from gnmt.errors import InputError
from gnmt.model.seq2seq import Seq2Seq

CPU = torch.device("cpu")


def rewritten(path: Path, contents: dict[str, Any], **changes: Any) -> Path:
    """Write the checkpoint with other entries and a valid checksum, as an attacker would."""
    write_checkpoint(path, {**contents, **changes})
    return path


def test_a_model_that_does_not_fit_into_memory_is_refused(model_config, tokenizers):
    """A new run has no weights that bound the sizes of its config; this one has a matrix of 16 TB."""
    node = {**model_config, "encoder": {**model_config["encoder"], "hidden_size": 1_000_000}}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 42, hard))  # also where the kernel grants any amount of memory
    try:
        with pytest.raises(InputError, match=r"^the config: a model of this size does not fit into memory: "):
            build_model(node, tokenizers, (), "the config")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
def test_a_config_that_names_other_code_is_refused(tmp_path, contents, config, target, message):
    """Reporter is a class of gnmt, but would make a folder."""
    victim = tmp_path / "victim"
    for node in ({"_target_": target, "folder": str(victim)}, {"_target_": target}):
        path = rewritten(tmp_path / "evil.pt", contents, config=json.dumps({**config, "model": node}))
        with pytest.raises(
            InputError, match=r"evil\.pt: the model's config was refused, and nothing was built"
        ) as caught:
            load_model(path, CPU)
        assert f"model._target_: found {target}" in str(caught.value)
        assert message in str(caught.value)
    assert not victim.exists()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_other_code_inside_the_model_is_refused(tmp_path, contents, config, model_config, part):
    victim = tmp_path / "victim"
    node = {**model_config, part: {"_target_": "gnmt.reporting.tensorboard.Reporter", "folder": str(victim)}}
    path = rewritten(tmp_path / "evil.pt", contents, config=json.dumps({**config, "model": node}))
    with pytest.raises(InputError, match=rf"model\.{part}\._target_: found gnmt\.reporting"):
        load_model(path, CPU)
    assert not victim.exists()


def test_the_model_has_the_weights_and_the_tokenizers_of_the_checkpoint(written, contents, tokenizers):
    loaded = load_model(written, CPU)
    assert isinstance(loaded.model, Seq2Seq)
    assert not loaded.model.training
    assert all(torch.equal(weight, contents["model"][name]) for name, weight in loaded.model.state_dict().items())
    assert loaded.model.output_layer.weight is loaded.model.source_embedding.weight
    assert loaded.tokenizers.digest == tokenizers.digest
    assert loaded.config["name"] == "Größe"
    assert loaded.contents["step"] == 3


@pytest.mark.parametrize("entry", ["config", "tokenizers", "model", "precision", "preprocessed_folder"])
def test_a_missing_entry_is_named(tmp_path, contents, entry):
    path = tmp_path / "part.pt"
    write_checkpoint(path, {key: value for key, value in contents.items() if key != entry})
    with pytest.raises(InputError, match=rf"part\.pt lacks required entries: {entry}"):
        load_model(path, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "not JSON"}, "has a malformed config or tokenizer entry: Expecting value"),
        ({"config": "[1]"}, r"config is \[1\], allowed is an object"),
        ({"config": json.dumps({"model": "gnmt"})}, 'config.model is "gnmt", allowed is an object'),
        ({"tokenizers": {"source": 3}}, "tokenizers.source must hold kind, files and framing"),
        ({"model": {}}, "its weights do not fit the model: .* too large for the 0 tensors"),
        ({"model": 5}, "model is 5, allowed is an object of tensors"),
    ],
)
def test_malformed_entries_are_refused(tmp_path, contents, changes, message):
    path = rewritten(tmp_path / "malformed.pt", contents, **changes)
    with pytest.raises(InputError, match=re.compile(rf"malformed\.pt.*{message}", re.DOTALL)):
        load_model(path, CPU)


def test_weights_of_another_shape_are_refused(tmp_path, contents, config, model_config):
    wider = {**model_config, "encoder": {**model_config["encoder"], "num_layers": 3}}
    path = rewritten(tmp_path / "wide.pt", contents, config=json.dumps({**config, "model": wider}))
    with pytest.raises(
        InputError,
        match=r"wide\.pt: its weights do not fit the model: the checkpoint lacks encoder\.layers\.2\S+ \(and \d+ mo",
    ):
        load_model(path, CPU)
