"""Refused runs: a run folder that is in use, and wrong settings, which leave no folder behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gnmt.checkpoint.file import REQUIRED_ENTRIES, read_checkpoint, write_checkpoint
from gnmt.config.run_folder import locked_run_folder
from gnmt.errors import InputError
from gnmt.training.train import TRAINING_ENTRIES

CHILD = """
import os, pathlib, signal, sys
from gnmt.config.run_folder import locked_run_folder
with locked_run_folder(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "dies" else sys.stdin.read()
"""


def test_a_second_training_in_a_folder_is_refused(run, tmp_path):
    """Once, both wrote checkpoints, and their logs and curves were mixed."""
    folder = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, folder, "stays"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        before = {path.name for path in folder.iterdir()}
        with pytest.raises(InputError, match=r"run: another process trains in it: .*name="):
            run(folder, "trainer.max_steps=1")
        assert {path.name for path in folder.iterdir()} == before
        run(tmp_path / "another", "trainer.max_steps=1")
        child.communicate()
    run(folder, "trainer.max_steps=1")
    assert not (folder / ".lock").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    folder = tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", CHILD, folder, "dies"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert (folder / ".lock").exists()
    with locked_run_folder(folder):
        pass
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train.source=nowhere.en", r"nowhere\.en: no such file"),
        ("model.decoder.num_layers=1", r"use model\.decoder\.context_to_output=added or model\.decoder\.num_layers=2"),
        ("model.encoder.num_bidirectional_layers=9", r"model\.encoder\.num_bidirectional_layers=9 is more than"),
        ("trainer.batch_tokens=8", r"trainer\.batch_tokens=8 is too small"),
    ],
)
def test_a_refused_run_leaves_no_folder(run, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "runs" / "new", override)
    assert os.listdir(tmp_path) == []


def test_a_model_that_cannot_be_built_is_refused_before_the_data_is_preprocessed(run, tmp_path):
    with pytest.raises(InputError, match=r"model\.encoder\.layer_norm=true needs model\.encoder\.cell=lstm"):
        run(
            tmp_path / "new",
            "model.encoder.layer_norm=true",
            "model.encoder.cell=gru",
            f"data.preprocessed={tmp_path}/p",
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("tokenizer.joint=false", "model.tie_embeddings=all"),
            r"^model\.tie_embeddings=all shares one embedding table .* subwords differ: use tokenizer\.joint=true",
        ),
        (
            ("model=seq2seq", "decoding.coverage_beta=0.1"),
            r"^decoding\.coverage_beta is 0\.1, but this model has no attention",
        ),
        (
            (
                "optimizer._target_=torch.optim.NAdam",
                "~optimizer.amsgrad",
                "~optimizer.fused",
                "optimizer.weight_decay=-1",
            ),
            r"^optimizer: Invalid weight_decay value: -1",
        ),
        (("initialize_from=nowhere.pt",), r"^initialize_from: checkpoint nowhere\.pt is not a file"),
    ],
)
def test_contradicting_settings_are_refused_before_the_data_is_preprocessed(run, tmp_path, overrides, message):
    """Once, they were refused after preprocessing, which may take hours."""
    with pytest.raises(InputError, match=message):
        run(tmp_path / "new", *overrides, f"data.preprocessed={tmp_path}/p")
    assert os.listdir(tmp_path) == []


def test_a_refused_run_leaves_existing_files_in_its_folder(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "runs").mkdir()
    for folder in (tmp_path / "run", tmp_path / "runs" / "new"):
        with pytest.raises(InputError, match="no such file"):
            run(folder, "data.train.source=nowhere.en")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"the run's folder .*cannot be made \(Not a directory\)"),
        locked_run_folder(Path(tmp_path / "file" / "run")),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"x\.\.\. cannot be made \(File name too long\); see runs= and name="),
        locked_run_folder(tmp_path / ("x" * 300)),
    ):
        pass


def test_a_missing_extra_for_bleu_is_told_before_the_data_is_preprocessed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    monkeypatch.setattr("gnmt.training.train.preprocess", None)
    with pytest.raises(InputError, match=r"data\.bleu_tokenize: 'ja-mecab', .* Japanese text, needs .*\[japanese\]"):
        run(tmp_path / "run", "data.target_language=ja")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("config", "[" * 100_000),
        ("config", None),
        ("step", -1),
        ("best", "text"),
        ("optimizer", ...),  # missing, as in a copy of best.pt
        ("best_metric", "text"),
        ("evaluations", [(1, {})]),
        ("loader_state", None),
    ],
)
def test_a_full_checkpoint_with_a_wrong_entry_falls_back_to_the_one_before(run, tmp_path, caplog, entry, value) -> None:
    """Each ended in a traceback, although an intact checkpoint was there."""
    every_update = ("trainer.save_every_steps=1", "trainer.evaluate_every_steps=1")
    run(tmp_path, *every_update, "trainer.max_steps=2")
    path = tmp_path / "checkpoints" / "step_00000002.pt"
    contents = {**read_checkpoint(path), entry: value}
    write_checkpoint(path, {key: item for key, item in contents.items() if item is not ...})
    result = run(tmp_path, *every_update, "trainer.max_steps=3")
    assert result.steps == 3
    assert "step_00000002.pt" in caplog.text
    assert "falling back to the previous checkpoint" in caplog.text


@pytest.mark.parametrize("entry", ["optimizer", "metrics", "rng", "model", "skipped_in_a_row"])
def test_a_state_that_does_not_fit_the_run_gives_a_message(run, tmp_path, entry) -> None:
    """Each ended in a traceback from inside."""
    run(tmp_path, "trainer.max_steps=1")
    path = tmp_path / "checkpoints" / "step_00000001.pt"
    write_checkpoint(path, {**read_checkpoint(path), entry: {}})
    message = "the checkpoint of update 1 does not fit this run .*: move it away, and the same command resumes"
    with pytest.raises(InputError, match=message):
        run(tmp_path, "trainer.max_steps=2")


def test_a_malformed_best_is_written_again(run, tmp_path, caplog) -> None:
    run(tmp_path, "trainer.max_steps=1")
    best = tmp_path / "best.pt"
    write_checkpoint(best, {**read_checkpoint(best), "best": "text"})
    run(tmp_path, "trainer.max_steps=2")
    assert (
        'best.pt: best is "text", allowed is an object of numbers; the next evaluation writes it again' in caplog.text
    )
    assert isinstance(read_checkpoint(best)["best"], dict)


def test_training_entries_and_required_entries_are_those_that_training_writes(run, tmp_path) -> None:
    run(tmp_path, "trainer.max_steps=1")
    contents = read_checkpoint(tmp_path / "last.pt")
    assert contents.keys() - {"format_version", "checksum"} == {*REQUIRED_ENTRIES, *TRAINING_ENTRIES}
