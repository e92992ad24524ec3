"""Measure everything that needs a GPU, in five steps of at most 90 seconds each, on a machine without a network.

python benchmarks/on_a_gpu.py OUTPUT [STEP ...] [--wheels FOLDER] [--multi30k FOLDER] [--nvidia FOLDER] [--device cuda]

Steps, in this order; without a list, all of them:

  search     beam search at several batch sizes (scripts/benchmark.py task=decoding)
  training   scores of attention in Triton kernels and in chunks, then updates (task=training)
  nvidia     search and updates of NVIDIA's GNMT and of gnmt side by side; skipped without --nvidia
  multi30k   train experiment=multi30k_en_de as long as the time allows, and evaluate it; skipped without --multi30k
  demo       train the demo as long as the time allows, and evaluate it

OUTPUT is a folder. After each command, OUTPUT/on_a_gpu.json has all results so far, and OUTPUT/<step>.log the step's
output. The last line names the steps that are left, for another call, which keeps the results of the others.

The folder of --wheels has wheels of what the machine lacks, such as hydra-core. They are installed into OUTPUT/site, as
is the metadata of gnmt, without touching the machine's own packages. This file itself needs Python alone.
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
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("search", "training", "nvidia", "multi30k", "demo")
STEP_SECONDS, TOTAL_SECONDS = 90.0, 470.0
EVALUATION_SECONDS = 25.0
"""Part of the time of multi30k and demo that is kept for the evaluation after training."""
SAVING_SECONDS = 8.0
"""Time between SIGTERM, after which training saves, and SIGKILL."""
QUICK_TRAINING = (
    "model.embedding_size=16",
    "trainer.max_steps=2",
    "decoding.beam_size=1",
    "decoding.max_length_factor=0.2",
)
"""Overrides of the trainings with --quick."""


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
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.output / "site")]),
            "PYTHONUNBUFFERED": "1",
        }
        self.record: dict[str, Any] = {"steps": {}}
        if self.record_file.exists():
            self.record = json.loads(self.record_file.read_text(encoding="utf-8"))

    def prepare(self) -> None:
        """Install the wheels and the metadata of gnmt, and record the versions and the device."""
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        target = ["--upgrade", "--target", str(self.output / "site")]
        if self.given.wheels is not None:
            wheels = sorted(map(str, self.given.wheels.glob("*.whl")))
            if not wheels:
                sys.exit(f"--wheels {self.given.wheels} has no file *.whl")
            subprocess.run([*pip, *target, *wheels], check=True)
        has_metadata = [sys.executable, "-c", "import importlib.metadata as m; m.version('gnmt')"]
        if subprocess.run(has_metadata, env=self.environment, stderr=subprocess.DEVNULL, check=False).returncode:
            subprocess.run([*pip, "--no-build-isolation", *target, str(ROOT)], check=True)
        code = (
            "import json, platform, torch; from gnmt.device import choose_device, device_name; "
            f"device = choose_device({self.given.device!r}); "
            "print(json.dumps({'device': device_name(device), 'torch': torch.__version__, "
            "'cuda': torch.version.cuda, 'python': platform.python_version()}))"
        )
        shown = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        )
        self.record["machine"] = json.loads(shown.stdout)
        self.write()

    def step(self, name: str) -> None:
        """Run one step and record its state: finished, failed, out of time or skipped."""
        left = self.end - time.monotonic()
        if left < STEP_SECONDS / 3:
            return
        print(f"{name}: up to {min(STEP_SECONDS, left):.0f} seconds", flush=True)
        start = time.monotonic()
        self.step_end = start + min(STEP_SECONDS, left)
        (self.output / f"{name}.log").write_text("", encoding="utf-8")
        self.record["steps"][name] = {"state": "out of time", "commands": [], "figures": {}}
        run = {"search": search, "training": training, "nvidia": nvidia, "multi30k": multi30k, "demo": demo}[name]
        state = run(self)
        self.record["steps"][name].update(state=state, seconds=round(time.monotonic() - start, 1))
        self.write()
        print(f"{name}: {state}", flush=True)

    def command(self, step: str, arguments: Sequence[str], seconds: float | None = None) -> str:
        """Run a command of a step until it ends or its time is over, and return finished, failed or out of time.

        Args:
            step: The step.
            arguments: Arguments of Python.
            seconds: Time limit; None for the rest of the step.
        """
        rest = self.step_end - time.monotonic() - SAVING_SECONDS
        limit = rest if seconds is None else min(rest, seconds)
        if limit <= 0:
            return "out of time"
        log = self.output / f"{step}.log"
        start = time.monotonic()
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ python {shlex.join(arguments)}\n")
            stream.flush()
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                state = wait(process, limit)
            except BaseException:  # a signal to this script
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        self.record["steps"][step]["commands"].append(
            {
                "command": f"python {shlex.join(arguments)}",
                "state": state,
                "exit_code": process.returncode,
                "seconds": round(time.monotonic() - start, 1),
            }
        )
        self.write()
        return state

    def add_figures(self, step: str, name: str, path: Path) -> None:
        """Record the JSON file that a command has written, if it has."""
        if path.exists():
            self.record["steps"][step]["figures"][name] = json.loads(path.read_text(encoding="utf-8"))
            self.write()

    def write(self) -> None:
        """Write the record, so that no moment leaves a partial file."""
        temporary = self.record_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.record_file)


def wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process. After the time, send SIGTERM to it and all its children, and SIGKILL a little later."""
    try:
        return "finished" if process.wait(seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(SAVING_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also children that have outlived it
    process.wait()
    return "out of time"


def measured(session: Session, step: str, commands: dict[str, Sequence[str]], flag: str) -> str:
    """Run commands that write JSON, one after another, and return the worst state."""
    states = []
    for name, arguments in commands.items():
        path = session.output / f"{step}_{name}.json"
        path.unlink(missing_ok=True)
        states.append(session.command(step, [*arguments, f"{flag}{path}"]))
        session.add_figures(step, name, path)
    return next((state for state in ("failed", "out of time") if state in states), "finished")


def search(session: Session) -> str:
    device, quick = session.given.device, session.given.quick
    sizes = "sizes=[tiny]" if quick else "sizes=[gnmt]"
    shared = ["scripts/benchmark.py", f"device={device}", sizes, "lengths=[equal]", "memory=false", "repetitions=3"]
    precisions = "precisions=[fp32]" if quick else "precisions=[bf16]"
    batches = {"32": ["batch_sizes=[32]", "beams=[5]"], "128": ["batch_sizes=[128]", "beams=[5]"]}
    batches["512"] = ["batch_sizes=[512]", "beams=[5]"]
    batches["1"] = ["batch_sizes=[1]", "beams=[1,5]"]
    commands = {f"batch_{name}": [*shared, precisions, "num_batches=2", *keys] for name, keys in batches.items()}
    return measured(session, "search", commands, "output=")


def training(session: Session) -> str:
    device, quick = session.given.device, session.given.quick
    scores = ["-m", "benchmarks.additive_scores", "--device", device, *(["2,3,4,8"] if quick else [])]
    attention = measured(session, "training", {"attention": scores}, "--output=")
    shared = ["scripts/benchmark.py", "task=training", f"device={device}", "lengths=[equal]", "repetitions=3"]
    sizes = ("tiny",) if quick else ("gnmt_128", "gnmt", "middle")
    precisions = "precisions=[fp32]" if quick else "precisions=[bf16,fp16]"
    commands = {size: [*shared, f"sizes=[{size}]", precisions, f"memory={str(not quick).lower()}"] for size in sizes}
    updates = measured(session, "training", commands, "output=")
    return next((state for state in ("failed", "out of time") if state in (attention, updates)), "finished")


def nvidia(session: Session) -> str:
    if session.given.nvidia is None:
        return "skipped: no --nvidia"
    shared = ["--device", session.given.device, *(["--size", "tiny"] if session.given.quick else [])]
    tasks = ("search", "training")
    commands = {task: ["-m", "benchmarks.nvidia", str(session.given.nvidia), task, *shared] for task in tasks}
    return measured(session, "nvidia", commands, "--output=")


def multi30k(session: Session) -> str:
    folder = session.given.multi30k
    if folder is None:
        return "skipped: no --multi30k"
    quick = ["data.max_pairs=300", "tokenizer.vocab_size=500", *QUICK_TRAINING] if session.given.quick else []
    return train_and_evaluate(session, "multi30k", ["experiment=multi30k_en_de", f"data.folder={folder}", *quick])


def demo(session: Session) -> str:
    quick = ["data.num_train=120", "data.num_dev=6", "data.num_test=5", "tokenizer.vocab_size=420", *QUICK_TRAINING]
    return train_and_evaluate(session, "demo", quick if session.given.quick else [])


def train_and_evaluate(session: Session, step: str, overrides: Sequence[str]) -> str:
    """Train within the time of the step, and evaluate the best checkpoint on the test set.

    The evaluation during training comes early and often enough that there is a best checkpoint.
    """
    device, runs = f"device={session.given.device}", session.output / "runs"
    places = [f"runs={runs}", f"name={step}", f"data.preprocessed={session.output}/preprocessed_{step}"]
    often = ["trainer.evaluate_every_steps=400", "trainer.log_every_steps=50"]
    seconds = session.step_end - time.monotonic() - EVALUATION_SECONDS
    trained = session.command(step, ["scripts/train.py", *overrides, *places, *often, device], seconds)
    figures = session.record["steps"][step]["figures"]
    log = runs / step / "train.log"
    if log.exists():
        figures["training"] = training_figures(log.read_text(encoding="utf-8"))
        session.write()
    best = runs / step / "best.pt"
    if trained == "failed" or not best.exists():
        return trained
    evaluated = session.command(step, ["scripts/evaluate.py", f"checkpoint={best}", device])
    _, _, printed = (session.output / f"{step}.log").read_text(encoding="utf-8").rpartition("$ python ")
    figures["evaluation"] = evaluation_figures(printed)
    return evaluated


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


def evaluation_figures(printed: str) -> list[str]:
    """Return the lines of evaluate.py's output that have a metric, its value and its signature."""
    return re.findall(r"^(?:bleu|chrf|chrfpp|ter|gleu)\b.*$", printed, re.MULTILINE)


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


if __name__ == "__main__":
    main()
