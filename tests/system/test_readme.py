"""The commands and the Python code of the documents work as written."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from gnmt.config import cli
from gnmt.config.cli import CONFIG_FOLDER

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Its commands need files that the reader writes; test_add_your_own_model.py runs them.
OWN_FILES = "your-own-model.md"
# Commands of other tools, and three that have tests of their own: that with `paste` (tests/data/test_held_out.py),
# benchmarks.recurrent_layers (test_training_benchmark.py) and benchmarks/on_a_gpu.py (test_on_a_gpu.py).
NOT_OURS = re.compile(
    r"python3 -m venv |(\.venv/bin/)?pip install |python -m pip wheel |\. \.venv/bin/activate$|tensorboard --logdir "
    r"|paste |head |comet-score |for run in |do$|done$|OMP_NUM_THREADS=1 python -m benchmarks\.recurrent_layers "
    r"|python benchmarks/on_a_gpu\.py "
)
PLUGINS = {
    "hydra/launcher=joblib": "hydra_joblib_launcher",
    "hydra/launcher=submitit_local": "hydra_submitit_launcher",
    "hydra/launcher=submitit_slurm": "hydra_submitit_launcher",
    "hydra/sweeper=search": "hydra_optuna_sweeper",
}
"""Modules of hydra_plugins that some choices need; the extras `sweep` and `slurm` install them."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text(encoding="utf-8")) if kind == language]


def shell_lines(document: Path) -> list[list[str]]:
    """Return the words of every command, without comments; lines that end in a backslash are joined."""
    lines = "".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands() -> list[Any]:
    """Return (script, arguments) of every `python scripts/….py` in the documents, also after a pipe or torchrun.

    A command that stands in several documents is returned once.
    """
    found: dict[tuple[str, ...], Any] = {}
    for document in (document for document in DOCUMENTS if document.name != OWN_FILES):
        for words in shell_lines(document):
            for place, word in enumerate(words[:-1]):
                starts = word in ("python", ".venv/bin/python") or "torchrun" in words[: place + 1]
                if starts and words[place + 1].startswith("scripts/"):
                    arguments = words[place + 2 :]
                    name = f"{document.name}: {Path(words[place + 1]).stem} {' '.join(arguments)}"
                    param = pytest.param(words[place + 1], arguments, id=name)
                    found.setdefault(tuple(words[place + 1 :]), param)
    return list(found.values())


def test_the_documents_show_a_command_of_every_script() -> None:
    shown = {param.values[0] for param in commands()}
    assert shown == {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}
    in_readme = {Path(param.values[0]).stem for param in commands() if str(param.id).startswith("README.md")}
    assert in_readme >= {"train", "evaluate", "compare", "translate", "inspect_checkpoint", "benchmark"}


@pytest.mark.parametrize(("script", "arguments"), commands())
def test_a_documented_command_passes_validation(
    script: str, arguments: list[str], tmp_path, monkeypatch, capsys
) -> None:
    """It composes, also with -m, and passes the check of the config; main is not run.

    Of a sweep, `check_sweep` checks every value, and the first two jobs are launched.
    """
    assert (ROOT / script).is_file()
    for module in (PLUGINS[word] for word in arguments if word in PLUGINS):
        pytest.importorskip(f"hydra_plugins.{module}")
    configs: list[Any] = []

    def main(cfg: Any) -> float:  # Optuna's sweeper needs a number
        configs.append(cfg)
        return 0.0

    monkeypatch.chdir(tmp_path)
    for name in ("demo", "search/BEST"):  # for from_run
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "overrides.json").write_text("[]", encoding="utf-8")
    (tmp_path / "runs" / "demo" / "decoding").mkdir()  # for decoding=tuned, which tune_decoding.py writes
    shutil.copy(CONFIG_FOLDER / "decoding" / "default.yaml", tmp_path / "runs" / "demo" / "decoding" / "tuned.yaml")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    [launcher] = [one for one in Plugins.instance().discover(Launcher) if one.__name__ == "BasicLauncher"]
    launch = launcher.launch
    monkeypatch.setattr(launcher, "launch", lambda self, jobs, **index: launch(self, jobs[:2], **index))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    try:
        cli.run_command(main, Path(script).stem)
    except SystemExit as exit_:
        pytest.fail(f"{script} ended with {exit_.code}: {capsys.readouterr().err}")
    shown = capsys.readouterr().out
    assert configs or "--help" in arguments or "--cfg" in arguments
    assert len(configs) > 1 or "-m" not in arguments
    assert "_target_" in shown or "--cfg" not in arguments
    for recipe in [value for key, _, value in (word.partition("=") for word in arguments) if key == "experiment"]:
        for name in recipe.split(","):
            assert (CONFIG_FOLDER / "experiment" / f"{name}.yaml").is_file(), f"{name}: no such experiment"
    for config in configs:
        for example in (getattr(config, "input", "-"), config.get("source")):
            assert not str(example).startswith("examples/") or (ROOT / str(example)).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_other_line_is_a_make_target_or_another_tool(document: Path) -> None:
    """No command of this project is left untested."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for words in shell_lines(document):
        line = " ".join(words)
        if words[0] == "make":
            assert words[1] in targets, line
        elif "scripts/" not in line:
            assert NOT_OURS.match(line), line


@pytest.fixture
def run_demo(tiny, tmp_path, monkeypatch) -> None:
    """Let runs/demo be a small run."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny.folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("run_demo")
def test_the_python_of_the_readme_runs(capsys) -> None:
    [code] = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([" in capsys.readouterr().out


@pytest.mark.usefixtures("run_demo")
def test_the_python_of_the_notebook_page_runs(tiny, tmp_path, capsys) -> None:
    """The cells run one after another. The training has the overrides of the small run instead of those of the page."""
    page = "\n".join(blocks(ROOT / "docs" / "notebooks.md", "python"))
    code, num_replaced = re.subn(r"^overrides = .*$", f"overrides = {list(tiny.overrides)}", page, flags=re.MULTILINE)
    assert num_replaced == 1
    exec(compile(code, "notebooks.md", "exec"), {})
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "runs" / "notebook" / "best.pt").is_file()
    assert "'dev/bleu'" in capsys.readouterr().out


def test_the_example_file_is_english_lines() -> None:
    lines = (ROOT / "examples" / "demo.en").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert len(lines) >= 5
    assert all(line[0].isupper() and line[-1] in ".?!" for line in lines)
