"""Time translation of ids by the plain baseline and by gnmt's search, in one process and in turns.

EOS is suppressed, and each translation ends at a limit given by its source length. All systems therefore take the same
steps whatever the weights are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.baseline import Baseline
from benchmarks.measuring import Column, Runner, in_own_process, peak_resident_mib, timed, timed_in_turns
from gnmt.batch import BOS_ID, EOS_ID, PAD_ID
from gnmt.checkpoint.load import load_model
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.engine.search_batch import ResidentMemory
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.search import search
from gnmt.device import choose_device, choose_precision
from gnmt.model.attention import AdditiveAttention
from gnmt.model.recurrent.encoder import LSTMEncoder
from gnmt.model.recurrent.gnmt_decoder import GNMTDecoder
from gnmt.model.seq2seq import Seq2Seq

Sources = Sequence[Sequence[int]]

BASELINE = "baseline"
# Encoder layers, decoder layers, width, subwords.
SIZES = {"gnmt": (4, 4, 1024, 32_000), "multi30k": (2, 2, 256, 10_000), "tiny": (2, 2, 16, 200)}
LENGTHS = ("equal", "mixed")
# Without tf32, a setting of the process that would also apply to the baseline.
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True)
class Workload:
    """A model and the sources to translate. Targets are as long as their sources.

    Args:
        size: A key of SIZES, with random weights, or the path of a checkpoint.
        lengths: `equal`: all sources have `source_tokens` tokens; `mixed`: log-normal lengths around that.
    """

    size: str
    lengths: str
    beam: int
    batch_size: int
    num_batches: int
    source_tokens: int
    seed: int
    device: str
    trusted_packages: tuple[str, ...] = ()

    @property
    def options(self) -> SearchOptions:
        never = 1_000_000  # suppresses EOS up to the limit
        return SearchOptions(beam_size=self.beam, max_length_factor=1.0, max_length_offset=0, min_length=never)

    def model(self) -> Seq2Seq:
        """Return the model in evaluation mode, on the device."""
        device = choose_device(self.device)
        if self.size not in SIZES:
            return load_model(self.size, device, self.trusted_packages).model.eval()
        torch.manual_seed(self.seed)
        encoder_layers, decoder_layers, width, num_subwords = SIZES[self.size]
        encoder = LSTMEncoder(width, width, encoder_layers)
        attention = AdditiveAttention(width, encoder.output_size, width)
        decoder = GNMTDecoder(width, width, decoder_layers, attention)
        return Seq2Seq(encoder, decoder, num_subwords, num_subwords, width).to(device).eval()

    def sources(self, vocabulary_size: int) -> list[list[int]]:
        """Return random ids with EOS, sorted by length, so that a batch contains similar lengths."""
        generator = torch.Generator().manual_seed(self.seed)
        count = self.batch_size * self.num_batches
        lengths = torch.full((count,), self.source_tokens)
        if self.lengths == "mixed":
            spread = torch.randn(count, generator=generator).mul(0.5).exp()
            lengths = (spread * self.source_tokens).round().long().clamp(2, 4 * self.source_tokens)
        ids = [torch.randint(4, vocabulary_size, (length - 1,), generator=generator) for length in lengths.tolist()]
        return sorted(([*row.tolist(), EOS_ID] for row in ids), key=len)

    @property
    def label(self) -> str:
        return f"{Path(self.size).stem}_{self.lengths}_{self.beam}_{self.batch_size}"

    def call(self, name: str) -> Runner:
        """Return a call of `system` with a new model and all sources."""
        model = self.model()
        return partial(self.system(name, model), self.sources(model.source_embedding.num_embeddings))

    def system(self, name: str, model: Seq2Seq) -> Callable[[Sources], object]:
        """Return a function that translates sources, by the baseline or by search in a precision."""
        device = choose_device(self.device)
        suppressed = (PAD_ID, BOS_ID)
        if name == BASELINE:
            plain = Baseline(model, device)
            return lambda sources: plain.search(sources, self.options, suppressed, self.batch_size)
        fast = inference_copy(model, choose_precision(name, device))
        resident = ResidentMemory() if device.type == "cuda" else None  # for all calls, as in a Translator
        return lambda sources: search(
            fast,
            sources,
            self.options,
            device=device,
            suppressed=suppressed,
            batch_size=self.batch_size,
            resident=resident,
        )


@dataclass(frozen=True)
class Figure:
    """One line of the table. Rates are medians over the repetitions; tokens are target tokens.

    Args:
        ratio: Median time of the baseline divided by this system's.
        peak_mib: Peak resident memory of a separate process, including the original model (on CUDA: allocated device
            memory); None if not measured.
        latency_p50_ms: Median time of a sentence that is translated alone; None for other batch sizes than 1.
        latency_p99_ms: The time that 99 of 100 sentences do not exceed; None for other batch sizes than 1.
    """

    size: str
    lengths: str
    beam: int
    batch_size: int
    system: str
    seconds: list[float]
    sentences_per_second: float
    tokens_per_second: float
    ratio: float
    peak_mib: float | None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None


COLUMNS = (
    Column("size", "size", 12),
    Column("lengths", "lengths", 7),
    Column("beam", "beam", 4, "d"),
    Column("batch", "batch_size", 5, "d"),
    Column("system", "system", 9),
    Column("sentences/s", "sentences_per_second", 11, ".2f"),
    Column("tokens/s", "tokens_per_second", 11, ".1f"),
    Column("ratio", "ratio", 7, ".2f"),
    Column("peak MiB", "peak_mib", 9, ".0f"),
    Column("p50 ms", "latency_p50_ms", 8, ".1f"),
    Column("p99 ms", "latency_p99_ms", 8, ".1f"),
)


def workloads(
    sizes: list[str], lengths: list[str], beams: list[int], batch_sizes: list[int], **common: Any
) -> list[Workload]:
    """Return a workload for each combination of the lists; common: the other fields."""
    return [Workload(*cell, **common) for cell in product(sizes, lengths, beams, batch_sizes)]


def measure(workload: Workload, precisions: list[str], repetitions: int, memory: bool) -> list[Figure]:
    """Time the baseline and each precision in turns."""
    model = workload.model()
    names = [BASELINE, *precisions]
    sources = workload.sources(model.source_embedding.num_embeddings)
    systems = {name: workload.system(name, model) for name in names}
    runners = {name: partial(system, sources) for name, system in systems.items()}
    seconds = timed_in_turns(runners, repetitions, workload.device)
    latencies = {}
    if workload.batch_size == 1:
        latencies = {name: latencies_ms(system, sources, workload.device) for name, system in systems.items()}
    del runners, systems, model
    num_tokens = sum(map(len, sources))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        Figure(
            **{key: getattr(workload, key) for key in ("size", "lengths", "beam", "batch_size")},
            system=name,
            seconds=seconds[name],
            sentences_per_second=len(sources) / medians[name],
            tokens_per_second=num_tokens / medians[name],
            ratio=medians[BASELINE] / medians[name],
            peak_mib=peak_mib(workload, name) if memory else None,
            **latencies.get(name, {}),
        )
        for name in names
    ]


def latencies_ms(system: Callable[[Sources], object], sources: Sources, device: str) -> dict[str, float]:
    """Return the latencies of `Figure`, over at least 100 translations of one source at a time."""
    rounds = math.ceil(100 / len(sources))
    times = sorted(1000 * timed(partial(system, [source]), device) for _ in range(rounds) for source in sources)
    return {
        "latency_p50_ms": statistics.median(times),
        "latency_p99_ms": times[math.ceil(0.99 * len(times)) - 1],
    }


def peak_mib(workload: Workload, name: str) -> float:
    """Return the peak memory of a new process that builds the model and translates once."""
    return in_own_process(_peak_here, workload, name)


def _peak_here(workload: Workload, name: str) -> float:
    workload.call(name)()
    device = choose_device(workload.device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_mib()
