"""Measure everything that needs a GPU, in steps of at most 90 seconds each, on a machine without a network.

python benchmarks/on_a_gpu.py OUTPUT [STEP ...] [--wheels FOLDER] [--multi30k FOLDER] [--nvidia FOLDER] [--device cuda]

Steps, in this order; without a list, all of them:

  search     beam search at several batch sizes (scripts/benchmark.py task=decoding)
  training   scores of attention in Triton kernels and in chunks, then updates and their memory (task=training)
  nvidia     updates and search of NVIDIA's GNMT and of gnmt side by side; skipped without --nvidia
  multi30k   train experiment=multi30k_en_de as long as the time allows, and evaluate it in bf16, fp32 and fp16;
             skipped without --multi30k
  demo       train the demo as long as the time allows, and evaluate it
  sizes      updates with 256 and 512 sentences, of 8+8 layers, and search and updates with mixed lengths
  profile    profiles of an update and of search (profile=)
  length     updates over sentence length: LSTM, minLSTM, RG-LRU, GRU and Transformer (task=length)
  options    short trainings with trainer.microbatch_tokens=auto, and by two processes that share the GPU
  tests      the tests that need CUDA; skipped without pytest

OUTPUT is a folder. After each command, OUTPUT/on_a_gpu.json has all results so far, and OUTPUT/<step>.log what the
commands of the step have printed. A call ends within eight minutes, so the last steps need a second one: the last line
names the steps that are left. A later call with the same OUTPUT skips the commands that have finished, also if the
folder has moved. After a change of the code, use a new folder.

The folder of --wheels has wheels of what the machine lacks. They are installed into OUTPUT/site, without touching the
machine's own packages. This file itself needs Python alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("search", "training", "nvidia", "multi30k", "demo", "sizes", "profile", "length", "options", "tests")
"""Names of the functions below that return the commands of a step."""
STEP_SECONDS, TOTAL_SECONDS = 90.0, 470.0
EVALUATION_SECONDS = 25.0
"""Part of the time of multi30k and demo that is kept for the evaluation after training."""
SAVING_SECONDS = 8.0
"""Time between SIGTERM, after which training saves, and SIGKILL."""
STOPPED = "stopped by the time limit"
DONE = ("finished", STOPPED)
"""States of a command that is not run again."""
QUICK_TRAINING = (
    "model.embedding_size=16",
    "trainer.max_steps=2",
    "decoding.beam_size=1",
    "decoding.max_length_factor=0.2",
)
QUICK_DEMO = ("data.num_train=120", "data.num_dev=6", "data.num_test=5", "tokenizer.vocab_size=420")
"""Overrides of the trainings with --quick."""
DISTRIBUTIONS = {
    "torch": "torch",
    "numpy": "numpy",
    "yaml": "PyYAML",
    "antlr4": "antlr4-python3-runtime",
    "omegaconf": "omegaconf",
    "hydra": "hydra-core",
    "packaging": "packaging",
    "sentencepiece": "sentencepiece",
    "sacrebleu": "sacrebleu",
    "portalocker": "portalocker",
    "regex": "regex",
    "tabulate": "tabulate",
    "colorama": "colorama",
    "lxml": "lxml",
    "tensorboard": "tensorboard",
    "google.protobuf": "protobuf",
    "absl": "absl-py",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "contourpy": "contourpy",
    "cycler": "cycler",
    "fontTools": "fonttools",
    "kiwisolver": "kiwisolver",
    "PIL": "pillow",
    "pyparsing": "pyparsing",
    "dateutil": "python-dateutil",
    "jinja2": "Jinja2",
    "markupsafe": "MarkupSafe",
}
"""Modules that the commands import, and the distributions that have them."""

Figures = Callable[[str], Any]
"""Function of what a command has printed. It returns its figures, or None if there are none."""


@dataclass(frozen=True)
class Command:
    """One command of a step.

    Args:
        name: Name of its figures.
        arguments: Arguments of Python.
        figures: See `Figures`. It raises ValueError for a damaged file.
        kept_seconds: Time of the step that is kept for the commands after it.
        stops_with: File with which a command that the time limit stops has done its work; None if it must finish.
    """

    name: str
    arguments: Sequence[str]
    figures: Figures
    kept_seconds: float = 0.0
    stops_with: Path | None = None


class Session:
    """Runs commands within time limits and records them in OUTPUT/on_a_gpu.json.

    Args:
        given: The arguments of the command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.output: Path = given.output
        self.record_file = self.output / "on_a_gpu.json"
        self.end = time.monotonic() + TOTAL_SECONDS
        self.step_end = self.end
        paths = [str(ROOT), str(self.output / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        self.record: dict[str, Any] = {"steps": {}}
        if self.record_file.exists():
            self.record = json.loads(self.record_file.read_text(encoding="utf-8"))

    def prepare(self) -> None:
        """Install the wheels if the machine lacks some of them, and record the versions and the device."""
        self.add_metadata()
        probed = self.probe()
        if probed["missing"] and self.given.wheels is not None:
            wheels = sorted(map(str, self.given.wheels.glob("*.whl")))
            if not wheels:
                sys.exit(f"--wheels {self.given.wheels} has no file *.whl")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
            subprocess.run([*pip, "--upgrade", "--target", str(self.output / "site"), *wheels], check=True)
            probed = self.probe()
        if probed["missing"]:
            sys.exit(missing_message(probed["missing"]))
        self.record["machine"] = probed["machine"]
        self.write()

    def add_metadata(self) -> None:
        """Write the metadata of gnmt, whose version its commands record, so that it need not be installed."""
        version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        folder = self.output / "site" / f"gnmt-{version}.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: gnmt\nVersion: {version}\n"
        (folder / "METADATA").write_text(metadata, encoding="utf-8")

    def probe(self) -> dict[str, Any]:
        """Return the modules that cannot be found; if there are none, also the versions and the device."""
        code = (
            "import importlib, json, platform\n"
            "missing = set()\n"
            f"for name in {[*DISTRIBUTIONS]}:\n"
            "    try:\n"
            "        importlib.import_module(name)\n"
            "    except ModuleNotFoundError as error:\n"
            "        missing.add(name if name.startswith(f'{error.name}.') else error.name or name)\n"
            "machine = None\n"
            "if not missing:\n"
            "    import torch\n"
            "    from gnmt.device import choose_device, device_name\n"
            f"    device = device_name(choose_device({self.given.device!r}))\n"
            "    machine = {'device': device, 'torch': torch.__version__, 'cuda': torch.version.cuda}\n"
            "    machine['python'] = platform.python_version()\n"
            "print(json.dumps({'missing': sorted(missing), 'machine': machine}))\n"
        )
        shown = subprocess.run([sys.executable, "-c", code], env=self.environment, stdout=subprocess.PIPE, check=True)
        probed: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
        return probed

    def step(self, name: str) -> None:
        """Run the commands of one step that are left, and record the state of the step."""
        left = self.end - time.monotonic()
        if left < STEP_SECONDS / 3:
            return
        self.step_end = time.monotonic() + min(STEP_SECONDS, left)
        step = self.record["steps"].setdefault(name, {"state": "", "commands": {}, "figures": {}})
        commands: list[Command] | str = globals()[name](self)
        if isinstance(commands, str):
            step["state"] = step["state"] or commands  # an earlier call may have run it
        else:
            print(f"{name}: up to {min(STEP_SECONDS, left):.0f} seconds", flush=True)
            step["state"] = "interrupted"
            # A command that did not finish earlier may fail again, so those that were not tried come first.
            tried = {key for key, entry in step["commands"].items() if entry["state"] != "not run"}
            order = sorted(commands, key=lambda command: command.name in tried and command.stops_with is None)
            step["state"] = state_of_step({command.name: self.run(name, command) for command in order})
        self.write()
        print(f"{name}: {step['state']}", flush=True)

    def run(self, step: str, command: Command) -> str:
        """Run a command until it ends or its time is over, unless it is done, and return its state.

        The states are finished, failed, out of time, stopped by the time limit (as planned, see
        `Command.stops_with`) and not run.
        """
        entries = self.record["steps"][step]["commands"]
        line = f"python {shlex.join(command.arguments)}".replace(str(self.output), "OUTPUT")
        earlier = entries.get(command.name)
        if earlier is not None and earlier["command"] == line and earlier["state"] in DONE:
            return str(earlier["state"])
        limit = self.step_end - time.monotonic() - SAVING_SECONDS - command.kept_seconds
        if limit <= 0:
            entries.setdefault(command.name, {"command": line, "state": "not run"})
            return "not run"
        entry = {"command": line, "state": "interrupted"}
        log = self.output / f"{step}.log"
        start = time.monotonic()
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {line}\n")
            stream.flush()
            begin = stream.tell()
            process = subprocess.Popen(
                [sys.executable, *command.arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                if (exit_code := exit_code_within(process, limit)) is not None:
                    entry["state"] = "failed" if exit_code else "finished"
                else:
                    entry["state"] = "out of time"
            finally:  # also after a signal to this script
                end(process)
                entry |= {"exit_code": process.returncode, "seconds": round(time.monotonic() - start, 1)}
                printed = log.read_bytes()[begin:].decode("utf-8", "replace")
                self.record_command(step, command, entry, printed)
        return str(entry["state"])

    def record_command(self, step: str, command: Command, entry: dict[str, Any], printed: str) -> None:
        """Record the state of a command, and its figures if there are new ones."""
        try:
            figures, problem = command.figures(printed), "it has no figures"
        except ValueError as error:
            figures, problem = None, f"its figures cannot be read: {error}"
        if figures is not None:
            self.record["steps"][step]["figures"][command.name] = figures
        elif entry["state"] == "finished":
            entry |= {"state": "failed", "problem": problem}
        for warning in dict.fromkeys(re.findall(r".*without its Triton kernels.*|.*CUDA graphs: .*", printed)):
            entry["warning"] = warning
            print(f"{step} {command.name}: {warning}", flush=True)
        if entry["state"] == "out of time" and command.stops_with is not None and command.stops_with.exists():
            entry["state"] = STOPPED
        self.record["steps"][step]["commands"][command.name] = entry
        self.write()

    def write(self) -> None:
        """Write the record atomically."""
        temporary = self.record_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.record_file)


def missing_message(modules: Sequence[str]) -> str:
    """Return the message that the machine lacks modules, with the way to make their wheels."""
    missing = [DISTRIBUTIONS.get(module, module) for module in modules]
    pip = "python -m pip wheel --no-deps --constraint constraints.txt --wheel-dir wheels"
    return (
        f"{', '.join(missing)} cannot be imported: on a machine with a network, the same Python version and the same "
        f"processor family, run `{pip} {' '.join(missing)}` in this repository, and give that folder with --wheels"
    )


def exit_code_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait for a process and return its exit code, or None if it has not ended in time."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a process and its children, if it still runs, and SIGKILL after SAVING_SECONDS."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        exit_code_within(process, SAVING_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also children that have outlived it
    process.wait()


def state_of_step(states: dict[str, str]) -> str:
    """Return the state of a step from those of its commands."""
    for state in ("failed", "out of time", "not run"):
        if state in states.values():
            return "out of time" if state == "not run" else state
    stopped = [name for name, state in states.items() if state == STOPPED]
    return f"{STOPPED}: {', '.join(stopped)}" if stopped else "finished"


# Figures


def figures_of_file(path: Path) -> Figures:
    """Return a function that reads the JSON file of a command, or returns None if the command has not written it."""

    def modified() -> int | None:
        return path.stat().st_mtime_ns if path.exists() else None

    def figures(printed: str) -> Any:
        return None if modified() == earlier else json.loads(path.read_text(encoding="utf-8"))

    earlier = modified()
    return figures


def training_figures(log: str) -> dict[str, Any]:
    """Return the figures of a train.log.

    Returns:
        The number of updates; the tokens per second of each log line; for each evaluation its line, its seconds, and
        the seconds of training up to its end; and the share of all evaluations in the seconds of training. Seconds
        before the first update, also of a resumed run, are not counted. An evaluation begins with the log line before
        its own, because `trainer.evaluate_every_steps` is a multiple of `trainer.log_every_steps`.
    """
    evaluations: list[dict[str, Any]] = []
    seconds = 0.0
    before: datetime | None = None
    for time_of_line, logger, message in re.findall(r"^(\S+ \S+) [A-Z]+ (\S+): (.*)$", log, re.MULTILINE):
        now = datetime.strptime(time_of_line, "%Y-%m-%d %H:%M:%S,%f")
        if before is not None and logger == "gnmt.training.trainer":
            seconds += (now - before).total_seconds()
            if re.match(r"update \d+, dev: ", message):
                duration = round((now - before).total_seconds(), 2)
                evaluations.append({"line": message, "seconds": duration, "ended_after": round(seconds, 2)})
        before = now
    updates = [int(number) for number in re.findall(r"update (\d+)/\d+, epoch", log)]
    return {
        "updates": max(updates, default=0),
        "tokens_per_second": [int(number) for number in re.findall(r"(\d+) tokens/s", log)],
        "evaluations": evaluations,
        "evaluation_share": round(sum(one["seconds"] for one in evaluations) / seconds, 3) if seconds else None,
    }


def figures_of_run(folder: Path, printed: str) -> dict[str, Any] | None:
    """Return the figures of a run's train.log, or None if it has none, and messages on microbatches and processes."""
    log = folder / "train.log"
    if not log.exists():
        return None
    messages = re.findall(r"(trainer\.microbatch_tokens=auto: .*|processes share a GPU.*|by \d+ processes.*)", printed)
    return training_figures(log.read_text(encoding="utf-8")) | ({"messages": messages} if messages else {})


def evaluation_figures(printed: str) -> list[str] | None:
    """Return the lines of evaluate.py's output that have a metric, its value and its signature, or None."""
    return re.findall(r"^(?:bleu|chrf|chrfpp|ter|gleu)\b.*$", printed, re.MULTILINE) or None


def pytest_figures(printed: str) -> dict[str, Any] | None:
    """Return the number of tests by result and the names of those that failed, from what pytest -v has printed."""
    results = re.findall(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", printed, re.MULTILINE)
    counts = {
        result: sum(found == result for _, found in results) for result in sorted({found for _, found in results})
    }
    failed = [name for name, result in results if result in ("FAILED", "ERROR")]
    return {"tests": counts, "failed": failed} if results else None


# Steps


def search(session: Session) -> list[Command]:
    half = [] if session.given.quick else ["precisions=[fp16]"]
    return [
        *(
            benchmark(session, "search", f"batch_{size}", *decoding(session, size, beams))
            for size, beams in ((32, "5"), (128, "5"), (512, "1,5"), (1, "1,5"))
        ),
        benchmark(session, "search", "without_kernels", *decoding(session, 32, "5"), "triton=false"),
        benchmark(session, "search", "fp16", *decoding(session, 32, "5"), *half),
    ]


def training(session: Session) -> list[Command]:
    quick = session.given.quick
    path = session.output / "training_attention.json"
    scores = ["-m", "benchmarks.additive_scores", "--device", session.given.device, f"--output={path}"]
    attention = Command("attention", [*scores, *(["2,3,4,8"] if quick else [])], figures_of_file(path))
    sizes = ("tiny",) if quick else ("gnmt_128", "gnmt", "middle")
    once = ["memory=true", "repetitions=1", "num_batches=1"]
    return [
        attention,
        *(benchmark(session, "training", size, *updates(session, size)) for size in sizes),
        benchmark(session, "training", "memory", *updates(session, sizes[0]), *once),
    ]


def nvidia(session: Session) -> list[Command] | str:
    if session.given.nvidia is None:
        return "skipped: no --nvidia"
    commands = []
    for task in ("training", "search"):
        path = session.output / f"nvidia_{task}.json"
        arguments = [str(session.given.nvidia), task, "--device", session.given.device, f"--output={path}"]
        arguments += ["--size", "tiny"] if session.given.quick else []
        commands.append(Command(task, ["-m", "benchmarks.nvidia", *arguments], figures_of_file(path)))
    return commands


def multi30k(session: Session) -> list[Command] | str:
    folder, quick = session.given.multi30k, session.given.quick
    if folder is None:
        return "skipped: no --multi30k"
    overrides = ["experiment=multi30k_en_de", f"data.folder={folder}"]
    overrides += ["data.max_pairs=300", "tokenizer.vocab_size=500", *QUICK_TRAINING] if quick else []
    return train_and_evaluate(session, "multi30k", overrides, ["bf16", "fp32", *([] if quick else ["fp16"])])


def demo(session: Session) -> list[Command]:
    overrides = [*QUICK_DEMO, *QUICK_TRAINING] if session.given.quick else []
    return train_and_evaluate(session, "demo", overrides, ["recorded"])


def sizes(session: Session) -> list[Command]:
    quick = session.given.quick
    larger = {"256_sentences": "gnmt_256", "512_sentences": "gnmt_512", "8_layers": "gnmt_8"}
    commands = [
        benchmark(session, "sizes", name, *updates(session, "tiny" if quick else size)) for name, size in larger.items()
    ]
    mixed = updates(session, "tiny" if quick else "gnmt_128")
    return [
        *commands,
        benchmark(session, "sizes", "mixed_updates", *mixed, "lengths=[mixed]"),
        benchmark(session, "sizes", "mixed_search", *decoding(session, 128, "5"), "lengths=[mixed]"),
    ]


def profile(session: Session) -> list[Command]:
    shared = [f"profile={session.output}/profiles", "repetitions=1", "num_batches=1"]
    size = "tiny" if session.given.quick else "gnmt_128"
    return [
        benchmark(session, "profile", "update", *updates(session, size), *precision(session), *shared),
        benchmark(session, "profile", "search", *decoding(session, 128, "5"), *shared),
    ]


def length(session: Session) -> list[Command]:
    quick = session.given.quick
    cells = ("lstm", "min_lstm") if quick else ("lstm", "min_lstm", "rg_lru", "gru")
    models = ",".join([*(f"claims/cell_{cell}" for cell in cells), *([] if quick else ["claims/transformer"])])
    tokens = "5,10" if quick else "20,40,80,160,320"
    shared = ["task=length", f"sizes=[{models}]", f"sentence_tokens=[{tokens}]", *precision(session)]
    shared += ["memory=false", "repetitions=3"]
    counts = (64, 32) if quick else (16384, 2048)
    return [benchmark(session, "length", f"{count}_tokens", *shared, f"batch_tokens={count}") for count in counts]


def options(session: Session) -> list[Command]:
    """Return short trainings on the data that the step demo has preprocessed, or would preprocess."""
    quick = [*QUICK_DEMO, *QUICK_TRAINING] if session.given.quick else []
    large = quick or ["model=gnmt", "trainer.batch_tokens=262144", "trainer.max_steps=5", "decoding.beam_size=1"]
    auto = ["trainer.microbatch_tokens=auto", "trainer.log_every_steps=1"]
    device = "cuda:0" if session.given.device == "cuda" else session.given.device  # the same one for both processes
    several = [*(quick or ["trainer.max_steps=200"]), f"device={device}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    runs = session.output / "runs"
    return [
        Command(
            "microbatch",
            train(session, "demo", "microbatch", [*large, *auto]),
            partial(figures_of_run, runs / "microbatch"),
            kept_seconds=EVALUATION_SECONDS + SAVING_SECONDS,
        ),
        Command(
            "two_processes",
            [*torchrun, *train(session, "demo", "two_processes", several)],
            partial(figures_of_run, runs / "two_processes"),
        ),
    ]


def tests(session: Session) -> list[Command] | str:
    needed = [sys.executable, "-c", "import pytest, filelock"]
    if subprocess.run(needed, env=session.environment, stderr=subprocess.DEVNULL, check=False).returncode:
        return "skipped: pytest or filelock is not installed"
    files = [
        path for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.cuda" in path.read_text(encoding="utf-8")
    ]
    names = [str(path.relative_to(ROOT)) for path in files]
    return [Command("cuda", ["-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "cuda", *names], pytest_figures)]


# Commands of the steps


def benchmark(session: Session, step: str, name: str, *overrides: str) -> Command:
    """Return a command of scripts/benchmark.py. Of overrides with the same key, the last one counts."""
    path = session.output / f"{step}_{name}.json"
    last = {override.partition("=")[0]: override for override in overrides}
    arguments = ["scripts/benchmark.py", *last.values(), f"device={session.given.device}", f"output={path}"]
    return Command(name, arguments, figures_of_file(path))


def precision(session: Session) -> list[str]:
    return ["precisions=[fp32]" if session.given.quick else "precisions=[bf16]"]


def decoding(session: Session, batch_size: int, beams: str) -> list[str]:
    """Return the overrides that time search."""
    sizes = "sizes=[tiny]" if session.given.quick else "sizes=[gnmt]"
    shared = [sizes, "lengths=[equal]", "memory=false", "repetitions=3", "num_batches=2", *precision(session)]
    return [*shared, f"batch_sizes=[{batch_size}]", f"beams=[{beams}]"]


def updates(session: Session, size: str) -> list[str]:
    """Return the overrides that time updates."""
    precisions = "precisions=[fp32]" if session.given.quick else "precisions=[bf16,fp16]"
    shared = ["task=training", "lengths=[equal]", "memory=false", "repetitions=3", precisions]
    return [*shared, f"sizes=[{size}]"]


def train(session: Session, data: str, name: str, overrides: Sequence[str]) -> list[str]:
    """Return the arguments of a training in OUTPUT/runs/<name>, on the data of a step."""
    folders = [f"runs={session.output}/runs", f"name={name}", f"data.preprocessed={session.output}/preprocessed_{data}"]
    last = {override.partition("=")[0]: override for override in [f"device={session.given.device}", *overrides]}
    return ["scripts/train.py", *folders, *last.values()]


def train_and_evaluate(
    session: Session, name: str, overrides: Sequence[str], precisions: Sequence[str]
) -> list[Command]:
    """Return a training that the time limit stops, and evaluations of the best checkpoint on the test set.

    The evaluation during training comes early and often enough that there is a best checkpoint.
    """
    often = ["trainer.evaluate_every_steps=400", "trainer.log_every_steps=50"]
    run = session.output / "runs" / name
    commands = [
        Command(
            "training",
            train(session, name, name, [*overrides, *often]),
            partial(figures_of_run, run),
            kept_seconds=EVALUATION_SECONDS + SAVING_SECONDS,
            stops_with=run / "best.pt",
        )
    ]
    for precision in precisions:
        arguments = [f"checkpoint={run}/best.pt", f"precision={precision}", f"device={session.given.device}"]
        output = f"output={session.output}/{name}_{precision}"
        evaluate = ["scripts/evaluate.py", *arguments, output]
        commands.append(Command(f"evaluation_{precision}", evaluate, evaluation_figures))
    return commands


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("steps", nargs="*", metavar="STEP")
    for folder in ("wheels", "multi30k", "nvidia"):
        parser.add_argument(f"--{folder}", type=lambda name: Path(name).resolve(), metavar="FOLDER")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the commands on any machine")
    given = parser.parse_args(arguments)
    if unknown := set(given.steps) - set(STEPS):
        parser.error(f"unknown step {', '.join(sorted(unknown))}: choose from {' '.join(STEPS)}")
    for name in ("wheels", "multi30k", "nvidia"):
        folder = getattr(given, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder} is no folder")
    given.output = given.output.resolve()
    given.output.mkdir(parents=True, exist_ok=True)
    session = Session(given)
    session.prepare()
    steps = [name for name in STEPS if name in given.steps or not given.steps]
    for name in steps:
        session.step(name)
    states = {name: session.record["steps"].get(name, {}).get("state", "out of time") for name in steps}
    print(f"results: {session.record_file}")
    left = [name for name, state in states.items() if state in ("failed", "out of time")]
    print(f"left: {' '.join(left) or 'none'}")
    if left:
        sys.exit(1)


def stop_on_signals() -> None:
    """Exit on SIGTERM and SIGHUP by SystemExit, so that the command that runs is ended too."""

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)


if __name__ == "__main__":
    stop_on_signals()
    main()
