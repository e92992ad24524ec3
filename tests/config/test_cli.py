"""The command line of the scripts: one message and exit code 2 for wrong input, a traceback for bugs."""

import errno
import importlib.util
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from gnmt.config.cli import COMPOSITION_ERRORS, CONFIG_FOLDER, check_sweep, explain, run_job, sweep_overrides
from gnmt.config.cli import run_command as run_main
from gnmt.config.run_folder import current_run_folder
from gnmt.config.validate import RENAMED, list_keys
from gnmt.errors import DivergedError, InputError, Interrupted

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in this process and an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    # Hydra's switch for full errors, set by run_command, must not outlive the test.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))

    def run_command(*arguments: str, command: str = "train", main: Callable[[Any], None] | None = None) -> Any:
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        code = 0
        try:
            run_main(main or (lambda cfg: print(current_run_folder(cfg))), command)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_a_correct_command_reaches_main_and_writes_no_file(run: Run, tmp_path: Path) -> None:
    code, out, err = run("seed=3", "model.encoder.num_layers=3", "device=cpu")
    assert (code, out, err) == (0, "runs/demo__model.encoder.num_layers-3__seed-3\n", "")
    assert list(tmp_path.iterdir()) == []


WRONG_KEYS = [
    ("model.encodr.num_layers=3", "is no key of this config; did you mean model.encoder.num_layers?"),
    ("encoder.num_layers=3", "is no key of this config; did you mean model.encoder.num_layers?"),
    ("lr=3", "is no key of this config; did you mean optimizer.lr?"),
    ("optimizer.learning_rate=3", "is no key of this config; did you mean optimizer.lr?"),
    ("trainer.max_updates=3", "is no key of this config; did you mean trainer.max_steps?"),
    ("sed=3", "is no key of this config; did you mean seed?"),
    ("optimzer=adam", "is no key of this config; did you mean optimizer?"),
    ("trainer.zzz=3", "is no key of this config; the keys of trainer (with trainer=default) are max_steps, max_epochs"),
    ("data.train.source=a.en", "is no key of this config; the keys of data (with data=demo) are "),
    ("~optimizer.ams", "is no key of this config; did you mean optimizer.amsgrad?"),
    ("trainer.stages.0.until_stop=3", "is no key of this config; did you mean trainer.stages.0.until_step?"),
    ("model/encodr=lstm", "is no key of this config; did you mean model/encoder?"),
]


@pytest.fixture(scope="module")
def diagnosis() -> dict[str, str]:
    """The line about each override of the table, all of them given on one command line."""
    overrides = [override for override, _ in WRONG_KEYS]
    message = explain(RuntimeError("Hydra's message"), "train", ["trainer=adam_then_sgd", *overrides])
    first, *lines = message.splitlines()
    assert first == f"{len(WRONG_KEYS)} errors in the overrides:"
    return {key.strip(): text for key, text in (line.split(": ", 1) for line in lines)}


@pytest.mark.parametrize(("override", "message"), WRONG_KEYS)
def test_all_unknown_keys_are_reported_with_the_nearest_name(
    diagnosis: dict[str, str], override: str, message: str
) -> None:
    key = override.partition("=")[0].lstrip("~")
    assert diagnosis[key].startswith(message.replace("trainer=default", "trainer=adam_then_sgd"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=gnmt_9", 'model: found "gnmt_9"; did you mean gnmt_8? (allowed is one of '),
        ("model=null", 'model: found "null", allowed is one of '),
        ("trainer=null", 'trainer: found "null", allowed is one of adam_then_sgd, default'),
        ("model/attention=add", 'model/attention: found "add", allowed is one of additive'),
        (
            "experiment=multi30k",
            'experiment: found "multi30k"; did you mean multi30k_en_de? (allowed is one of demo, k',
        ),
        ("name=[a]", 'name: found ["a"], allowed is text or null'),
        (
            "trusted_packages=mylab",
            'trusted_packages: found "mylab", allowed is a list (text each), as in trusted_packages=[mylab]',
        ),
        (  # the advice without quotes was refused too
            'trusted_packages="a=b*"',
            'trusted_packages: found "a=b*", allowed is a list (text each), as in \'trusted_packages=["a=b*"]\'',
        ),
        ("precision=fp32,bf16", "Ambiguous value for argument 'precision=fp32,bf16' 1. To use it as a list, use key=["),
        ("runs=a=b", "runs=a=b: cannot be read (mismatched input '='"),
        ("data.name=ü", "data.name=ü: cannot be read. Values with "),
        ("seed = 3", "seed = 3: cannot be read. Values with "),
        ("data.preprocessed=[a, b", "data.preprocessed=[a, b: cannot be read ("),
        ("decoding", "decoding: found a word without '=', allowed are overrides of the form key=value"),
        ("=3", "found no key before '=', allowed is key=value"),
    ],
)
def test_other_wrong_overrides_are_explained_in_one_line(override: str, message: str) -> None:
    error = None
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        try:
            compose("train", [override])
        except COMPOSITION_ERRORS as raised:
            error = raised
    first, line = explain(error, "train", [override]).splitlines()
    assert first == "1 error in the overrides:"
    assert line.strip().startswith(message)


def test_a_syntax_error_says_how_to_quote() -> None:
    said = explain(RuntimeError("Hydra's message"), "train", ["name=a=b"])
    assert "need quotes inside quotes: 'key=\"a=b\"'" in said


def test_former_names_are_refused_with_the_new_ones(run: Run) -> None:
    code, out, err = run(*(old if "=" in old else f"{old}=1" for old in RENAMED))
    assert (code, out) == (2, "")
    first, *lines = err.splitlines()
    assert first == f"error: {len(RENAMED)} errors in the overrides:"
    assert sorted(lines) == sorted(f"  {old}: was renamed; use {new}" for old, new in RENAMED.items())
    new = [text.split(" ")[0] for text in RENAMED.values()]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        keys = list_keys(compose("train", []))
        for choice in [one for one in new if "=" in one]:
            compose("train", [choice])
    assert {one for one in new if "=" not in one} <= {*keys}


def test_former_keys_in_a_users_own_yaml_are_refused_with_the_new_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ntrainer:\n  length_multiple: 4\n"
    (tmp_path / "mine" / "experiment" / "old.yaml").write_text(text)
    code, _, err = run("--config-dir", "mine", "experiment=old")
    assert code == 2
    assert "trainer.length_multiple: was renamed; use trainer.pad_to_multiple_of" in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encodr.num_layers=3", "model.encodr.num_layers: is no key of this config; did you mean model.encoder."),
        ("model=null", 'model: found "null", allowed is one of '),
        ("name=a=b", "need quotes inside quotes: 'key=\"a=b\"'"),
        ("=3", "found no key before '='"),
        ("--seed=3", "--seed=3: is no flag of this command; overrides are written without dashes"),
        ("model.encoder.num_layers=0", "model.encoder.num_layers: found 0, allowed is a whole number of at least 1"),
        ("name='a b'", 'name: found "a b", allowed are letters, digits'),
    ],
)
def test_wrong_commands_give_one_message_and_code_2(run: Run, override: str, message: str) -> None:
    code, out, err = run(override)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["experiment=multi30"],
            ['experiment: found "multi30"; did you mean mu', "? (allowed is one of demo, ", "claims/..."],
        ),
        (["experiment=multi30k_en_d"], ["did you mean multi30k_en_de?"]),
        (["experiment=nosuch", "data=files"], ['experiment: found "nosuch"']),
        (["experiment=demo/x"], ["did you mean demo?"]),
        (["experiment=claims/gnm"], ["claims/gnmt, ", "did you mean claims/gnmt?", "wmt16_en_de, claims/attention"]),
        (["-m", "experiment=demo,dmo"], ['experiment: found "dmo"', "did you mean demo?"]),
        (["--cfg", "job", "experiment=multi30"], ['experiment: found "multi30"']),
        (["+experiment=multi30", "sed=3"], ['found "multi30"', "sed: is no key of this config"]),
    ],
)
def test_a_misspelled_experiment_is_refused_instead_of_training_the_demo(run: Run, overrides, messages) -> None:
    """`optional experiment: ${data}` makes Hydra leave out every name that does not exist."""
    code, out, err = run(*overrides, main=lambda cfg: print("trains"))
    assert (code, out) == (2, "")
    for message in messages:
        assert message in err


@pytest.mark.parametrize("overrides", [[], ["data=files"], ["experiment=none"], ["~experiment"]])
def test_data_without_an_experiment_of_its_name_uses_the_defaults_of_the_groups(run: Run, overrides) -> None:
    files = [f"data.{split}.{side}=a" for split in ("train", "dev") for side in ("source", "target")]
    rates: list[float] = []
    code, _, err = run(
        *overrides, *(files if overrides == ["data=files"] else []), main=lambda c: rates.append(c.optimizer.lr)
    )
    assert (code, err) == (0, "")
    assert rates == [0.004 if overrides else 0.01]


@pytest.mark.parametrize("way", ["--config-dir", "hydra.searchpath"])
def test_experiments_of_a_users_own_config_folder(run: Run, tmp_path: Path, way: str) -> None:
    (tmp_path / "my configs" / "experiment" / "big").mkdir(parents=True)
    for name in ("mine", "big/ours"):
        text = "# @package _global_\noptimizer:\n  lr: 0.125\n"
        (tmp_path / "my configs" / "experiment" / f"{name}.yaml").write_text(text)
    given = ["--config-dir", "my configs"] if way == "--config-dir" else [f'hydra.searchpath=["{tmp_path}/my configs"]']
    rates: list[float] = []
    for name in ("mine", "big/ours"):
        code, _, err = run(*given, f"experiment={name}", main=lambda cfg: rates.append(cfg.optimizer.lr))
        assert (code, err) == (0, "")
    assert rates == [0.125, 0.125]
    code, _, err = run(*given, "experiment=mne", "seed=x")
    assert code == 2
    assert err.startswith("error: 2 errors")
    assert "did you mean mine?" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainr: 3", "experiment/own.yaml: trainr: is no key of this config; did you mean trainer?"),
        ("name: [a]", "experiment/own.yaml: name: found "),
        ("seed: two", 'seed: found "two", allowed is a whole number'),
        ("trainer: [", "own.yaml:3: is not valid YAML: "),
        (
            "trainer: {max_step: 3}",
            "trainer.max_step: TrainerOptions takes no such key; did you mean trainer.max_steps? (",
        ),
    ],
)
def test_an_error_in_a_users_own_yaml_names_file_and_key(run: Run, tmp_path: Path, text: str, message: str) -> None:
    """Broken YAML gave a traceback, a wrong root key Hydra's "ConfigKeyError raised while composing config"."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}\n")
    code, out, err = run("--config-dir", "mine", "experiment=own")
    assert (code, out) == (2, "")
    assert err.startswith("error: 1 error in the ")
    assert message in err
    assert len(err.splitlines()) == 2


def test_overrides_may_stand_on_both_sides_of_a_flag(run: Run) -> None:
    """`device=cpu -m seed=1,2` was refused with "seed=1,2: is no flag of this command"."""
    seeds: list[int] = []
    code, _, err = run("device=cpu", "-m", "seed=1,2", main=lambda cfg: seeds.append(cfg.seed))
    assert code == 0, err
    assert seeds == [1, 2]
    code, out, err = run("seed=7", "--cfg", "job", "device=cpu")
    assert (code, err) == (0, "")
    assert "seed: 7\ndevice: cpu\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["~seed"], "seed: is missing; give it as seed=..."),
        (["~trusted_packages"], "trusted_packages: is missing; give it as trusted_packages=..."),
        (["+sed=3"], "sed: is no key of this config; did you mean seed?"),
        (["+zzz=3"], "zzz: is no key of this config; the keys of the config are name, runs, seed, "),
        (["++beam_size=1"], "beam_size: is no key of this config; did you mean decoding.beam_size?"),
        (["+decodng.beam_size=1"], "decodng.beam_size: is no key of this config; did you mean decoding.beam_size?"),
        (["+decoding.beam.size=1"], "decoding.beam: SearchOptions takes no such key; did you mean decoding.beam_size?"),
        (["+optimizer.learning_rate=1"], "learning_rate: Adam takes no such key; did you mean optimizer.lr?"),
        (["--config-name", "evaluate"], "--config-name: found evaluate, which is no config of train.py; allowed is"),
        (["--config-dir", "nowhere"], "--config-dir: found nowhere, allowed is a folder that exists"),
    ],
)
def test_removed_and_added_root_keys_and_absent_folders_are_named(run: Run, arguments: list[str], message: str) -> None:
    """`~seed` gave a traceback, and `+sed=3` trained with the old seed."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_the_nearest_choice_stands_first_and_other_folders_are_summarized() -> None:
    """The nearest name once followed two dozen others, most of them in a folder."""

    names = ("dmo", "claims/gnm", "12345")
    said = explain(None, "train", [f"experiment={name}" for name in names]).splitlines()[1:]
    near, in_folder, far = (line.strip() for line in said)
    assert near.startswith('experiment: found "dmo"; did you mean demo? (allowed is one of demo, koen_en_ko')
    assert near.endswith("wmt16_en_de, claims/...)")
    assert in_folder.startswith('experiment: found "claims/gnm"; did you mean claims/gnmt? (allowed is')
    assert "claims/gnmt, " in in_folder
    assert far.startswith('experiment: found "12345", allowed is one of demo, ')


def test_all_wrong_keys_and_choices_are_reported_together(run: Run) -> None:
    code, _, err = run("sed=1", "model=gnmt_9", "seed=x", "trainer.max_stps=1", "seed=4")
    assert code == 2
    assert err.splitlines()[0] == "error: 3 errors in the overrides:"  # the second seed replaces the first
    assert len(err.splitlines()) == 4


def test_values_out_of_range_are_reported_with_the_wrong_keys(run: Run) -> None:
    """They once appeared only after the keys were corrected."""
    code, _, err = run("modle.dropout=1", "trainer.max_steps=abc", "optimizer.lr=-1", "seed=-1", "trainer.max_epochs=2")
    assert code == 2
    assert err.splitlines()[0] == "error: 4 errors in the overrides:"
    for message in (
        "modle.dropout: is no key of this config",
        'trainer.max_steps: found "abc", allowed is a whole number',
        "optimizer.lr: found -1, allowed is a number above 0",
        "seed: found -1, allowed is a whole number of at least 0",
    ):
        assert err.count(f"  {message}") == 1


def test_what_a_misspelled_key_leaves_out_is_not_reported_as_missing(run: Run) -> None:
    code, _, err = run("data=files", "data.trian.source=a", "data.train.target=b", "data.dev.pairs=c.tsv")
    assert code == 2
    assert err.splitlines()[0] == "error: 1 error in the overrides:"
    assert "data.trian.source: is no key" in err


@pytest.mark.parametrize("override", ["'name=\"ü=b\"'", "\"name='a,b'\""])
def test_the_quoting_that_messages_advise_is_right(run: Run, override: str) -> None:
    """The outer quotes are the shell's."""
    names: list[str] = []
    code, _, err = run(override[1:-1], main=lambda cfg: names.append(cfg.name))
    assert (code, err) == (0, "")
    assert names[0] in ("ü=b", "a,b")


def test_input_errors_of_main_are_messages_and_bugs_are_tracebacks(run: Run) -> None:
    def wrong_input(cfg: Any) -> None:
        raise InputError("a.en:3: no UTF-8")

    def bug(cfg: Any) -> None:
        raise ZeroDivisionError("a bug")

    def interrupted(cfg: Any) -> None:
        raise KeyboardInterrupt("stopped at update 7; the same command resumes")

    assert run(main=wrong_input) == (2, "", "error: a.en:3: no UTF-8\n")
    assert run(main=interrupted) == (130, "", "stopped at update 7; the same command resumes\n")

    def interrupted_early(cfg: Any) -> None:
        raise KeyboardInterrupt

    assert run(main=interrupted_early) == (130, "", "interrupted\n")

    def preempted(cfg: Any) -> None:
        raise Interrupted("SIGTERM: stopped after update 7", exit_code=143)

    assert run(main=preempted) == (143, "", "SIGTERM: stopped after update 7\n")
    with pytest.raises(ZeroDivisionError):
        run(main=bug)


def test_a_closed_stdout_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`inspect_checkpoint.py … | head -3` showed Hydra's "Error executing job with overrides"."""
    replaced: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda new, old: replaced.append(old))
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)

    def printing(cfg: Any) -> None:
        raise BrokenPipeError

    assert run(main=printing) == (2, "", "")
    assert replaced == [1]


STREAMS = """
import logging, os, sys
from gnmt.config.cli import run_command
from gnmt.errors import InputError

def main(cfg):
    file = os.open("file", os.O_WRONLY | os.O_CREAT)
    assert file > 2
    for number in (1, 2):
        try:
            os.write(number, b"from a library\\n")
        except OSError:
            pass
    logging.warning("logged")
    print("printed", "\u2013")
    if cfg.checkpoint == "wrong":
        raise InputError("wrong")

run_command(main, "inspect_checkpoint")
"""


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [
        ("2>&-", "from a library\nprinted –\n", ""),
        (">&-", "", "from a library\nwarning: logged\n"),
        ("<&- >&- 2>&-", "", ""),
    ],
)
def test_streams_may_be_closed(tmp_path: Path, closed: str, out: str, err: str) -> None:
    """Every command ended with code 1 after its work was done, and files got the descriptors 1 and 2."""
    (tmp_path / "child.py").write_text(STREAMS, encoding="utf-8")

    def child(checkpoint: str) -> tuple[int, str, str]:
        command = f"exec {sys.executable} child.py checkpoint={checkpoint} {closed}"
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
        return done.returncode, done.stdout, done.stderr

    assert child("x") == (0, out, err)
    assert child("wrong") == (2, out, err and f"{err}error: wrong\n")
    assert (tmp_path / "file").read_bytes() == b""
    if ">&-" in closed.split():
        message = "error: the result is printed to standard output, which is closed: redirect it to a file\n"
        assert child("x --cfg job") == child("x --help") == (2, "", err and message)


@pytest.mark.parametrize(
    ("environment", "dash"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, "\\u2013"),
        ({"PYTHONIOENCODING": "ascii"}, "\\u2013"),
        ({"LC_ALL": "C"}, "–"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "\\u2013"),
    ],
)
def test_a_terminal_that_lacks_a_character_shows_its_code(tmp_path: Path, environment: dict, dash: str) -> None:
    """compare.py died of the dash that stands for a missing value."""
    (tmp_path / "child.py").write_text(STREAMS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "child.py", "checkpoint=x"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "from a library\nwarning: logged\n")
    assert done.stdout.decode() == f"from a library\nprinted {dash}\n"


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_stdout_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for arguments in ([], ["--help"]):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            code, _, err = run(*arguments, main=lambda cfg: print("x" * size))
            assert code == 2
            assert re.fullmatch(r"error: standard output .*\(No space left on device\)\n", err)


def test_a_system_error_is_one_line_and_a_bug_keeps_its_traceback(run: Run) -> None:
    def too_long(cfg: Any) -> None:
        open("x" * 300)  # noqa: SIM115

    code, _, err = run(main=too_long)
    assert code == 2
    assert err == f"error: {'x' * 77}... cannot be read or written (File name too long)\n"

    def full_disk(cfg: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = "error: standard output or a file cannot be read or written (No space left on device)\n"
    assert run(main=full_disk) == (2, "", message)

    def bug(cfg: Any) -> None:
        os.close(987654)

    with pytest.raises(OSError, match="Bad file descriptor"):
        run(main=bug)


def test_a_sweep_gives_each_job_a_folder_and_runs_the_jobs_after_a_failed_one(run: Run, tmp_path: Path) -> None:
    folders = []

    def main(cfg: Any) -> None:
        if cfg.seed == 2:
            raise InputError("not 2")
        folders.append(str(current_run_folder(cfg)))

    code, out, err = run("-m", "seed=1,2,3", "name=mine", main=main)
    assert (code, out) == (2, "")
    assert folders == ["runs/mine__seed-1", "runs/mine__seed-3"]
    assert "error: not 2" in err
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "runs/.sweep/multirun.yaml"
    ]


@pytest.mark.parametrize("override", ["sed=1", "model.encoder.num_layers=0", "--seed=1", "experiment=dmo"])
def test_only_rank_0_reports_what_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    """Each rank printed the same message, or torchrun stopped rank 0 before it had printed its own."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    assert run(override) == (2, "", "")
    assert waited == [10.0]
    monkeypatch.setenv("RANK", "0")
    code, _, err = run(override)
    assert (code, err.count("error: ")) == (2, 1)
    assert waited == [10.0]


def test_a_failed_job_fails_for_hydra_and_the_others_give_it_their_results(run: Run) -> None:
    """Hydra's launchers know a failed job by its exception, and its sweepers optimize the result of main."""
    results = []

    def main(cfg: Any) -> float:
        if cfg.seed == 2:
            raise InputError("not 2")
        return float(cfg.seed)

    def job(cfg: Any) -> None:
        results.append(run_job(main, cfg, "train"))

    code, _, err = run("-m", "seed=1,2,3", "name=mine", main=job)
    assert code == 2
    assert results == [1.0, 3.0]
    assert err.endswith("Error executing job with overrides: ['seed=2', 'name=mine']\nerror: not 2\n")


LAUNCHER = '''"""A launcher that runs each job in a process of its own, as those for joblib and submitit do."""
import os, pickle, sys
from hydra.core.utils import run_job
from hydra.plugins.launcher import Launcher

class ParallelLauncher(Launcher):
    def setup(self, *, hydra_context, task_function, config):
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides, initial_job_idx):
        return [self.run(list(overrides)) for overrides in job_overrides]

    def run(self, overrides):
        reader, writer = os.pipe()
        if os.fork() == 0:
            job = run_job(self.function, self.context.config_loader.load_sweep_config(self.config, overrides),
                          "hydra.sweep.dir", "hydra.sweep.subdir", self.context)
            sys.stdout.flush()
            os.write(writer, pickle.dumps(job))
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            return pickle.load(pipe)
'''

WORKER_SCRIPT = """from gnmt.config.cli import run_command
from gnmt.errors import InputError

def main(cfg):
    if cfg.seed == 2:
        raise InputError("not 2")
    if cfg.seed == 3:
        raise ValueError("a bug")
    print("seed", cfg.seed)

run_command(main, "train")
"""


@pytest.mark.parametrize(
    ("seeds", "code", "done", "messages"),
    [
        ("seed=1,4", 0, ["seed 1", "seed 4"], []),
        ("seed=1,2,4", 2, ["seed 1", "seed 4"], ["error: not 2", "overrides: ['seed=2'", "error: not 2"]),
        ("seed=1,3", 1, ["seed 1"], ['script.py", line 8, in main', "ValueError: a bug", "overrides: ['seed=3'"]),
    ],
)
def test_a_failed_job_of_a_parallel_launcher_fails_the_command(
    tmp_path: Path, seeds: str, code: int, done: list[str], messages: list[str]
) -> None:
    """Such sweeps ended with exit code 0, and a bug in a job looked like an error of the command line."""
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "parallel.py").write_text(LAUNCHER)
    (tmp_path / "script.py").write_text(WORKER_SCRIPT)
    launcher = "hydra.launcher._target_=hydra_plugins.parallel.ParallelLauncher"
    path = os.pathsep.join([str(tmp_path), str(CONFIG_FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "script.py", "-m", launcher, seeds]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout.splitlines()) == (code, done), ended.stderr
    rest = ended.stderr
    for message in messages:  # in this order
        _, found, rest = rest.partition(message)
        assert found, ended.stderr


def test_a_failed_job_of_submitit_ends_its_process_with_an_error(tmp_path: Path) -> None:
    """Slurm showed failed jobs as completed, because Hydra returns the exception as the job's result."""
    script = "from gnmt.config.cli import _fail_worker; from gnmt.errors import InputError; _fail_worker({}); print(1)"
    for error, code in (("InputError('no')", 2), ("ValueError('bug')", 1)):
        for executor, expected in (("slurm", code), (None, 0)):
            environment = os.environ | ({"SUBMITIT_EXECUTOR": executor} if executor else {})
            command = [sys.executable, "-c", script.format(error)]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert (ended.returncode, ended.stdout) == (expected, "1\n"), ended.stderr
            assert ("ValueError: bug" in ended.stderr) == (code == 1)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_failed_job_of_hydras_own_parallel_launchers(tmp_path: Path, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    (tmp_path / "script.py").write_text(WORKER_SCRIPT)
    command = [sys.executable, "script.py", "-m", f"hydra/launcher={launcher}", "seed=1,2,4"]
    path = os.pathsep.join([str(CONFIG_FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.endswith("Error executing job with overrides: ['seed=2']\nerror: not 2\n")
    logs = [path.read_text() for path in tmp_path.rglob("*_log.err")]
    assert sorted("Job completed successfully" in log for log in logs) == [False, True, True][: len(logs)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra/launcher=submitit_slurm", "hydra/launcher: submitit_slurm is not installed; install it with the extra"),
        ("hydra/launcher=joblib", "pip install '.[sweep]'"),
        ("hydra/sweeper=optuna", "pip install '.[sweep]'"),
        ("hydra/launcher=nosuch", 'hydra/launcher: found "nosuch", allowed is one of basic'),
    ],
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(run: Run, override: str, message: str) -> None:
    plugin = f"hydra_plugins.hydra_{override.partition('=')[2].partition('_')[0]}_{override[6:].partition('=')[0]}"
    with suppress(ModuleNotFoundError):
        if importlib.util.find_spec(plugin) is not None:
            pytest.skip(f"{plugin} is installed")
    code, out, err = run("-m", override, "seed=1,2")
    assert (code, out) == (2, "")
    assert message in err


def test_the_home_folder_is_expanded_in_lists_quotes_and_yaml(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra's grammar cannot read a `~`, and a shell expands it only at the beginning of a word."""
    home = str(tmp_path)
    monkeypatch.setenv("HOME", home)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\ninitialize_from: ~/best.pt\n")
    found: list[Any] = []

    def main(cfg: Any) -> None:
        found.extend([cfg.runs, cfg.initialize_from, cfg.data.train.source, cfg.data.train.target])

    code, _, err = run(
        "--config-dir=~/mine", "data=files", "experiment=own", "runs=~/runs", 'data.train.source=[~/a.en,"~/b.en"]',
        'data.train.target=["a~/b.de",b.de]', "data.dev.source=a", "data.dev.target=b", main=main,
    )  # fmt: skip
    assert (code, err) == (0, "")
    expected = [f"{home}/runs", f"{home}/best.pt", [f"{home}/a.en", f"{home}/b.en"], ["a~/b.de", "b.de"]]
    assert found == expected


@pytest.mark.parametrize(("metric", "value"), [("dev/bleu", 31.5), ("dev/loss", 1.0)])
def test_train_returns_the_value_of_the_metric_that_chooses_best_pt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metric: str, value: float
) -> None:
    result = SimpleNamespace(folder=tmp_path, steps=4, best={"dev/bleu": 31.5, "dev/loss": 1.0}, best_step=2)
    monkeypatch.setattr("gnmt.training.train.train", lambda cfg, folder, overrides: result)
    monkeypatch.setattr("gnmt.config.run_folder.current_overrides", list)
    monkeypatch.setattr("gnmt.config.run_folder.current_run_folder", lambda cfg: tmp_path)
    monkeypatch.setattr("gnmt.config.run_folder.check_sweep_direction", lambda best_metric: None)
    cfg = SimpleNamespace(trainer=SimpleNamespace(best_metric=metric), from_run=None)
    assert train_script().main(cfg) == value


def train_script() -> Any:
    """Return scripts/train.py as a module."""
    spec = importlib.util.spec_from_file_location("script_train_main", CONFIG_FOLDER.parent / "scripts" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(("metric", "worst"), [("dev/bleu", 0.0), ("dev/loss", math.inf)])
def test_a_diverged_run_is_the_worst_of_a_search_and_an_error_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metric: str, worst: float
) -> None:
    """It ended the search, although settings that diverge are what a search of learning rates finds."""

    def diverge(cfg: Any, folder: Path, overrides: list[str]) -> None:
        raise DivergedError("training diverged")

    monkeypatch.setattr("gnmt.training.train.train", diverge)
    for name in ("current_overrides", "check_sweep_direction"):
        monkeypatch.setattr(f"gnmt.config.run_folder.{name}", lambda *_: [])
    monkeypatch.setattr("gnmt.config.run_folder.current_run_folder", lambda cfg: tmp_path)
    cfg = SimpleNamespace(trainer=SimpleNamespace(best_metric=metric), from_run=None)
    monkeypatch.setattr("gnmt.config.run_folder.sweep_direction", lambda: "maximize")
    assert train_script().main(cfg) == worst
    monkeypatch.setattr("gnmt.config.run_folder.sweep_direction", lambda: None)
    with pytest.raises(DivergedError):
        train_script().main(cfg)


def test_a_sweep_checks_every_value_before_its_first_job(run: Run, tmp_path: Path) -> None:
    """Each job checked its own config, perhaps after hours in a queue, and each printed the same message."""
    code, out, err = run(
        "-m", "seed=1,2,-3", "model.encoder.num_layers=2,0", "optimizer.lr=-1", "trainer.clip_norm=range(0,9,2)"
    )
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: 4 errors in the config:"
    for line in ("seed: found -3", "model.encoder.num_layers: found 0", "optimizer.lr: found -1", "clip_norm: found 0"):
        assert err.count(line) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_the_ends_of_an_interval_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a search, whose values are not known before."""
    overrides = ["model.encoder.dropout=interval(0.1,1.5)", "optimizer.lr=tag(log,interval(0.001,0.01))", "seed=1,2"]
    swept = sweep_overrides("train", overrides, [])
    with pytest.raises(
        InputError, match=r"^1 error in the config:\n  model\.encoder\.dropout: found 1\.5, allowed is "
    ):
        check_sweep("train", swept, [])
    check_sweep("train", swept[1:], [])


def test_settings_that_a_sweeper_shares_among_its_jobs_are_in_no_name(run: Run, tmp_path: Path) -> None:
    """A limit among hydra.sweeper.params was in the name of each run, though it may change when the run is resumed."""
    (tmp_path / "mine" / "hydra" / "sweeper").mkdir(parents=True)
    params = "{seed: '1,2', trainer.patience_evaluations: 3, trainer.clip_norm: 2}"
    (tmp_path / "mine" / "hydra" / "sweeper" / "wide.yaml").write_text(f"defaults: [basic, _self_]\nparams: {params}\n")
    code, out, err = run("-m", "--config-dir=mine", "hydra/sweeper=wide", "trainer.clip_norm=4")
    assert code == 0, err
    assert out.splitlines() == [f"runs/demo__seed-{seed}__trainer.clip_norm-4" for seed in (1, 2)]


def test_wrong_overrides_of_a_sweep(run: Run) -> None:
    code, _, err = run("-m", "seed=1,x", "model.encoder.num_layers=2,3", "sed=1,2")
    assert code == 2
    assert "sed: is no key of this config; did you mean seed?" in err


def test_help_and_cfg_go_to_stdout(run: Run) -> None:
    code, out, err = run("--help", command="translate")
    assert (code, err) == (0, "")
    assert "The command line of the scripts" in out
    assert "decoding: default, greedy, paper, [recorded]" in out
    code, out, err = run("--cfg", "job", command="translate")
    assert (code, err) == (0, "")
    assert "checkpoint: ???" in out


def test_commands_without_groups_name_their_keys(run: Run) -> None:
    code, _, err = run("checkpont=x", command="inspect_checkpoint", main=lambda cfg: None)
    assert code == 2
    assert "checkpont: is no key of this config; did you mean checkpoint?" in err
    code, _, err = run("model=gnmt", "checkpoint=x", command="inspect_checkpoint", main=lambda cfg: None)
    assert code == 2
    assert "model: is no key of this config" in err


SCRIPT = '''"""Print the folder of the run."""
import logging
from gnmt.config.cli import run_command
from gnmt.config.run_folder import current_run_folder

def main(cfg):
    logging.getLogger(__name__).info("logged")
    print(current_run_folder(cfg))
    if cfg.seed == 6:
        print("a line\\n" * 100_000)

if __name__ == "__main__":
    run_command(main, "train")
'''


@pytest.mark.slow
def test_as_a_process_from_any_folder(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "say.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def process(*arguments: str) -> tuple[int, str, str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(script), *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    assert process("seed=5") == (0, "runs/demo__seed-5\n", "logged\n")
    code, out, err = process("sed=5")
    assert (code, out) == (2, "")
    assert err == "error: 1 error in the overrides:\n  sed: is no key of this config; did you mean seed?\n"
    assert list(elsewhere.iterdir()) == []
    for arguments in ("seed=6", "--help"):  # more than a pipe holds, and less than the buffer of stdout
        with subprocess.Popen(
            [sys.executable, str(script), arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=elsewhere
        ) as head:
            assert head.stdout is not None
            assert head.stderr is not None
            head.stdout.close()
            assert head.stderr.read().replace(b"logged\n", b"") == b""
