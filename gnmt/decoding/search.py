"""Beam search (Wu et al. 2016, section 7) and sampling, tensorized over sentences and hypotheses.

`search_as_completed` is the loop: waiting sentences enter the active batch, all of its hypotheses are extended by a
token (`gnmt.decoding.beam.advance`), and finished sentences leave it. Each step takes the best 2K candidates of a
sentence. A hypothesis has one EOS candidate, so at most K of the 2K end, and the best K of the others are always among
them.

- A candidate that ends with EOS and is among the best K finishes and is added to the sentence's results.
- The best K candidates without EOS stay active, so finished hypotheses never narrow the beam.

Active hypotheses of a sentence have the same length and compete by log P; finished ones compete by equation 14
(gnmt/decoding/scoring.py). Ties are broken in favor of the better parent, then of the lower token id, so the result is
a function of the input alone.

Batching is continuous: waiting sentences enter in groups as others leave, so the model has a full batch whatever the
lengths of the outputs (gnmt/decoding/engine/search_batch.py). Limit, results, stopping and random numbers of a sentence
do not depend on other sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gnmt.batch import EOS_ID, padded
from gnmt.decoding.beam import ActiveBatch, Sentences, advance
from gnmt.decoding.engine.cuda_graphs import search_stream
from gnmt.decoding.engine.search_batch import CompactBatch, ResidentBatch, ResidentMemory, SearchBatch, Shape, Step
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import force_decode
from gnmt.device import copied_to
from gnmt.errors import DivergedError
from gnmt.model.interfaces import SearchModel

# The active batch holds at most batch_size times this many padded source tokens.
LONG_SOURCE_TOKENS = 100

# Waiting sentences enter when they make up this fraction of the active batch, because the encoder is faster for many
# sentences, and joining copies the whole batch.
SMALLEST_GROUP = 1 / 4


@dataclass(frozen=True)
class Hypothesis:
    """One result of search.

    Attributes:
        tokens: Target ids without BOS, with EOS if finished. |Y| is their number.
        log_prob: log P(Y|X), natural logarithm.
        score: Equation 14 of Wu et al. 2016.
        finished: False if the length limit cut it off.
        attention_TS: fp32 on the CPU, one row per token and one column per source token with EOS; None if not recorded.
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    finished: bool
    attention_TS: Tensor | None = None


@dataclass(frozen=True)
class SearchResult:
    """The hypotheses of one sentence and the cost of its search.

    Attributes:
        hypotheses: 1 to options.n_best of them, the best first, or the samples in the order of their index. Empty if no
            token was possible: min_length and no_repeat_ngram together suppressed all, or the prefix has probability 0.
        steps: Decoder steps taken.
        best_found_at: Step in which hypotheses[0] finished. The later steps only proved that it is the best.
    """

    hypotheses: list[Hypothesis]
    steps: int
    best_found_at: int


def search(
    model: SearchModel, sources: Sequence[Sequence[int]], options: SearchOptions, **settings: Any
) -> list[SearchResult]:
    """Return the results in the order of `sources`. The arguments are those of `search_as_completed`."""
    found = dict(search_as_completed(model, sources, options, **settings))
    return [found[index] for index in range(len(sources))]


@torch.inference_mode()
def search_as_completed(
    model: SearchModel,
    sources: Sequence[Sequence[int]],
    options: SearchOptions,
    *,
    device: torch.device,
    suppressed: Sequence[int] = (),
    prefixes: Sequence[Sequence[int]] | None = None,
    keys: Sequence[int] | None = None,
    with_attention: bool = False,
    batch_size: int = 64,
    resident: ResidentMemory | None = None,
) -> Iterator[tuple[int, SearchResult]]:
    """Search the translations of each source, and yield its index and its result as soon as its search is over.

    Finished hypotheses are returned. If none finished within the length limit, the active ones are returned with
    finished=False. All samples are returned, and each has its own flag.

    On CUDA, the stream of the search stays the current one between two results.

    Args:
        model: A model in evaluation mode, or an ensemble.
        sources: Source ids with EOS. They enter the active batch in this order, so sorting them by length saves
            padding.
        options: The search options.
        device: The model's device.
        suppressed: Ids that are never produced. They are masked after the log-softmax.
        prefixes: The target ids, without BOS and EOS, that the translation of each source starts with. They are part of
            tokens, log_prob and score, and may hold suppressed ids.
        keys: The seed of each source's samples, by default its index. Equal keys draw equal random numbers.
        with_attention: Record attention in the hypotheses.
        batch_size: Largest number of sentences in the active batch, which also holds at most LONG_SOURCE_TOKENS *
            batch_size padded source tokens. A sentence longer than that is searched alone.
        resident: Memory and CUDA graphs of earlier searches with this model. On CUDA without it, this search makes its
            own; on a CPU with it, the search runs as on CUDA, without graphs.

    Raises:
        DivergedError: The model's probabilities are NaN.
        InputError: options.coverage_beta > 0 and the model has no attention.
    """
    assert EOS_ID not in suppressed, "a search without EOS never finishes"
    assert batch_size >= 1
    prefixes = [()] * len(sources) if prefixes is None else prefixes
    keys = range(len(sources)) if keys is None else keys
    assert len(prefixes) == len(keys) == len(sources), "one prefix and one key for each source"
    assert not any(EOS_ID in prefix for prefix in prefixes), "a prefix holds no EOS"
    suppressed_N = torch.tensor(suppressed, dtype=torch.long, device=device)
    step: Step = partial(advance, model, suppressed_N=suppressed_N, options=options)
    with search_stream(device):
        if resident is None and device.type == "cuda":
            resident = ResidentMemory()
        kind = options, tuple(suppressed), with_attention
        batch: SearchBatch = (
            CompactBatch(step) if resident is None else ResidentBatch(resident, step, kind, options.length_limit)
        )
        run = _Search(model, batch, sources, prefixes, keys, options, device)
        while run.unfinished():
            run.admit(batch_size, with_attention)
            for _ in range(batch.steps_between_checks):
                run.step()
            yield from run.results()
            run.release(batch_size)
        yield from run.results()
        batch.close()


class _Search:
    """The state of one search. A sentence is identified by its index in `sources`.

    Attributes:
        limits: Length limit of each sentence.
        active: The sentences in the active batch.
        released: Sentences that have left the active batch, with a function that waits for their results.
        num_admitted: Number of sentences that have entered. The next one to enter has this index.
        num_steps: Steps taken so far.
        entered: Number of steps taken before each sentence entered.
        last_forced: Last step in which a sentence of the active batch is within its prefix.
        next_limit: First step in which a sentence of the active batch may reach its length limit.
    """

    def __init__(
        self,
        model: SearchModel,
        batch: SearchBatch,
        sources: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        keys: Sequence[int],
        options: SearchOptions,
        device: torch.device,
    ) -> None:
        self.model = model
        self.batch = batch
        self.sources = sources
        self.prefixes = prefixes
        self.keys = keys
        self.options = options
        self.device = device
        self.limits = [
            options.length_limit(len(source), len(prefix)) for source, prefix in zip(sources, prefixes, strict=True)
        ]
        self.active: list[int] = []
        self.released: list[tuple[list[int], Callable[[], ActiveBatch]]] = []
        self.num_admitted = 0
        self.num_steps = 0
        self.entered: dict[int, int] = {}
        self.last_forced = self.next_limit = 0

    def unfinished(self) -> bool:
        """Return True while a sentence is active or waiting."""
        return bool(self.active) or self.num_admitted < len(self.sources)

    def admit(self, batch_size: int, with_attention: bool) -> None:
        """Move waiting sentences into the active batch if enough of them fit, or all of them."""
        group = self._waiting_group(batch_size)
        is_small = len(group) < SMALLEST_GROUP * (len(self.active) + len(group))
        if not group or (is_small and group.stop < len(self.sources)):
            return
        limits = [self.limits[index] for index in group]
        sentences = Sentences.start(
            copied_to(self.device, torch.tensor(limits)),
            copied_to(self.device, torch.tensor([self.keys[index] for index in group])),
            padded([self.prefixes[index] for index in group], self.device),
            self.options,
        )
        source = padded([self.sources[index] for index in group], self.device)
        entering = ActiveBatch.start(self.model, source, sentences, max(limits) + 1, self.options, with_attention)
        self.active += group
        self.entered.update((index, self.num_steps) for index in group)
        self.num_admitted = group.stop
        self.batch.enter(group, entering, self._needed_shape(len(self.active)))
        self._update_flags()

    def _waiting_group(self, batch_size: int) -> range:
        """Return the indices of the waiting sentences that fit into the active batch; see `search_as_completed`."""
        num, end = len(self.active), self.num_admitted
        widest = max((len(self.sources[index]) for index in self.active), default=0)
        while end < len(self.sources) and num < batch_size:
            widest = max(widest, len(self.sources[end]))
            if num and (num + 1) * widest > batch_size * LONG_SOURCE_TOKENS:
                break
            num, end = num + 1, end + 1
        return range(self.num_admitted, end)

    def _needed_shape(self, rows: int) -> Shape:
        """Return the smallest shape in which the active sentences fit, with the given number of rows."""
        return Shape(
            rows,
            max((len(self.sources[index]) for index in self.active), default=1),
            max((self.limits[index] for index in self.active), default=1) + 1,
            max((len(self.prefixes[index]) for index in self.active), default=0),
        )

    def _update_flags(self) -> None:
        """Compute last_forced and next_limit, which change only when sentences enter or leave."""
        entered, active = self.entered, self.active
        self.last_forced = max((entered[index] + len(self.prefixes[index]) for index in active), default=0)
        self.next_limit = min((entered[index] + self.limits[index] for index in active), default=0)

    def step(self) -> None:
        """Extend all active hypotheses by one token."""
        self.num_steps += 1
        self.batch.step(some_forced=self.num_steps <= self.last_forced, some_at_limit=self.num_steps >= self.next_limit)

    def release(self, batch_size: int) -> None:
        """Remove finished sentences from the active batch."""
        finished = self.batch.finished()
        if not finished:
            return
        gone = set(finished)
        self.active = [index for index in self.active if index not in gone]
        self._update_flags()
        num_waiting = len(self.sources) - self.num_admitted
        needed = self._needed_shape(len(self.active) + min(num_waiting, batch_size - len(self.active)))
        num_steps = max((self.num_steps - self.entered[index] for index in self.active), default=0)
        self.released.append((finished, self.batch.leave(finished, needed, num_steps)))

    def results(self) -> Iterator[tuple[int, SearchResult]]:
        """Yield the index and the result of each sentence that has been released."""
        released, self.released = self.released, []
        for indices, read in released:
            finished = read()
            found = search_results(finished, self.options.n_best)
            for row, (index, result) in enumerate(zip(indices, found, strict=True)):
                if not result.hypotheses:
                    self._check_numbers(index, finished.active.tokens_BKT[row, 0, : result.steps + 1])
                yield index, result

    def _check_numbers(self, index: int, tokens_T: Tensor) -> None:
        """Raise DivergedError if the model's probabilities are NaN for a sentence without a result.

        A sentence has no result either because all tokens were suppressed or because of NaN, which search treats as
        impossible. The model is run again to distinguish the two.

        Args:
            index: The sentence.
            tokens_T: BOS and the tokens of one of its hypotheses.
        """
        source, target = padded([self.sources[index]], self.device), padded([tokens_T.tolist()], self.device)
        found = force_decode(self.model, source, target, replace(self.options, coverage_beta=0.0))
        if found.token_log_probs_BT.isnan().any():
            raise DivergedError(
                "the model's probabilities are not numbers (NaN), so its weights diverged in training: use an earlier "
                "checkpoint"
            )


def search_results(batch: ActiveBatch, n_best: int) -> list[SearchResult]:
    """Return the results of sentences whose search is over. batch: on the CPU, from `SearchBatch.leave`."""
    best = batch.results
    tokens_BKT = best.tokens_BKT[:, :n_best].tolist()
    lengths_BK = best.length_BK[:, :n_best].tolist()
    log_probs_BK = best.log_prob_BK[:, :n_best].tolist()
    scores_BK = best.score_BK[:, :n_best].tolist()
    steps_B, num_source_tokens_B = batch.sentences.length_B.tolist(), batch.memory.mask_BS.sum(1).tolist()
    attention_BKTS = attention_of_results(batch, n_best)
    results = []
    for row, steps in enumerate(steps_B):
        hypotheses = []
        for rank, (length, log_prob) in enumerate(zip(lengths_BK[row], log_probs_BK[row], strict=True)):
            if not log_prob > -torch.inf:  # empty; NaN counts as empty too
                continue
            tokens = tuple(tokens_BKT[row][rank][1 : length + 1])
            attention_TS = None
            if attention_BKTS is not None:  # cloned, so that it does not keep the whole batch's attention in memory
                attention_TS = attention_BKTS[row, rank, :length, : num_source_tokens_B[row]].clone()
            finished = tokens[-1] == EOS_ID
            hypotheses.append(Hypothesis(tokens, log_prob, scores_BK[row][rank], finished, attention_TS))
        best_found_at = len(hypotheses[0].tokens) if hypotheses else steps
        results.append(SearchResult(hypotheses, steps, best_found_at))
    return results


def attention_of_results(batch: ActiveBatch, n_best: int) -> Tensor | None:
    """Return the attention of the n_best results, fp32 [B, n_best, T, S] on the CPU, or None if it was not recorded.

    T is the largest number of steps that a sentence has taken. The attention of each token is gathered from the beam
    index that produced it. All results are copied at once, because each copy synchronizes with the device.
    """
    if not batch.attention_BTKS.shape[3]:
        return None
    num_steps = int(batch.sentences.length_B.max())
    beam_index_BKT = batch.results.beam_index_BKT[:, :n_best, 1 : num_steps + 1]
    rows_B11 = torch.arange(len(beam_index_BKT), device=beam_index_BKT.device)[:, None, None]
    steps_T = torch.arange(num_steps, device=beam_index_BKT.device)
    return batch.attention_BTKS[rows_B11, steps_T, beam_index_BKT].cpu()
