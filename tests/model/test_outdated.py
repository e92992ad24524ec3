"""Checkpoints of models whose settings are refused now load all the same, and are the models that they were."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_gnmt import SOURCE, TARGET, padded

from gnmt.checkpoint.file import read_checkpoint, write_checkpoint
from gnmt.checkpoint.load import load_model
from gnmt.config.build import build
from gnmt.model import seq2seq
from gnmt.model.outdated import without_idle_parts
from gnmt.model.recurrent import encoder as lstm

ENCODER = {
    "_target_": "gnmt.model.recurrent.encoder.LSTMEncoder",
    **{"input_size": 6, "hidden_size": 6, "num_layers": 2, "num_bidirectional_layers": 0, "residual_from": None},
    **{"final_states": True},
}
PLAIN = {
    "_target_": "gnmt.model.recurrent.plain_decoder.PlainDecoder",
    **{"input_size": 6, "hidden_size": 6, "num_layers": 2},
}


@pytest.mark.parametrize(
    "encoder",
    [
        {"projection_size": 5},
        {"embedding_shortcut": True},
        {"num_layers": 3},
        {"num_layers": 4, "projection_size": 3, "residual_from": 3},
    ],
)
def test_what_a_decoder_without_attention_never_saw_goes(encoder, monkeypatch):
    node = {
        "_target_": "gnmt.model.seq2seq.Seq2Seq",
        "embedding_size": 6,
        "encoder": ENCODER | encoder,
        "decoder": PLAIN,
    }
    sizes = {"source_vocabulary_size": 9, "target_vocabulary_size": 11}
    for check in ("check_bridge", "check_states_are_read"):
        monkeypatch.setattr(seq2seq, check, lambda *_: None)
    before = build(node, **sizes)
    monkeypatch.undo()
    contents = {"model": before.state_dict(), "average": dict(before.named_parameters())}
    newer, contents = without_idle_parts(node, contents)
    after = build(newer, **sizes)
    after.load_state_dict(contents["model"])
    assert contents["average"].keys() == dict(after.named_parameters()).keys()
    for one, other in zip(
        *(model.decode(padded(TARGET), model.encode(padded(SOURCE)))[0] for model in (before, after)), strict=True
    ):
        assert torch.equal(one, other)


def test_a_residual_connection_that_was_left_out_stays_out(tiny, tmp_path):
    contents = read_checkpoint(tiny.folder / "best.pt")
    config = json.loads(contents["config"])
    config["model"]["encoder"]["residual_from"] = 2
    write_checkpoint(tmp_path / "old.pt", contents | {"config": json.dumps(config)})
    loaded = load_model(tmp_path / "old.pt", torch.device("cpu"))
    assert loaded.model.encoder.residual_from is None
    assert loaded.config["model"]["encoder"]["residual_from"] == 2


@pytest.mark.parametrize(("layers", "asked", "had"), [(4, 2, 3), (4, 3, 3), (2, 3, 3), (2, 2, None), (4, None, None)])
def test_residual_connections_begin_where_they_did(layers, asked, had):
    encoder = ENCODER | {"num_layers": layers, "num_bidirectional_layers": 1, "residual_from": asked}
    newer, _ = without_idle_parts({"encoder": encoder, "decoder": {"_target_": "mylab.Decoder"}}, {"model": {}})
    assert newer["encoder"]["residual_from"] == had
    lstm.check_residual(lstm.layer_widths(6, 6, layers, 1), had)


@pytest.mark.parametrize(
    "node", [None, [], {"encoder": 1}, {"encoder": {"_target_": ENCODER["_target_"]}, "decoder": {}}]
)
def test_what_is_no_model_is_left_to_the_check(node):
    assert without_idle_parts(node, {"model": 1}) == (node, {"model": 1})
