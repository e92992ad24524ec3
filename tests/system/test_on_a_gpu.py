"""benchmarks/on_a_gpu.py runs steps within time limits, keeps their figures, and repeats the steps that are left."""

from __future__ import annotations

import json
import sys
import time

import pytest

from benchmarks import additive_scores, on_a_gpu

# A command that ignores SIGTERM, after it has written its figures.
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "open(sys.argv[1].split('=')[1], 'w').write('[1]'); time.sleep(60)"
)
WRITES = "import sys; open(sys.argv[1].split('=')[1], 'w').write('[2]')"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a folder for the output, in a session whose commands take seconds."""
    monkeypatch.setattr(on_a_gpu.Session, "prepare", lambda session: None)
    monkeypatch.setattr(on_a_gpu, "SAVING_SECONDS", 0.2)
    monkeypatch.setattr(on_a_gpu, "STEP_SECONDS", 8.0)
    return tmp_path / "out"


def record(output) -> dict:
    return json.loads((output / "on_a_gpu.json").read_text(encoding="utf-8"))["steps"]


def test_a_step_that_takes_too_long_is_ended_and_keeps_its_figures(machine, monkeypatch, capsys):
    def stubborn(session: on_a_gpu.Session) -> str:
        return on_a_gpu.measured(session, "search", {"batch_1": ["-c", STUBBORN], "batch_2": ["-c", WRITES]}, "output=")

    monkeypatch.setattr(on_a_gpu, "search", stubborn)
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        on_a_gpu.main([str(machine), "search", "nvidia"])
    assert ended.value.code == 1
    assert time.monotonic() - start < 20
    steps = record(machine)
    assert steps["search"]["state"] == "out of time"
    assert steps["search"]["figures"] == {"batch_1": [1]}
    assert [command["exit_code"] for command in steps["search"]["commands"]] == [-9]
    assert steps["nvidia"]["state"] == "skipped: no --nvidia"
    assert capsys.readouterr().out.endswith("left: search\n")


def test_steps_that_are_left_are_added_to_the_results_of_the_others(machine, monkeypatch, capsys):
    for name, code in (("search", WRITES), ("training", "raise SystemExit(3)")):
        monkeypatch.setattr(
            on_a_gpu,
            name,
            lambda session, name=name, code=code: on_a_gpu.measured(session, name, {"one": ["-c", code]}, "output="),
        )
    with pytest.raises(SystemExit):
        on_a_gpu.main([str(machine), "training", "search"])
    assert list(record(machine)) == ["search", "training"]  # in the order of the steps
    assert capsys.readouterr().out.endswith("left: training\n")
    monkeypatch.setattr(on_a_gpu, "training", lambda session: session.command("training", ["-c", "print('done')"]))
    on_a_gpu.main([str(machine), "training"])
    steps = record(machine)
    assert [steps[name]["state"] for name in ("search", "training")] == ["finished", "finished"]
    assert steps["search"]["figures"] == {"one": [2]}
    assert (machine / "training.log").read_text(encoding="utf-8").endswith("done\n")
    assert capsys.readouterr().out.endswith("left: none\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sleep"], "unknown step sleep: choose from search training nvidia multi30k demo"),
        (["--wheels", "nowhere"], "nowhere is no folder"),
    ],
)
def test_wrong_arguments_are_refused(machine, capsys, arguments, message):
    with pytest.raises(SystemExit):
        on_a_gpu.main([str(machine), *arguments])
    assert message in capsys.readouterr().err


def test_figures_of_a_training_come_from_its_log():
    """A run of 12 seconds up to update 150, two of them for an evaluation, that was stopped and resumed in between."""
    progress = "INFO gnmt.training.trainer: update {}/5800, epoch 0.11: loss 6.1, {} tokens/s, 3.0% padding"
    started = "INFO gnmt.training.train: training: 5,800 updates (13.0 epochs) on cuda in bf16"
    evaluation = "update 100, dev: loss 4.900, perplexity 134.29, BLEU 3.21, chrF 20.01 (best so far)"
    lines = [
        f"12:00:00,000 {started}",
        f"12:00:04,000 {progress.format(50, 91234)}",
        "12:00:04,500 INFO gnmt.training.trainer: stopping after update 70",
        f"12:30:00,000 {started}",
        f"12:30:02,500 {progress.format(100, 95678)}",
        f"12:30:04,500 INFO gnmt.training.trainer: {evaluation}",
        f"12:30:07,500 {progress.format(150, 95000)}",
    ]
    assert on_a_gpu.training_figures("".join(f"2026-01-01 {line}\n" for line in lines)) == {
        "updates": 150,
        "tokens_per_second": [91234, 95678, 95000],
        "evaluations": [{"line": evaluation, "seconds": 2.0, "ended_after": 9.0}],
        "evaluation_share": 0.167,
    }
    assert on_a_gpu.training_figures("")["evaluation_share"] is None


@pytest.mark.slow
def test_the_benchmarks_of_a_step_run_on_a_cpu_with_tiny_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(on_a_gpu, "STEP_SECONDS", 400.0)
    on_a_gpu.main([str(tmp_path), "training", "--quick", "--device", "cpu"])
    training = record(tmp_path)["training"]
    assert training["state"] == "finished"
    assert {figure["system"] for figure in training["figures"]["attention"]["figures"]} == {"chunks"}
    assert {figure["system"] for figure in training["figures"]["tiny"]["figures"]} == {"baseline", "fp32"}
    machine = json.loads((tmp_path / "on_a_gpu.json").read_text(encoding="utf-8"))["machine"]
    assert machine["python"] == sys.version.split()[0]


def test_the_scores_of_attention_are_timed_in_both_ways_where_both_run(tmp_path, capsys):
    additive_scores.main(["2,3,4,8", "1,2,2,4", "--device", "cpu", "--output", str(tmp_path / "scores.json")])
    figures = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["figures"]
    assert [figure["shape"] for figure in figures] == ["2,3,4,8", "1,2,2,4"]
    assert all(figure["milliseconds"] > 0 for figure in figures)


def test_the_figures_of_an_evaluation_are_the_lines_of_its_metrics():
    """evaluate.py prints the metrics in lower case; the script once looked for BLEU, and its results were empty."""
    printed = "bleu   37.93  nrefs:1|case:mixed\nchrf   63.66  nrefs:1\nscores: bleu.json\ntranslations: a.txt\n"
    assert on_a_gpu.evaluation_figures(printed) == ["bleu   37.93  nrefs:1|case:mixed", "chrf   63.66  nrefs:1"]
    assert on_a_gpu.evaluation_figures("chrfpp  62.10  nrefs:1\n") == ["chrfpp  62.10  nrefs:1"]
