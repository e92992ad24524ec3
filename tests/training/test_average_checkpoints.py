"""The mean of several checkpoints is a checkpoint that all commands read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gnmt.checkpoint.average import average_checkpoints
from gnmt.checkpoint.file import read_checkpoint
from gnmt.checkpoint.load import load_model
from gnmt.decoding.translator import Translator
from gnmt.errors import InputError
from gnmt.training.run_checkpoints import choose_checkpoints

SAVED = ("trainer.max_steps=3", "trainer.save_every_steps=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("averaged")


@pytest.fixture
def tied(folder) -> tuple[str, ...]:
    """Overrides for tied weights, for which both sides must have one vocabulary."""
    return ("model.tie_embeddings=all", "tokenizer.joint=true", f"data.preprocessed={folder}/joint")


@pytest.fixture
def trained_run(run, folder, tied) -> Path:
    """The folder of a run with three checkpoints of tied weights."""
    if not (folder / "plain").exists():
        run(folder / "plain", *SAVED, *tied)
    return folder / "plain"


def test_the_average_is_the_mean_of_the_weights(trained_run, tmp_path):
    paths = choose_checkpoints([], str(trained_run), 2)
    assert [path.name for path in paths] == ["step_00000002.pt", "step_00000003.pt"]
    average_checkpoints([paths[1], paths[0]], tmp_path / "average.pt")
    found, second, third = (read_checkpoint(path) for path in (tmp_path / "average.pt", *paths))
    for name, weight in found["model"].items():
        mean = (second["model"][name].double() + third["model"][name].double()) / 2
        assert torch.equal(weight, mean.float())
    assert (found["step"], found["best"], "optimizer" in found) == (3, {}, False)
    assert [Path(entry["file"]).name for entry in found["average_of"]] == ["step_00000003.pt", "step_00000002.pt"]
    assert found["unused_target_ids"] == third["unused_target_ids"]


def test_the_average_translates_and_tied_weights_stay_tied(trained_run, tmp_path):
    average_checkpoints(choose_checkpoints([], str(trained_run), 3), tmp_path / "average.pt")
    translator = Translator.load(tmp_path / "average.pt", device="cpu", precision="fp32")
    assert len(translator.translate(["a red house."])) == 1
    weights = read_checkpoint(tmp_path / "average.pt")["model"]
    assert weights["target_embedding.weight"].data_ptr() == weights["output_layer.weight"].data_ptr()
    assert (tmp_path / "average.pt").stat().st_size < 1.1 * (trained_run / "best.pt").stat().st_size


def test_one_checkpoint_is_its_own_mean_with_its_averaged_weights(run, folder, tied, tmp_path):
    run(folder / "ema", "trainer.max_steps=2", "trainer.ema_decay=0.9", *tied)
    average_checkpoints([folder / "ema" / "last.pt"], tmp_path / "average.pt")
    cpu = torch.device("cpu")
    expected = load_model(folder / "ema" / "last.pt", cpu).model.state_dict()
    found = load_model(tmp_path / "average.pt", cpu).model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    raw = load_model(folder / "ema" / "last.pt", cpu, weights="raw").model.state_dict()
    own = read_checkpoint(folder / "ema" / "last.pt")["model"]
    assert all(torch.equal(weight, own[name]) for name, weight in raw.items())
    assert not all(torch.equal(weight, expected[name]) for name, weight in raw.items())
    with pytest.raises(InputError, match=r"average\.pt has only averaged weights"):
        load_model(tmp_path / "average.pt", cpu, weights="raw")


def test_without_a_moving_average_raw_weights_are_the_usual_weights(trained_run):
    cpu = torch.device("cpu")
    for name in ("best.pt", "last.pt"):
        usual, raw = (load_model(trained_run / name, cpu, weights=which).model for which in ("averaged", "raw"))
        assert all(torch.equal(weight, raw.state_dict()[name]) for name, weight in usual.state_dict().items())


def test_checkpoints_of_different_models_are_refused(run, trained_run, tied, other_corpus, folder, tmp_path):
    run(folder / "wide", *SAVED, *tied, "model.embedding_size=12")
    run(folder / "subwords", *SAVED, *tied, *other_corpus, f"data.preprocessed={folder}/other")
    first, output = trained_run / "best.pt", tmp_path / "average.pt"
    with pytest.raises(InputError, match=r"wide/best\.pt has another model than (.|\n)*model\.embedding_size: 8 → 12"):
        average_checkpoints([first, folder / "wide" / "best.pt"], output)
    with pytest.raises(InputError, match=r"subwords/best\.pt has other tokenizers than .*plain/best\.pt"):
        average_checkpoints([first, folder / "subwords" / "best.pt"], output)
    with pytest.raises(InputError, match=r"nowhere\.pt is not a file"):
        average_checkpoints([first, tmp_path / "nowhere.pt"], output)
    assert list(tmp_path.iterdir()) == []
    before = first.read_bytes()
    with pytest.raises(InputError, match=r"output=.*best\.pt exists already: choose another name"):
        average_checkpoints([first], first)
    assert first.read_bytes() == before


def test_missing_and_contradicting_choices_of_checkpoints_are_refused(trained_run):
    assert choose_checkpoints(["a.pt"], None, 3) == [Path("a.pt")]
    for checkpoints, folder_name in (([], None), (["a.pt"], "runs/x")):
        with pytest.raises(InputError, match=r"give one of them, checkpoints=\[a\.pt,b\.pt\] or run=FOLDER last=N"):
            choose_checkpoints(checkpoints, folder_name, 3)
    with pytest.raises(InputError, match=r"found checkpoints=\[\] and run=null: give one"):
        choose_checkpoints([], None, 3)
    with pytest.raises(InputError, match="run=nowhere: there is no such folder"):
        choose_checkpoints([], "nowhere", 3)
    with pytest.raises(InputError, match=r"last=4: .* holds 3 checkpoints; .*trainer\.keep_checkpoints"):
        choose_checkpoints([], str(trained_run), 4)


def test_the_command(run_command, tiny, tmp_path):
    done = run_command("average_checkpoints", f"run={tiny.folder}", "last=2", "output=average.pt", cwd=tmp_path)
    assert (done.code, done.out) == (0, "average of 2 checkpoints: average.pt\n"), done.err
    translated = run_command("translate", "checkpoint=average.pt", cwd=tmp_path, stdin=b"The old man sees it.\n")
    assert (translated.code, translated.out.count("\n")) == (0, 1), translated.err
    assert run_command("inspect_checkpoint", "checkpoint=average.pt", cwd=tmp_path).code == 0
    refused = run_command("average_checkpoints", "last=0", "output=b.pt", cwd=tmp_path)
    assert refused.code == 2
    assert "last: found 0, allowed is a whole number of at least 1" in refused.err
