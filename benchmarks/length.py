"""Times updates of training over the length of sentences, for systems whose recipes are experiments.

A batch holds the same number of tokens at every length, in fewer sentences the longer they are. So the products with
weights stay the same; what grows is what a system spends on steps in sequence or on pairs of positions.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Runner, in_own_process, timed_in_turns
from benchmarks.table import Column
from benchmarks.training import PRECISIONS, SMOOTHING, Step, memory_mib, project_step, updates
from gnmt.batch import BOS_ID, PAD_ID, Batch
from gnmt.config.build import build
from gnmt.config.cli import recipe
from gnmt.data.batching import batch_of
from gnmt.device import choose_device
from gnmt.errors import InputError
from gnmt.model.seq2seq import Seq2Seq
from gnmt.training.objective import LabelSmoothedCrossEntropy

__all__ = ["COLUMNS", "LENGTHS", "PRECISIONS", "LengthFigure", "LengthWorkload", "measure", "workloads"]

LENGTHS = ("equal",)


@dataclass(frozen=True)
class LengthWorkload:
    """Updates of one system on sentences of one length.

    size: the experiment whose model is trained, from random weights. sentence_tokens: of each side, with EOS.
    batch_tokens: of both sides together. num_batches: of one measurement, an update each.
    config: the experiment's, whole.
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
    def num_pieces(self) -> int:
        return int(self.config["tokenizer"]["vocab_size"])

    def model(self) -> Seq2Seq:
        """In training mode, on the device."""
        torch.manual_seed(self.seed)
        return self.build_model().to(choose_device(self.device)).train()

    def build_model(self) -> Seq2Seq:
        """On torch's default device."""
        sizes = {"source_vocabulary_size": self.num_pieces, "target_vocabulary_size": self.num_pieces}
        model: Seq2Seq = build(self.config["model"], **sizes)
        return model

    def batches(self) -> list[Batch]:
        """Random pieces."""
        rng = np.random.default_rng(self.seed)
        shape = (self.num_batches, 2, self.num_sentences, self.sentence_tokens - 1)
        rows = np.arange(self.num_sentences)
        return [batch_of(*sides, rows) for sides in rng.integers(4, self.num_pieces, shape)]

    @property
    def label(self) -> str:
        return f"{self.size.replace('/', '_')}_{self.sentence_tokens}"

    def call(self, name: str) -> Runner:
        """One update of a model of its own."""
        step, batch = self.step(name, self.model()), self.batches()[0]
        return lambda: step(batch)

    def step(self, name: str, model: Seq2Seq) -> Step:
        loss = LabelSmoothedCrossEntropy(self.num_pieces, (PAD_ID, BOS_ID), SMOOTHING)
        return project_step(model, loss.to(choose_device(self.device)), name)


def workloads(sizes: list[str], sentence_tokens: list[int], **common: Any) -> list[LengthWorkload]:
    """Every system at every length.

    Raises InputError for what is no experiment and for a length that one of them cannot read: before anything is
    measured, since an error in the last cell would cost the figures of all others.
    """
    configs = {size: experiment(size) for size in sizes}
    cells = product(configs.items(), sentence_tokens)
    made = [LengthWorkload(size, tokens, config=config, **common) for (size, config), tokens in cells]
    check_positions({workload.size: workload for workload in made}.values(), sentence_tokens)
    return made


def experiment(size: str) -> dict[str, Any]:
    """Its config. Raises InputError where there is none of that name, or it is wrong."""
    try:
        return recipe(size)
    except InputError as error:
        raise InputError(f"sizes: {size} is no experiment that can be measured: {error}") from None


def check_positions(systems: Iterable[LengthWorkload], sentence_tokens: list[int]) -> None:
    """Raises InputError where a system has learned fewer positions than a sentence has tokens."""
    for system in systems:
        with torch.device("meta"):  # for the shapes alone
            model = system.build_model()
        limits = [part.max_tokens for part in (model.encoder, model.decoder) if part.max_tokens is not None]
        too_long = [tokens for tokens in sentence_tokens if limits and tokens > min(limits)]
        if too_long:
            raise InputError(
                f"sentence_tokens: found {max(too_long)}, but {system.size} has learned {min(limits)} positions: leave "
                "longer sentences out, or take it out of sizes"
            )


@dataclass(frozen=True)
class LengthFigure:
    """One line of the table; rates are of the median over the repetitions.

    sentence_tokens, num_sentences: of the batch. tokens_per_second: source and target with EOS. memory_mib: the most
    that a process of its own held, less weights, gradients and optimizer state; None where not asked for.
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
    """Times every precision in turns."""
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
