"""The names of an evaluation's files: its own again, and never another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gnmt.errors import InputError
from gnmt.evaluation.evaluate import described, distinct_names, folder_for


def make_run(folder: Path) -> Path:
    """A run's folder as far as these names need it; its best checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "best.pt").touch()
    return folder / "best.pt"


def evaluated(checkpoint, folder, test_set="test", *, files=None, identity="a", variant="", runs_own=False) -> str:
    """Names and writes the figures of an evaluation; the name of its file."""
    subject = described(files, None if files else identity, [checkpoint])
    names = distinct_names(test_set, checkpoint.stem, variant, subject, folder, is_runs_own=runs_own)
    folder.mkdir(exist_ok=True)
    path = folder / f"{'.'.join(names)}{variant}.json"
    path.write_text(json.dumps({"test_set": names[0], **subject}))
    return path.name


def test_two_runs_evaluated_into_one_folder_keep_their_figures(tmp_path):
    """Both wrote test.best.json."""
    one, other = (make_run(tmp_path / name) for name in ("one", "other"))
    out = tmp_path / "out"
    first, second = evaluated(one, out), evaluated(other, out)
    assert first == "test.best.json"
    assert second.startswith("test.best-")
    assert [evaluated(one, out), evaluated(other, out)] == [first, second], "again, the names stay"
    assert evaluated(one, out, variant=".beam_size-1") == "test.best.beam_size-1.json"
    assert len(list(out.iterdir())) == 3
    figures = json.loads((out / second).read_text())
    assert figures["checkpoint_files"] == [str(other.resolve())]
    assert figures["data_fingerprint"] == "a"


def test_runs_on_other_data_have_other_test_sets(tmp_path):
    one, other = (make_run(tmp_path / name) for name in ("one", "other"))
    first, second = evaluated(one, tmp_path / "out"), evaluated(other, tmp_path / "out", identity="b")
    assert (first, second.startswith("test-"), second.endswith(".best.json")) == ("test.best.json", True, True)
    assert evaluated(other, tmp_path / "out", identity="b") == second


@pytest.mark.parametrize("files_first", [True, False])
def test_a_file_called_like_a_test_set_is_not_it(tmp_path, files_first):
    """source=x/test wrote test.best.json over the data's own test, and the other way round."""
    best = make_run(tmp_path / "run")
    folder, files = best.parent / "translations", (str(tmp_path / "test"), str(tmp_path / "test.de"))
    names = {}
    for of_files in (files_first, not files_first, files_first):
        name = evaluated(best, folder, files=files if of_files else None, runs_own=True)
        assert names.setdefault(of_files, name) == name
    assert names[False] == "test.best.json"
    assert names[True].startswith("test-")
    assert len(list(folder.iterdir())) == 2


def test_in_a_runs_own_folder_names_stay_as_they_are(tmp_path):
    """Also where last.pt points to another one by now, the run has moved, or the figures are from before."""
    best = make_run(tmp_path / "run")
    folder = best.parent / "translations"
    for step in (1, 2):
        last = best.parent / "last.pt"
        last.unlink(missing_ok=True)
        last.symlink_to(f"step_{step}.pt")
        assert evaluated(last, folder, runs_own=True) == "test.last.json"
    assert evaluated(best, folder, runs_own=True) == "test.best.json"
    (folder / "test.best.json").write_text(json.dumps({"test_set": "test", "checkpoint": "elsewhere/best.pt"}))
    assert evaluated(best, folder, runs_own=True) == "test.best.json"


@pytest.mark.parametrize("runs_own", [True, False])
def test_what_cannot_be_read_is_not_overwritten(tmp_path, runs_own):
    best = make_run(tmp_path / "run")
    folder = tmp_path / "out"
    folder.mkdir()
    for damaged in (b'{"test_set": "te', b"[1]", b"\xff"):
        (folder / "test.best.json").write_bytes(damaged)
        name = evaluated(best, folder, runs_own=runs_own)
        assert name.startswith("test.best-")
        assert evaluated(best, folder, runs_own=runs_own) == name
        assert (folder / "test.best.json").read_bytes() == damaged


def test_where_figures_go(tmp_path):
    best = make_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    whole, alone = tmp_path / "run" / "checkpoints" / "step_1.pt", tmp_path / "average.pt"
    assert folder_for([best], None) == folder_for([whole], None) == tmp_path / "run" / "translations"
    assert folder_for([alone], None) == tmp_path / "average.translations"
    assert folder_for([best, alone], tmp_path / "x") == tmp_path / "x"
    with pytest.raises(InputError, match="output=FOLDER"):
        folder_for([best, alone], None)
