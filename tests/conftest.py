"""Fixtures of all tests: commands that run inside the test process, two training runs, a file server and a full disk.

`run_command` runs a script as its command line would, without the cost of a new process. `tiny` is a run of seconds for
tests that work with any weights. `trained` is a run of a minute that has learned to translate. Each run is made once in
a test session, by the worker that needs it first.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, because the workers share the cores

import importlib.util
import io
import json
import logging
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType

import pytest
from filelock import FileLock
from hydra._internal.hydra import Hydra
from hydra.plugins.sweeper import Sweeper

from gnmt.config.cli import run_command as run_main

SCRIPTS = Path(__file__).parents[1] / "scripts"

# The smallest corpus that the grammar allows, and a small model. A run takes two seconds.
# A shell starts background jobs with SIGINT ignored, which the commands that tests interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = (
    "data.num_train=120",
    "data.num_dev=6",
    "data.num_test=5",
    "tokenizer.vocab_size=420",
    "model.embedding_size=16",
    "optimizer.lr=0.004",
    "schedule.total_steps=8",
    "schedule.warmup_steps=0",
    "trainer.batch_tokens=600",
    "trainer.max_steps=4",
    "trainer.log_every_steps=1",
    "trainer.evaluate_every_steps=2",
    "trainer.save_every_steps=2",
    "decoding.beam_size=2",
    "decoding.max_length_factor=0.5",
    "decoding.max_length_offset=2",
    "device=cpu",
)
# A model that learns to translate in a minute on one core.
TRAINED = (
    "data.num_train=20000",
    "data.num_dev=100",
    "data.num_test=100",
    "tokenizer.vocab_size=2000",
    "model.embedding_size=128",
    "model.init_range=0.4",
    "model.encoder.dropout=0.05",
    "optimizer.lr=0.008",
    "schedule.total_steps=900",
    "schedule.warmup_steps=100",
    "trainer.batch_tokens=1024",
    "trainer.log_every_steps=100",
    "trainer.evaluate_every_steps=450",
    "device=cpu",
)


@dataclass(frozen=True)
class CommandResult:
    """Exit code, stdout and stderr of a finished command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        home: Working directory of the command, with `runs/` and `preprocessed/`.
        folder: Folder of the run.
        overrides: Overrides of the command.
        printed: Result of the command.
    """

    home: Path
    folder: Path
    overrides: tuple[str, ...]
    printed: CommandResult

    def copied_to(self, home: Path) -> Run:
        """Return a copy of the run in another folder, which a test may change. The preprocessed data is not copied."""
        shutil.copytree(self.home / "runs", home / "runs", symlinks=True)
        preprocessed = next((self.home / "preprocessed").glob("demo-*"))
        folder = home / self.folder.relative_to(self.home)
        return Run(home, folder, (*self.overrides, f"data.preprocessed={preprocessed}"), self.printed)


def run_script(script: str, *overrides: str, cwd: Path, stdin: bytes = b"") -> CommandResult:
    """Run scripts/<script>.py with these overrides in the folder `cwd`, and restore the state of the process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    code = 0
    root = logging.getLogger()
    with (
        TemporaryFile() as given,
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        given.write(stdin)
        given.seek(0)
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [f"scripts/{script}.py", *overrides])
        patch.setattr(sys, "stdin", io.TextIOWrapper(given, encoding="utf-8"))
        patch.setenv("HYDRA_FULL_ERROR", "0")  # the script sets it; the patch restores its value
        handlers, level = list(root.handlers), root.level
        try:
            run_main(load_script(script).main, script)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            for handler in set(root.handlers) - set(handlers):
                root.removeHandler(handler)
                handler.close()
            root.setLevel(level)
            logging.captureWarnings(False)
    return CommandResult(code, decode_stream(out), decode_stream(err))


def load_script(name: str) -> ModuleType:
    """Return scripts/<name>.py as the module `script_<name>`, imported once."""
    module_name = f"script_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]


def decode_stream(stream: io.TextIOWrapper) -> str:
    """Return the text that was written to a stream of `run_script`."""
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode("utf-8")


@pytest.fixture(scope="session", autouse=True)
def compose_once() -> Iterator[None]:
    """Let Hydra compose the config of a command, and that of each job of a sweep, once instead of twice.

    Hydra composes a command's config first to read hydra.mode, which no config of this project sets, and those of all
    jobs before the first one, as `check_sweep` does. Tests that start a process have Hydra as it is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def run_command() -> Callable[..., CommandResult]:
    """Return `run_command(script, *overrides, cwd=folder, stdin=b"")`, which runs a command in this process."""
    return run_script


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[type[SimpleHTTPRequestHandler]], tuple[Path, str]]]:
    """Return `serve(handler_class)`, which starts a server for an empty folder and returns the folder and its URL."""
    with ExitStack() as stack:

        def start(handler: type[SimpleHTTPRequestHandler]) -> tuple[Path, str]:
            folder = tmp_path / "served"
            folder.mkdir()
            silent = type("Silent", (handler,), {"log_message": lambda *_: None})
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), partial(silent, directory=str(folder))))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return folder, f"http://127.0.0.1:{server.server_port}"

        yield start


@contextmanager
def folder_of_all_workers(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Yield the folder `name` of all workers, to one worker at a time. The first one fills it."""
    base = factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    home.mkdir(exist_ok=True)
    with FileLock(home.with_suffix(".lock")):
        yield home


def train_once(factory: pytest.TempPathFactory, name: str, overrides: tuple[str, ...]) -> Run:
    """Return the run `name`. The first worker that needs it trains it, and the others wait."""
    overrides = (*overrides, f"name={name}")
    with folder_of_all_workers(factory, name) as home:
        record = home / "finished.json"
        if not record.exists():
            finished = run_script("train", *overrides, cwd=home)
            assert finished.code == 0, finished.err
            record.write_text(json.dumps(asdict(finished)), encoding="utf-8")
    printed = CommandResult(**json.loads(record.read_text(encoding="utf-8")))
    return Run(home, home / "runs" / name, overrides, printed)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AbstractContextManager[Path]]:
    """shared_folder(name): see folder_of_all_workers."""
    return partial(folder_of_all_workers, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of four updates on the smallest corpus. Tests read it or change a copy."""
    return train_once(tmp_path_factory, "tiny", TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that has learned to translate the demo grammar. Tests that use it are marked `slow`."""
    return train_once(tmp_path_factory, "trained", TRAINED)


@pytest.fixture
def compiling_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let Triton compile kernels that the test imports, instead of interpreting them, into an empty cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context `file_size_limit(size)` in which writing a file beyond `size` bytes fails, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
