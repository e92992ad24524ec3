"""Time training updates by sentence length, for the models of experiments.

A batch has the same number of tokens at every length, so the arithmetic of weight matrices is constant. The time of
sequential steps and of pairs of positions grows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Column, Runner, in_own_process, timed_in_turns
from benchmarks.training import SMOOTHING, Step, memory_mib, project_step, updates
from gnmt.batch import BOS_ID, PAD_ID, Batch
from gnmt.config.build import build
from gnmt.config.cli import recipe
from gnmt.data.batching import batch_of
from gnmt.device import choose_device
from gnmt.errors import InputError
from gnmt.model.seq2seq import Seq2Seq
from gnmt.training.objective import LabelSmoothedCrossEntropy

LENGTHS = ("equal",)


@dataclass(frozen=True)
class LengthWorkload:
    """Updates of one model on sentences of one length.

    Args:
        size: Name of the experiment; weights are random.
        sentence_tokens: Tokens of each side, with EOS.
        batch_tokens: Tokens of both sides.
        num_batches: Updates of one measurement.
        config: Resolved config of the experiment.
    """

    size: str
    sentence_tokens: int
    batch_tokens: int
    num_batches: int
    seed: int
    device: str
    config: dict[str, Any] = field(repr=False)

    @property
    def num_sentences(self) -> int:
        return max(1, self.batch_tokens // (2 * self.sentence_tokens))

    @property
    def num_subwords(self) -> int:
        return int(self.config["tokenizer"]["vocab_size"])

    def model(self) -> Seq2Seq:
        """Return the model in training mode, on the device."""
        torch.manual_seed(self.seed)
        return self.build_model().to(choose_device(self.device)).train()

    def build_model(self) -> Seq2Seq:
        """Build the model on torch's default device."""
        sizes = {"source_vocabulary_size": self.num_subwords, "target_vocabulary_size": self.num_subwords}
        model: Seq2Seq = build(self.config["model"], **sizes)
        return model

    def batches(self) -> list[Batch]:
        """Return batches of random subwords."""
        rng = np.random.default_rng(self.seed)
        shape = (self.num_batches, 2, self.num_sentences, self.sentence_tokens - 1)
        rows = np.arange(self.num_sentences)
        return [batch_of(*sides, rows) for sides in rng.integers(4, self.num_subwords, shape)]

    @property
    def label(self) -> str:
        return f"{self.size.replace('/', '_')}_{self.sentence_tokens}"

    def call(self, name: str) -> Runner:
        """Return a call that makes one update of a new model."""
        step, batch = self.step(name, self.model()), self.batches()[0]
        return lambda: step(batch)

    def step(self, name: str, model: Seq2Seq) -> Step:
        loss = LabelSmoothedCrossEntropy(self.num_subwords, (PAD_ID, BOS_ID), SMOOTHING)
        return project_step(model, loss.to(choose_device(self.device)), name)


def workloads(sizes: list[str], sentence_tokens: list[int], **common: Any) -> list[LengthWorkload]:
    """Return a workload for each model and length.

    Raises InputError for an unknown experiment and for a length that a model cannot read, before anything is measured.
    """
    configs = {size: experiment(size) for size in sizes}
    cells = product(configs.items(), sentence_tokens)
    made = [LengthWorkload(size, tokens, config=config, **common) for (size, config), tokens in cells]
    check_positions({workload.size: workload for workload in made}.values(), sentence_tokens)
    return made


def experiment(size: str) -> dict[str, Any]:
    """Return the config of an experiment. Raises InputError if it does not exist or is invalid."""
    try:
        return recipe(size)
    except InputError as error:
        raise InputError(f"sizes: cannot measure {size}: {error}") from None


def check_positions(systems: Iterable[LengthWorkload], sentence_tokens: list[int]) -> None:
    """Raise InputError if a model has fewer learned positions than a sentence has tokens."""
    for system in systems:
        with torch.device("meta"):  # shapes only
            model = system.build_model()
        limits = [part.max_tokens for part in (model.encoder, model.decoder) if part.max_tokens is not None]
        too_long = [tokens for tokens in sentence_tokens if limits and tokens > min(limits)]
        if too_long:
            raise InputError(
                f"sentence_tokens: found {max(too_long)}, but {system.size} has {min(limits)} learned positions: remove"
                " the longer lengths, or remove the model from sizes"
            )


@dataclass(frozen=True)
class LengthFigure:
    """One line of the table. Rates use the median time over the repetitions.

    Args:
        tokens_per_second: Source and target tokens with EOS.
        memory_mib: Peak memory of a separate process minus weights, gradients and optimizer state, or None.
    """

    size: str
    sentence_tokens: int
    num_sentences: int
    system: str
    seconds: list[float]
    step_milliseconds: float
    tokens_per_second: float
    memory_mib: float | None


COLUMNS = (
    Column("system", "size", 22),
    Column("tokens", "sentence_tokens", 6, "d"),
    Column("sentences", "num_sentences", 9, "d"),
    Column("precision", "system", 9),
    Column("step ms", "step_milliseconds", 9, ".1f"),
    Column("tokens/s", "tokens_per_second", 10, ".0f"),
    Column("memory MiB", "memory_mib", 11, ".0f"),
)


def measure(workload: LengthWorkload, precisions: list[str], repetitions: int, memory: bool) -> list[LengthFigure]:
    """Time each precision in turns."""
    batches = workload.batches()
    runners = {name: updates(workload.step(name, workload.model()), batches) for name in precisions}
    seconds = timed_in_turns(runners, repetitions, workload.device)
    del runners
    num_tokens = sum(batch.num_real_tokens for batch in batches)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        LengthFigure(
            workload.size,
            workload.sentence_tokens,
            workload.num_sentences,
            name,
            seconds[name],
            1000 * medians[name] / len(batches),
            num_tokens / medians[name],
            in_own_process(memory_mib, workload, name) if memory else None,
        )
        for name in precisions
    ]
