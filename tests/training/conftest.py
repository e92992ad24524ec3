"""A tiny preprocessed corpus, and training runs on it that take a second."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from gnmt.checkpoint.load import build_model
from gnmt.config.build import build, resolve
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.data.batching import LoaderState
from gnmt.data.preprocess import preprocess
from gnmt.data.store import PreprocessedData
from gnmt.device import Precision, choose_device, choose_precision
from gnmt.distributed import Ranks
from gnmt.logs import RunFileHandler, StderrHandler
from gnmt.reporting.tensorboard import Reporter
from gnmt.training.run_checkpoints import RunCheckpoints
from gnmt.training.train import TrainingResult, build_trainer, train
from gnmt.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))  # makes this folder's helpers importable by name

WORDS = {"a": "ein", "red": "rotes", "house": "Haus", "and": "und", "no": "kein", "tree": "Baum", "sleeps": "schläft"}
SETTINGS = (
    "data=files",
    "tokenizer.vocab_size=300",
    "model.embedding_size=8",
    "model.encoder.dropout=0.3",
    "schedule=constant",
    "optimizer.lr=0.01",
    "decoding=greedy",
    "decoding.max_length_factor=1",
    "decoding.max_length_offset=2",
    "trainer.batch_tokens=250",
    "trainer.log_every_steps=1",
    "trainer.evaluate_every_steps=1000",
    "trainer.save_every_steps=1000",
    "device=cpu",
    "precision=fp32",
)


@cache
def composed(overrides: tuple[str, ...]) -> Any:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose("train", list(overrides))


def write_corpus(folder: Path, seed: int = 1) -> tuple[str, ...]:
    """Write random sentences in two languages, and return the overrides that name the files."""
    rng = random.Random(seed)
    overrides = [f"data.preprocessed={folder}/preprocessed"]
    for split, number in (("train", 40), ("dev", 4)):
        rows = [rng.choices(list(WORDS), k=rng.randint(1, 6)) for _ in range(number)]
        sides = {"source": rows, "target": [[WORDS[word] for word in row] for row in rows]}
        for side, lines in sides.items():
            path = folder / f"{split}.{side}"
            path.write_text("".join(" ".join(line) + ".\n" for line in lines), encoding="utf-8")
            overrides.append(f"data.{split}.{side}={path}")
    return tuple(overrides)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The overrides that name the tiny corpus."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The overrides of other text, with a preprocessed folder of its own."""
    return write_corpus(tmp_path_factory.mktemp("other"), seed=2)


@pytest.fixture(scope="session")
def preprocessed(corpus: tuple[str, ...]) -> PreprocessedData:
    cfg = composed((*SETTINGS, *corpus))
    return preprocess(build(cfg.data), build(cfg.tokenizer))


@pytest.fixture(scope="session")
def settings(corpus: tuple[str, ...], preprocessed: PreprocessedData) -> tuple[str, ...]:
    """All overrides of a run on the tiny corpus, for runs in other processes."""
    return (*SETTINGS, *corpus)


@pytest.fixture
def run(corpus: tuple[str, ...], preprocessed: PreprocessedData) -> Callable[..., TrainingResult]:
    """run(folder, *overrides, given=None): train as scripts/train.py does, without the command line.

    given: the overrides that the command line would have; the others are those of a config file.
    """

    def run_in(folder: Path, *overrides: str, given: tuple[str, ...] | None = None) -> TrainingResult:
        wait_for_another_second(folder)
        return train(composed((*SETTINGS, *corpus, *overrides, *(given or ()))), folder, given)

    return run_in


def wait_for_another_second(folder: Path) -> None:
    """Wait until a new event file gets a name with another second.

    TensorBoard reads event files in the order of their names, which begin with the second. Two runs of one process
    within a second, which only tests have, would sometimes be read in the wrong order.
    """
    while list(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)


@pytest.fixture
def make_trainer(
    corpus: tuple[str, ...], preprocessed: PreprocessedData, tmp_path: Path
) -> Iterator[Callable[..., Trainer]]:
    """make_trainer(*overrides): build the trainer of a new run in tmp_path."""
    reporters: list[Reporter] = []
    trainers: list[Trainer] = []

    def make(*overrides: str) -> Trainer:
        import torch

        cfg = composed((*SETTINGS, *corpus, *overrides))
        config = resolve(cfg)
        torch.manual_seed(cfg.seed)
        device = choose_device(cfg.device)
        model = build_model(config["model"], preprocessed.tokenizers, (), "the config").to(device)
        precision: Precision = choose_precision(cfg.precision, device)
        reporters.append(Reporter(tmp_path))
        trainer = build_trainer(
            config=config,
            options=build(cfg.trainer),
            model=model,
            preprocessed=preprocessed,
            loader_state=LoaderState(),
            precision=precision,
            checkpoints=RunCheckpoints(tmp_path, cfg.trainer.keep_checkpoints),
            reporter=reporters[-1],
            unused_target_ids=(),
            ranks=Ranks(),
        )
        trainers.append(trainer)
        return trainer

    yield make
    for trainer in trainers:
        trainer.stream.close()
    for reporter in reporters:
        reporter.close()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Remove the log handlers of a run after each test."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    logging.captureWarnings(False)
    for handler in list(root.handlers):
        if isinstance(handler, StderrHandler | RunFileHandler):
            root.removeHandler(handler)
            handler.close()
