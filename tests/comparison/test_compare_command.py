"""scripts/compare.py on the folders of real runs: whole, unfinished and damaged ones."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from gnmt.checkpoint import read_checkpoint
from gnmt.comparison.records import find_runs, read_run


def test_a_finished_run(tiny):
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


def test_the_command_gathers_evaluations_and_names_what_is_wrong(tiny, tmp_path, run_command):
    home = tiny.copied_to(tmp_path)
    done = run_command("evaluate", f"checkpoint={home.folder}/best.pt", "decoding.beam_size=1", cwd=tmp_path)
    assert done.code == 0, done.err
    figures = json.loads(next((home.folder / "translations").glob("*.json")).read_text(encoding="utf-8"))
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
    assert row["seeds"] == "5, 1, 1"
    assert row["dev BLEU"].endswith("(1 of 3)")
    assert row[f"{figures['test_set']}.best.beam_size-1 BLEU"].startswith(f"{figures['bleu']:.2f}")
    assert "# runs/broken: checkpoint runs/broken/best.pt was refused" in done.out
    assert "# runs/begun: no best.pt: nothing was evaluated yet" in done.out
    assert "# runs/begun: no update is logged" in done.out
    assert f"# {home.folder.relative_to(tmp_path)}:" not in done.out

    done = run_command("compare", f"runs=[{home.folder}]", "by_length=true", "figure=plots/a.png", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "plots" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert " words |" in done.out.splitlines()[0]


def test_a_run_that_stopped_early_is_named(tiny, tmp_path, run_command):
    """It was finished once, and is under way again with a later limit."""
    home = tiny.copied_to(tmp_path)
    overrides = [override for override in home.overrides if not override.startswith("trainer.max_steps")]
    done = run_command("train", *overrides, "trainer.max_steps=6", cwd=tmp_path)
    assert done.code == 0, done.err
    assert read_run(home.folder).updates == 6
    assert read_run(home.folder).problems == ()
    for events in sorted(home.folder.glob("events*"))[1:]:
        events.unlink()
    whole = sorted(home.folder.glob("events*"))[0]
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    [problem] = read_run(home.folder).problems
    assert problem.startswith("not finished: stopped or still going after update")


@pytest.mark.parametrize("overrides", [["figure=a.png"], ["figure=a.txt", "by_length=true"]])
def test_a_figure_needs_what_it_shows_and_a_known_format(overrides, run_command, tmp_path):
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
