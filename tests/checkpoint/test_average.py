"""The mean of several checkpoints is a checkpoint that all commands read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gnmt.checkpoint.average import average_checkpoints
from gnmt.checkpoint.file import read_checkpoint, write_checkpoint
from gnmt.checkpoint.load import build_model, load_model
from gnmt.data.tokenizer import TokenizerOptions, train_tokenizers
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError


@pytest.fixture(scope="session")
def two_checkpoints(tiny) -> list[Path]:
    """The full checkpoints of a run whose weights are tied, the older one first."""
    paths = sorted((tiny.folder / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step_00000002.pt", "step_00000004.pt"]
    return paths


def test_the_average_is_the_mean_of_the_weights(two_checkpoints, tmp_path):
    average_checkpoints([two_checkpoints[1], two_checkpoints[0]], tmp_path / "average.pt")
    found, older, newer = (read_checkpoint(path) for path in (tmp_path / "average.pt", *two_checkpoints))
    for name, weight in found["model"].items():
        mean = (older["model"][name].double() + newer["model"][name].double()) / 2
        assert torch.equal(weight, mean.float())
    assert (found["step"], found["best"], "optimizer" in found) == (4, {}, False)
    assert [Path(entry["file"]).name for entry in found["average_of"]] == ["step_00000004.pt", "step_00000002.pt"]
    assert found["unused_target_ids"] == newer["unused_target_ids"]


def test_the_average_translates_and_tied_weights_stay_tied(tiny, two_checkpoints, tmp_path):
    average_checkpoints(two_checkpoints, tmp_path / "average.pt")
    translator = Translator.load(tmp_path / "average.pt", device="cpu", precision="fp32")
    assert len(translator.translate(["a red house."])) == 1
    weights = read_checkpoint(tmp_path / "average.pt")["model"]
    assert weights["target_embedding.weight"].data_ptr() == weights["output_layer.weight"].data_ptr()
    assert (tmp_path / "average.pt").stat().st_size < 1.1 * (tiny.folder / "best.pt").stat().st_size


def test_one_checkpoint_is_its_own_mean_with_its_averaged_weights(contents, config, model_config, tokenizers, tmp_path):
    model = build_model(model_config, tokenizers, (), "the test")
    model.load_state_dict(contents["model"])
    contents["average"] = {name: 0.9 * weight.detach() for name, weight in model.named_parameters()}
    contents["config"] = json.dumps({**config, "trainer": {**config["trainer"], "ema_decay": 0.9}})
    write_checkpoint(tmp_path / "last.pt", contents)
    average_checkpoints([tmp_path / "last.pt"], tmp_path / "average.pt")
    cpu = torch.device("cpu")
    expected = load_model(tmp_path / "last.pt", cpu).model.state_dict()
    found = load_model(tmp_path / "average.pt", cpu).model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    raw = load_model(tmp_path / "last.pt", cpu, weights="raw").model.state_dict()
    own = read_checkpoint(tmp_path / "last.pt")["model"]
    assert all(torch.equal(weight, own[name]) for name, weight in raw.items())
    assert not all(torch.equal(weight, expected[name]) for name, weight in raw.items())
    with pytest.raises(InputError, match=r"average\.pt has only averaged weights"):
        load_model(tmp_path / "average.pt", cpu, weights="raw")


def test_the_bound_of_clipped_activations_is_that_of_the_newest_checkpoint(contents, tmp_path):
    """Once, it was the mean of the bounds, which fits no checkpoint."""
    paths = []
    for step, delta in ((100, 8.0), (300, 1.0), (200, 4.0)):
        weights = {**contents["model"], "clip.delta": torch.tensor(delta)}
        paths.append(tmp_path / f"{step}.pt")
        write_checkpoint(paths[-1], {**contents, "model": weights, "step": step})
    average_checkpoints(paths, tmp_path / "average.pt")
    assert float(read_checkpoint(tmp_path / "average.pt")["model"]["clip.delta"]) == 1.0


def test_without_a_moving_average_raw_weights_are_the_usual_weights(tiny):
    cpu = torch.device("cpu")
    for name in ("best.pt", "last.pt"):
        usual, raw = (load_model(tiny.folder / name, cpu, weights=which).model for which in ("averaged", "raw"))
        assert all(torch.equal(weight, raw.state_dict()[name]) for name, weight in usual.state_dict().items())


def test_checkpoints_of_different_models_are_refused(contents, written, config, model_config, tmp_path):
    wide, subwords, output = tmp_path / "wide.pt", tmp_path / "subwords.pt", tmp_path / "average.pt"
    write_checkpoint(
        wide, {**contents, "config": json.dumps({**config, "model": {**model_config, "embedding_size": 6}})}
    )
    other_tokenizers = train_tokenizers(["no end"], ["no end"], TokenizerOptions(vocab_size=270))
    write_checkpoint(subwords, {**contents, "tokenizers": other_tokenizers.to_checkpoint()})
    files = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"wide\.pt has another model than (.|\n)*model\.embedding_size: 4 → 6"):
        average_checkpoints([written, wide], output)
    with pytest.raises(InputError, match=r"subwords\.pt has other tokenizers than .*best\.pt"):
        average_checkpoints([written, subwords], output)
    with pytest.raises(InputError, match=r"nowhere\.pt is not a file"):
        average_checkpoints([written, tmp_path / "nowhere.pt"], output)
    assert sorted(tmp_path.iterdir()) == files
    before = written.read_bytes()
    with pytest.raises(InputError, match=r"output=.*best\.pt exists already: choose another name"):
        average_checkpoints([written], written)
    assert written.read_bytes() == before


def test_the_command(run_command, tiny, tmp_path):
    done = run_command("average_checkpoints", f"run={tiny.folder}", "last=2", "output=average.pt", cwd=tmp_path)
    assert (done.code, done.out) == (0, "average of 2 checkpoints: average.pt\n"), done.err
    translated = run_command("translate", "checkpoint=average.pt", cwd=tmp_path, stdin=b"The old man sees it.\n")
    assert (translated.code, translated.out.count("\n")) == (0, 1), translated.err
    assert run_command("inspect_checkpoint", "checkpoint=average.pt", cwd=tmp_path).code == 0
    refused = run_command("average_checkpoints", "last=0", "output=b.pt", cwd=tmp_path)
    assert refused.code == 2
    assert "last: found 0, allowed is a whole number of at least 1" in refused.err


def checkpoint_of(path: Path, contents: dict, fingerprint: str = "x", **settings: object) -> Path:
    config = {**json.loads(contents["config"]), "seed": 1, "initialize_from": None, **settings}
    write_checkpoint(path, {**contents, "config": json.dumps(config), "data_fingerprint": fingerprint})
    return path


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({}, {"trainer": {"evaluation_batch_size": 8, "max_steps": 10}}, None),
        ({}, {"seed": 2}, "other seed"),
        ({}, {"loss": {"smoothing": 0.0}}, "other loss.smoothing"),
        ({}, {"fingerprint": "y"}, "other data"),
        ({"initialize_from": "a.pt"}, {"initialize_from": "a.pt", "seed": 2}, None),
        ({"initialize_from": "a.pt"}, {"initialize_from": "b.pt"}, "other initialize_from"),
    ],
)
def test_checkpoints_of_different_runs_are_averaged_with_a_warning(contents, tmp_path, caplog, first, second, named):
    """The mean of two seeds had a BLEU of 0.5, the checkpoints of 1.9 and 1.8."""
    paths = [checkpoint_of(tmp_path / "a.pt", contents, **first), checkpoint_of(tmp_path / "b.pt", contents, **second)]
    average_checkpoints(paths, tmp_path / "average.pt")
    if named is None:
        assert "another run" not in caplog.text
    else:
        assert f"b.pt is of another run ({named}): weights that were trained apart" in caplog.text
