"""import_checkpoint.py and export_checkpoint.py, and the other commands with an imported model."""

from __future__ import annotations

import json

import pytest
from oracle_nvidia_gnmt import NvidiaGNMT, checkpoint_of, save


@pytest.fixture(scope="module")
def home(tmp_path_factory, run_command):
    folder = tmp_path_factory.mktemp("interchange")
    save(checkpoint_of(NvidiaGNMT()), folder / "model_best.pth")
    done = run_command(
        "import_checkpoint", "source=nvidia_gnmt", "checkpoint=model_best.pth", "output=a.pt", cwd=folder
    )
    assert done.code == 0, done.err
    num_parameters = sum(parameter.numel() for parameter in NvidiaGNMT().parameters())
    assert done.out == f"{num_parameters:,} parameters from model_best.pth: a.pt\n"
    (folder / "a.split").write_text("the dog bar@@ ks .\n\na c@@ at .\n", encoding="utf-8")
    (folder / "a.de").write_text("the dog barks .\n\na cat .\n", encoding="utf-8")
    return folder


def test_an_imported_model_translates_scores_and_is_evaluated(home, run_command):
    overrides = ["input=a.split", "output=b.de", "alignments=true", "format=jsonl"]
    done = run_command("translate", "checkpoint=a.pt", *overrides, cwd=home)
    assert done.code == 0, done.err
    translations = [json.loads(line) for line in (home / "b.de").read_text(encoding="utf-8").splitlines()]
    assert len(translations) == 3
    done = run_command("score", "checkpoint=a.pt", "input=b.de", "output=scores.jsonl", "precision=fp32", cwd=home)
    assert done.code == 0, done.err
    overrides = ["source=a.split", "target=a.de", "output=figures", "replace_unknown=copy"]
    done = run_command("evaluate", "checkpoint=a.pt", *overrides, cwd=home)
    assert done.code == 0, done.err
    assert "a.split, 3 sentences" in done.out
    done = run_command("inspect_checkpoint", "checkpoint=a.pt", "format=json", cwd=home)
    assert done.code == 0, done.err
    described = json.loads(done.out)["tokenizers"]
    assert (described["source"]["kind"], described["source"]["vocabulary_size"], described["source_bos"]) == (
        "pretokenized",
        13,
        True,
    )


def test_an_imported_model_has_no_test_set_and_initializes_no_training(home, run_command):
    for overrides in ([], ["test_set=dev"], ["data_folder=x"]):
        done = run_command("evaluate", "checkpoint=a.pt", *overrides, cwd=home)
        assert (done.code, done.out) == (2, "")
        assert "an imported checkpoint has no test set" in done.err
    missing = ("data.train.pairs=nowhere.tsv", "data.dev.pairs=nowhere.tsv")
    done = run_command("train", "data=files", *missing, f"initialize_from={home}/a.pt", cwd=home)
    assert done.code == 2
    assert "an imported checkpoint, whose subwords preprocessing cannot produce" in done.err


def test_export_and_import_by_command(tiny, run_command, tmp_path):
    pytest.importorskip("safetensors")
    done = run_command("export_checkpoint", f"checkpoint={tiny.folder}/best.pt", "output=exported", cwd=tmp_path)
    assert done.code == 0, done.err
    done = run_command("import_checkpoint", "source=safetensors", "checkpoint=exported", "output=b.pt", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "b.pt").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=fairseq", "checkpoint=x", "output=y"], 'source: found "fairseq", allowed is one of'),
        (["checkpoint=x", "output=y"], "source: is missing"),
        (["source=nvidia_gnmt", "checkpoint=x.pth", "output=y"], "x.pth is not a file"),
        (["source=safetensors", "checkpoint=x", "output=y"], "checkpoint.json cannot be read"),
    ],
)
def test_wrong_arguments_are_refused(overrides, message, run_command, tmp_path):
    done = run_command("import_checkpoint", *overrides, cwd=tmp_path)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
