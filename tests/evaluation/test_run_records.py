"""Records of finished, unfinished and damaged runs, and scripts/compare.py on them."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest

from gnmt.checkpoint.file import read_checkpoint
from gnmt.evaluation.run_records import find_runs, read_evaluations, read_run

ROW = {"from_words": 1, "to_words": 5, "num_sentences": 7, "bleu": 40.0}
LEFT_OUT_ADVICE = "while the data was preprocessed, or is still there; the same command starts it"
RESULT = {"bleu": 30.0, "chrf": 50.0, "signatures": {}, "by_length": [ROW], "sentences_per_second": 9.0, "step": 7}


def test_the_record_of_a_finished_run(tiny):
    record = read_run(tiny.folder)
    best = read_checkpoint(tiny.folder / "best.pt")
    assert record.problems == ()
    assert record.updates == 4
    assert record.dev == best["best"]
    assert record.parameters == sum({w.data_ptr(): w.numel() for w in best["model"].values()}.values())
    assert record.tokens_per_second > 0
    assert 0 < record.seconds < 600
    assert record.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    assert record.signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6")


def test_a_run_reached_by_several_paths_or_links_is_one(tmp_path, monkeypatch):
    """A run behind a link was not found, and one given by a relative and an absolute path counted as two seeds."""
    run, links = tmp_path / "runs" / "a", tmp_path / "links"
    for folder in (run, links):
        folder.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (links / "b").symlink_to(run)
    (run / "up").symlink_to(tmp_path)  # a circle
    monkeypatch.chdir(tmp_path)
    assert find_runs(["links"]) == [links.relative_to(tmp_path) / "b"]
    assert len(find_runs([".", str(tmp_path), "runs/a"])) == 1


def test_the_command_shows_evaluations_and_names_problems(tiny, tmp_path, run_command):
    home = tiny.copied_to(tmp_path)
    done = run_command("evaluate", f"checkpoint={home.folder}/best.pt", "decoding.beam_size=1", cwd=tmp_path)
    assert done.code == 0, done.err
    [path] = (home.folder / "translations").glob("*.json")
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert sum(row["num_sentences"] for row in figures["by_length"]) == figures["num_sentences"]
    broken = tmp_path / "runs" / "broken"
    shutil.copytree(home.folder, broken, symlinks=True)
    (broken / "best.pt").write_bytes(b"damaged")
    begun = tmp_path / "runs" / "begun"
    begun.mkdir()
    config = json.loads((home.folder / "config.json").read_text(encoding="utf-8")) | {"seed": 5}
    (begun / "config.json").write_text(json.dumps(config), encoding="utf-8")

    done = run_command("compare", "runs=runs", "format=tsv", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    [row] = csv.DictReader([line for line in done.out.splitlines() if not line.startswith("#")], delimiter="\t")
    assert row["seeds"] == "1, 1, 5"
    assert row["dev BLEU"].endswith("(1 of 3)")
    assert re.fullmatch(rf"{figures['test_set']}-[0-9a-f]{{8}}\.best\.beam_size-1\.[0-9a-f]{{8}}", path.stem)
    assert row[f"{figures['test_set']}.beam_size-1 BLEU"].startswith(f"{figures['bleu']:.2f}")
    assert "# runs/broken: checkpoint runs/broken/best.pt was refused" in done.out
    assert "# runs/begun: no best.pt: the dev set was not evaluated yet" in done.out
    assert "# runs/begun: no update is logged" in done.out
    assert f"# {home.folder.relative_to(tmp_path)}:" not in done.out

    done = run_command("compare", f"runs=[{home.folder}]", "by_length=true", "figure=plots/a.png", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "plots" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert " words |" in done.out.splitlines()[0]

    (tmp_path / "file").write_text("")
    done = run_command("compare", f"runs=[{home.folder}]", "by_length=true", "figure=file/a.png", cwd=tmp_path)
    assert done.code == 2
    assert "figure=file/a.png cannot be written (its folder file does not exist)" in done.err


def test_a_run_that_stopped_early_is_named(tiny, tmp_path, run_command):
    """A finished run is resumed with a higher limit, and its later events are lost."""
    home = tiny.copied_to(tmp_path)
    overrides = [override for override in home.overrides if not override.startswith("trainer.max_steps")]
    done = run_command("train", *overrides, "trainer.max_steps=6", cwd=tmp_path)
    assert done.code == 0, done.err
    assert read_run(home.folder).updates == 6
    assert read_run(home.folder).problems == ()
    for events in sorted(home.folder.glob("events*"))[1:]:
        events.unlink()
    events = sorted(home.folder.glob("events*"))[0]
    events.write_bytes(events.read_bytes()[: events.stat().st_size // 2])
    [problem] = read_run(home.folder).problems
    assert problem.startswith("not finished: stopped or still running after update")


def test_a_run_that_was_killed_before_its_first_update_is_named(tiny, tmp_path, run_command):
    """Once, it was not mentioned, or the message was that there is no config.json."""
    home = tiny.copied_to(tmp_path)
    (tmp_path / "runs" / "killed").mkdir()
    (tmp_path / "runs" / "killed" / "train.log").write_text("preprocessing into x\n", encoding="utf-8")
    (tmp_path / "train.log").write_text("output of nohup\n", encoding="utf-8")
    named = "runs/killed has no config.json, only train.log: the run was stopped before its first update"
    done = run_command("compare", "runs=.", "format=tsv", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[2].startswith(f"{home.folder.name}\t")
    assert [line for line in done.out.splitlines() if "left out" in line] == [
        f"# left out: {named}, " + LEFT_OUT_ADVICE
    ]
    done = run_command("compare", "runs=runs/killed", cwd=tmp_path)
    assert done.code == 2
    assert named in done.err


def test_a_run_without_a_readable_config_is_left_out_with_a_note(tiny, tmp_path, run_command):
    home = tiny.copied_to(tmp_path)
    for name, text in (("damaged", "{"), ("deep", "[" * 100_000)):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.json").write_text(text, encoding="utf-8")
    done = run_command("compare", "runs=runs", "format=tsv", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[2].startswith(f"{home.folder.name}\t")
    assert "# left out: runs/damaged/config.json cannot be read" in done.out
    assert "# left out: runs/deep/config.json cannot be read: it is nested too deep" in done.out


def test_scores_of_an_earlier_best_checkpoint_are_left_out(tiny, tmp_path):
    """After training had been resumed, the table showed old test scores beside new dev scores."""
    home = tiny.copied_to(tmp_path)
    folder = home.folder / "translations"
    folder.mkdir(exist_ok=True)
    now = read_checkpoint(home.folder / "best.pt")["step"]
    steps = {
        "old.best.1a": now - 1,
        "old.best.beam_size-1.1a": now - 1,
        "a.best.1a": now - 1,
        "a.best.2b": now,
        "b.last.2b": now - 1,
        "b.last.1a": now - 2,
    }
    for name, step in steps.items():
        (folder / f"{name}.json").write_text(json.dumps(RESULT | {"step": step, "bleu": step}), encoding="utf-8")
    record = read_run(home.folder)
    assert {name: evaluated.scores["bleu"] for name, evaluated in record.evaluations.items()} == {
        "a.best": now,
        "b.last": now - 1,  # the largest step counts
    }
    assert [problem.partition(" is left out: ")[0] for problem in record.problems] == [
        str(folder / f"{name}.json") for name in ("a.best.1a", "old.best.1a", "old.best.beam_size-1.1a")
    ]
    assert f"scores of the best.pt of update {now - 1}, but best.pt is now of update {now}" in record.problems[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by_length": [[1, 5, 7, 40.0]]}, r"by_length\[0\] is .* allowed is an object"),
        ({"by_length": [ROW, {"from_words": 1}]}, "it lacks to_words"),
        ({"by_length": [ROW | {"from_words": "1"}]}, r"by_length\[0\]\.from_words is '1', allowed is a whole number"),
        ({"by_length": [ROW | {"bleu": None}]}, r"by_length\[0\]\.bleu is None, allowed is a finite number"),
        ({"by_length": 5}, "by_length is '5', allowed is a list"),
        ({"signatures": {"bleu": 1}}, "signatures.bleu is '1', allowed is text"),
        ({"bleu": "30"}, "bleu is '30', allowed is a finite number"),
        ({"sentences_per_second": None}, "sentences_per_second is None"),
        ({"step": "7"}, "step is '7', allowed is a whole number"),
    ],
)
def test_damaged_results_are_named_and_left_out(change, message, tmp_path):
    """Rows of another shape ended compare.py with a traceback."""
    problems: list[str] = []
    path = tmp_path / "x.best.1a.json"
    path.write_text(json.dumps(RESULT), encoding="utf-8")
    assert read_evaluations(tmp_path, None, problems)["x.best"].by_length == [ROW]
    path.write_text(json.dumps(RESULT | change), encoding="utf-8")
    assert read_evaluations(tmp_path, None, problems) == {}
    assert re.search(rf"x\.best\.1a\.json is no result of evaluate.py .*{message}", problems[0])


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_a_file_that_is_no_evaluation_is_named(text, tmp_path):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    problems: list[str] = []
    assert read_evaluations(tmp_path, None, problems) == {}
    assert "x.json is no result of evaluate.py" in problems[0]


@pytest.mark.parametrize("overrides", [["figure=a.png"], ["figure=a.txt", "by_length=true"]])
def test_a_figure_needs_by_length_and_a_known_format(overrides, run_command, tmp_path):
    done = run_command("compare", "runs=x", *overrides, cwd=tmp_path)
    assert done.code == 2
    assert "needs by_length=true and a name that ends in .png" in done.err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no run"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), "config.json cannot be read"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("[]")), "must hold an object"),
    ],
)
def test_wrong_input(make, message, run_command, tmp_path):
    make(tmp_path / "x")
    done = run_command("compare", "runs=x", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    for name in ("sweep/b", "sweep/a", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    found = find_runs([str(tmp_path / "c"), str(tmp_path / "sweep"), str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["c", "sweep/a", "sweep/b"]
