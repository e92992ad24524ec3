"""What all tests share: one thread for each worker, commands run in this process, and one trained run.

`run_command` starts a script as its command line would, without a process of its own. `tiny` is a run of seconds
for everything that works with any weights; `trained` is a run of a minute that has learned to translate, made once in
a session, whichever worker comes first.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores

import importlib.util
import io
import json
import logging
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

from gnmt.config.cli import run_command as run_main

SCRIPTS = Path(__file__).parents[1] / "scripts"

# A corpus and a model as small as the grammar allows: a run lasts two seconds.
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
# Learns to translate in a minute on one core.
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
class Finished:
    """A command that ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Run:
    """A finished training run.

    home: the folder that the command ran in, with `runs/` and `preprocessed/`. folder: the run. overrides: the command's.
    printed: what it wrote.
    """

    home: Path
    folder: Path
    overrides: tuple[str, ...]
    printed: Finished

    def copied_to(self, home: Path) -> Run:
        """The same in another folder, to be changed at will; the preprocessed text stays where it is."""
        shutil.copytree(self.home / "runs", home / "runs", symlinks=True)
        preprocessed = next((self.home / "preprocessed").glob("demo-*"))
        folder = home / self.folder.relative_to(self.home)
        return Run(home, folder, (*self.overrides, f"data.preprocessed={preprocessed}"), self.printed)


def run_script(script: str, *overrides: str, cwd: Path, stdin: bytes = b"") -> Finished:
    """Runs scripts/<script>.py in that folder with those overrides, and puts the process back as it was."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    code = 0
    root = logging.getLogger()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [f"scripts/{script}.py", *overrides])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        patch.setenv("HYDRA_FULL_ERROR", "0")  # run_command sets it
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
    return Finished(code, *(read_back(stream) for stream in (out, err)))


def load_script(name: str) -> ModuleType:
    """The script as a module, under a name that nothing else has."""
    module_name = f"script_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]


def read_back(stream: io.TextIOWrapper) -> str:
    """What was written to one of our streams."""
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode("utf-8")


@pytest.fixture(scope="session")
def run_command() -> Callable[..., Finished]:
    """run_command(script, *overrides, cwd=folder, stdin=b""): a whole command, in this process."""
    return run_script


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[type[SimpleHTTPRequestHandler]], tuple[Path, str]]]:
    """serve(handler): an empty folder, and the URL at which a handler of that class serves it, until the test ends."""
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


def trained_once(factory: pytest.TempPathFactory, name: str, overrides: tuple[str, ...]) -> Run:
    """The run of that name, trained by the first worker that asks; the others wait for it."""
    base = factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    record = home / "finished.json"
    home.mkdir(exist_ok=True)
    overrides = (*overrides, f"name={name}")
    with FileLock(home.with_suffix(".lock")):
        if not record.exists():
            finished = run_script("train", *overrides, cwd=home)
            assert finished.code == 0, finished.err
            record.write_text(json.dumps(asdict(finished)), encoding="utf-8")
    printed = Finished(**json.loads(record.read_text(encoding="utf-8")))
    return Run(home, home / "runs" / name, overrides, printed)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four updates on the smallest corpus; read it, or change a copy."""
    return trained_once(tmp_path_factory, "tiny", TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has learned to translate the demo grammar; read it, or change a copy. Mark its tests `slow`."""
    return trained_once(tmp_path_factory, "trained", TRAINED)


@pytest.fixture
def disk_for_files_of() -> Callable[[int], AbstractContextManager[None]]:
    """Inside disk_for_files_of(size) no file of this process grows beyond `size` bytes, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
