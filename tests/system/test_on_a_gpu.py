"""benchmarks/on_a_gpu.py runs steps within time limits, keeps their figures, and runs what is left in a later call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import additive_scores, nvidia, on_a_gpu
from benchmarks.tasks import check_lists
from gnmt.config.cli import run_command

ROOT = Path(__file__).parents[2]
# A command that ignores SIGTERM, after it has written its figures.
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "open(sys.argv[1], 'w').write('[1]'); time.sleep(60)"
)
WRITES = "import sys; open(sys.argv[1], 'w').write('[2]')"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a folder for the output, in a session whose commands take seconds."""
    monkeypatch.setattr(on_a_gpu.Session, "prepare", lambda session: None)
    monkeypatch.setattr(on_a_gpu, "SAVING_SECONDS", 0.2)
    monkeypatch.setattr(on_a_gpu, "STEP_SECONDS", 8.0)
    return tmp_path / "out"


@pytest.fixture
def make_step(monkeypatch):
    """Return a function that replaces a step by commands, given by name, which may write their figures to argv[1]."""

    def make(step: str, codes: dict[str, str]) -> None:
        def commands(session: on_a_gpu.Session) -> list[on_a_gpu.Command]:
            paths = {name: session.output / f"{step}_{name}.json" for name in codes}
            return [
                on_a_gpu.Command(name, ["-c", code, str(paths[name])], on_a_gpu.figures_of_file(paths[name]))
                for name, code in codes.items()
            ]

        monkeypatch.setattr(on_a_gpu, step, commands)

    return make


def record(output) -> dict:
    return json.loads((output / "on_a_gpu.json").read_text(encoding="utf-8"))["steps"]


def states(output, step: str) -> dict[str, str]:
    return {name: entry["state"] for name, entry in record(output)[step]["commands"].items()}


def test_a_step_that_takes_too_long_is_ended_and_keeps_its_figures(machine, make_step, capsys):
    make_step("search", {"first": STUBBORN, "second": WRITES})
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        on_a_gpu.main([str(machine), "search", "nvidia"])
    assert ended.value.code == 1
    assert time.monotonic() - start < 20
    steps = record(machine)
    assert steps["search"]["state"] == "out of time"
    assert steps["search"]["figures"] == {"first": [1]}
    assert steps["search"]["commands"]["first"]["exit_code"] == -9
    assert states(machine, "search") == {"first": "out of time", "second": "not run"}
    assert steps["nvidia"]["state"] == "skipped: no --nvidia"
    assert capsys.readouterr().out.endswith("left: search\n")


def test_a_later_call_reaches_the_last_command_and_repeats_none_that_has_finished(machine, make_step, capsys):
    """Each call once began with the first command, so that a slow one left no time for the last, whatever happened."""
    counts = "import sys; open(sys.argv[1], 'w').write('[3]'); print('counted')"
    make_step("search", {"quick": counts, "slow": STUBBORN, "last": WRITES})
    with pytest.raises(SystemExit):
        on_a_gpu.main([str(machine), "search"])
    assert states(machine, "search") == {"quick": "finished", "slow": "out of time", "last": "not run"}
    with pytest.raises(SystemExit):
        on_a_gpu.main([str(machine), "search"])
    assert states(machine, "search") == {"quick": "finished", "slow": "out of time", "last": "finished"}
    assert record(machine)["search"]["figures"] == {"quick": [3], "slow": [1], "last": [2]}
    assert (machine / "search.log").read_text(encoding="utf-8").count("counted\n") == 1
    moved = machine.rename(machine.with_name("moved"))
    make_step("search", {"quick": counts, "slow": WRITES, "last": WRITES})  # slow is another command now
    on_a_gpu.main([str(moved), "search"])
    assert (moved / "search.log").read_text(encoding="utf-8").count("counted\n") == 1
    assert record(moved)["search"]["state"] == "finished"
    assert record(moved)["search"]["figures"]["slow"] == [2]
    assert capsys.readouterr().out.endswith("left: none\n")


def test_steps_that_are_left_are_added_to_the_results_of_the_others(machine, make_step, capsys):
    make_step("search", {"one": WRITES})
    make_step("training", {"one": "raise SystemExit(3)"})
    with pytest.raises(SystemExit):
        on_a_gpu.main([str(machine), "training", "search"])
    assert list(record(machine)) == ["search", "training"]  # in the order of the steps
    assert capsys.readouterr().out.endswith("left: training\n")
    make_step("training", {"one": WRITES})
    on_a_gpu.main([str(machine), "training"])
    steps = record(machine)
    assert [steps[name]["state"] for name in ("search", "training")] == ["finished", "finished"]
    assert steps["search"]["figures"] == {"one": [2]}


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import sys; open(sys.argv[1], 'w').write('{\"figures\": [')", "its figures cannot be read: "),
        ("", "it has no figures"),
    ],
)
def test_earlier_figures_survive_a_command_that_writes_damaged_ones_or_none(machine, make_step, code, problem):
    make_step("search", {"one": "import sys; open(sys.argv[1], 'w').write('[2]'); sys.exit(1)"})
    with pytest.raises(SystemExit):
        on_a_gpu.main([str(machine), "search"])
    make_step("search", {"one": code})
    with pytest.raises(SystemExit):
        on_a_gpu.main([str(machine), "search"])
    search = record(machine)["search"]
    assert search["state"] == search["commands"]["one"]["state"] == "failed"
    assert search["commands"]["one"]["problem"].startswith(problem)
    assert search["figures"] == {"one": [2]}


def test_a_training_that_the_time_limit_stops_leaves_the_evaluation_its_time(machine, monkeypatch):
    """The time for saving was once taken from that of the evaluation twice, and the training read as out of time."""
    monkeypatch.setattr(on_a_gpu, "EVALUATION_SECONDS", 4.0)
    trains = "import sys, time; open(sys.argv[1], 'w'); time.sleep(60)"

    def demo(session: on_a_gpu.Session) -> list[on_a_gpu.Command]:
        best = session.output / "best.pt"
        return [
            on_a_gpu.Command("training", ["-c", trains, str(best)], len, 4.0 + 0.2, stops_with=best),
            on_a_gpu.Command("evaluation", ["-c", "import time; time.sleep(2.5); print('bleu 1')"], str.split),
        ]

    monkeypatch.setattr(on_a_gpu, "demo", demo)
    on_a_gpu.main([str(machine), "demo"])
    assert states(machine, "demo") == {"training": "stopped by the time limit", "evaluation": "finished"}
    assert record(machine)["demo"]["state"] == "stopped by the time limit: training"
    assert record(machine)["demo"]["figures"]["evaluation"] == ["bleu", "1"]


@pytest.mark.parametrize("name", ["multi30k", "demo"])
def test_the_training_of_a_step_keeps_the_time_of_an_evaluation_and_of_ending_both(tmp_path, name):
    given = SimpleNamespace(output=tmp_path, device="cpu", quick=True, multi30k=tmp_path)
    training, *evaluations = getattr(on_a_gpu, name)(on_a_gpu.Session(given))
    assert training.kept_seconds == on_a_gpu.EVALUATION_SECONDS + on_a_gpu.SAVING_SECONDS
    assert all(evaluation.kept_seconds == 0 for evaluation in evaluations)


@pytest.mark.parametrize("quick", [False, True])
def test_every_command_of_a_script_passes_validation(tmp_path, monkeypatch, capsys, quick):
    """A wrong override would be noticed on the machine with the GPU, when its time has begun."""
    given = SimpleNamespace(output=tmp_path, device="cpu", quick=quick, multi30k=tmp_path, nvidia=tmp_path)
    session = on_a_gpu.Session(given)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    num_validated = 0
    for step in on_a_gpu.STEPS:
        for words in [command.arguments for command in getattr(on_a_gpu, step)(session)]:
            scripts = [index for index, word in enumerate(words) if word.startswith("scripts/")]
            if not scripts:
                continue
            [index] = scripts
            monkeypatch.setattr(sys, "argv", [*words[index:]])
            script = Path(words[index]).stem
            try:
                run_command(check_lists if script == "benchmark" else lambda cfg: None, script)
            except SystemExit as exit_:
                pytest.fail(f"{words} ended with {exit_.code}: {capsys.readouterr().err}")
            num_validated += 1
    assert num_validated == 6 + (2 if quick else 4) + (3 if quick else 4) + 2 + 5 + 2 + 2 + 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_too_and_leaves_valid_results(tmp_path, number):
    """Commands run in process groups of their own; one once went on after its script was stopped."""
    output, running = tmp_path / "out", tmp_path / "pid"
    waits = f"import os, time; open({str(running)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    script = f"""
        from benchmarks import on_a_gpu
        on_a_gpu.Session.prepare = lambda session: None
        on_a_gpu.search = lambda session: [on_a_gpu.Command("waits", ["-c", {waits!r}], str.split)]
        on_a_gpu.stop_on_signals()
        on_a_gpu.main([{str(output)!r}, "search"])
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (running.exists() and running.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child = int(running.read_text())
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert record(output)["search"]["state"] == "interrupted"
    assert states(output, "search") == {"waits": "interrupted"}


def test_all_missing_distributions_are_named_with_the_way_to_get_them(tmp_path, monkeypatch):
    """hydra-core alone was documented, but neither omegaconf nor the sdist of antlr4-python3-runtime."""
    monkeypatch.setattr(on_a_gpu, "DISTRIBUTIONS", {"json": "json", "no_omegaconf": "omegaconf", "no.antlr4": "antlr4"})
    with pytest.raises(SystemExit) as ended:
        on_a_gpu.Session(SimpleNamespace(output=tmp_path, wheels=None, device="cpu")).prepare()
    message = str(ended.value.code)
    assert message.startswith("antlr4, omegaconf cannot be imported: ")
    assert "pip wheel --no-deps --constraint constraints.txt --wheel-dir wheels antlr4 omegaconf`" in message
    assert message.endswith("--wheels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sleep"], f"unknown step sleep: choose from {' '.join(on_a_gpu.STEPS)}"),
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
    for name in ("tiny", "memory"):
        assert {figure["system"] for figure in training["figures"][name]["figures"]} == {"baseline", "fp32"}
    assert training["figures"]["tiny"]["figures"][0]["memory_mib"] is None
    assert training["figures"]["memory"]["figures"][0]["memory_mib"] > 0
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


def test_the_figures_of_the_cuda_tests_are_their_results():
    printed = (
        "tests/a.py::test_one[a b] PASSED [ 25%]\ntests/a.py::test_two FAILED [ 50%]\n"
        "tests/b.py::test_three SKIPPED (needs a CUDA device) [ 75%]\n"
        "FAILED tests/a.py::test_two - AssertionError\n"
    )
    assert on_a_gpu.pytest_figures(printed) == {
        "tests": {"FAILED": 1, "PASSED": 1, "SKIPPED": 1},
        "failed": ["tests/a.py::test_two"],
    }
    assert on_a_gpu.pytest_figures("ERROR: file or directory not found\n") is None


def test_gradients_that_stay_between_updates_are_counted():
    kept, cleared = (torch.nn.Parameter(torch.ones(1024, 256)) for _ in range(2))
    kept.grad = torch.ones(1024, 256)
    assert nvidia.gradient_mib(torch.optim.Adam([kept, cleared])) == 1.0
