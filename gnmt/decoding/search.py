"""Beam search (section 7 of Wu et al. 2016) and sampling, tensorized over sentences and hypotheses.

One step asks the model for the log-probabilities of the next token of every hypothesis and takes the best
2K candidates of each sentence. That is enough: a hypothesis has one EOS candidate, so at most K of the 2K end,
and the K best others are always among them. From these

- a candidate that ends with EOS and is among the best K finishes, and goes to the sentence's results;
- the K best candidates that do not end stay active, so finished hypotheses never narrow the beam.

Active hypotheses of a sentence all have the same length and compete by log P; finished ones compete by
equation 14 (gnmt/decoding/scoring.py). Ties go to the better parent hypothesis, then to the lower token id, so the
result is a function of the input alone.

Batching is continuous: a sentence that is done leaves, and waiting ones enter in groups, so the model always has a
full batch whatever the lengths of the outputs. Nothing that belongs to one sentence (its limit, its results, its
stopping, its random numbers) looks at another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gnmt.batch import EOS_ID, padded
from gnmt.decoding.beam import ActiveBatch, Sentences, advance, compact_order
from gnmt.decoding.engine.cuda_graphs import Step, replayed
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import force_decode
from gnmt.errors import InputError
from gnmt.model.interfaces import SearchModel


@dataclass(frozen=True)
class Hypothesis:
    """One result of search.

    tokens: without BOS, with EOS where finished; |Y| is their number. log_prob: log P(Y|X). score: equation 14.
    attention_TS: fp32 on the CPU, a row for each token and a column for each source token with EOS, or None.
    finished: False where the length limit cut it off.
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    finished: bool
    attention_TS: Tensor | None = None


@dataclass(frozen=True)
class SearchResult:
    """What search found for a sentence, and how long it took.

    hypotheses: 1 to options.n_best, the best first, or samples in the order drawn; none where no token may follow, as
    decoding.min_length and decoding.no_repeat_ngram can have it together, or a prefix is impossible. steps: decoder
    steps taken. best_found_at: the step in which the first of them was finished; steps - best_found_at were only needed
    to know that nothing better comes.
    """

    hypotheses: list[Hypothesis]
    steps: int
    best_found_at: int


def collect(flight: ActiveBatch, n_best: int) -> list[SearchResult]:
    """The results of sentences whose search is over."""
    some = flight.results
    columns = (some.tokens_BKT[:, :n_best], some.length_BK, some.log_prob_BK, some.score_BK)
    rows = zip(*(tensor[:, :n_best].tolist() for tensor in columns), strict=True)
    steps, num_source_tokens = flight.sentences.length_B.tolist(), flight.memory.mask_BS.sum(1).tolist()
    attention_BKTS = attention_of_results(flight, n_best)
    results = []
    for row, (tokens_KT, lengths_K, log_probs_K, scores_K) in enumerate(rows):
        hypotheses = []
        for entry, (length, log_prob) in enumerate(zip(lengths_K, log_probs_K, strict=True)):
            if log_prob > -torch.inf:
                tokens = tuple(tokens_KT[entry][1 : length + 1])
                attention_TS = None
                if attention_BKTS is not None:  # a copy, which does not hold that of all the others
                    attention_TS = attention_BKTS[row, entry, :length, : num_source_tokens[row]].clone()
                finished = tokens[-1] == EOS_ID
                hypotheses.append(Hypothesis(tokens, log_prob, scores_K[entry], finished, attention_TS))
        best_found_at = len(hypotheses[0].tokens) if hypotheses else steps[row]
        results.append(SearchResult(hypotheses, steps[row], best_found_at))
    return results


def attention_of_results(flight: ActiveBatch, n_best: int) -> Tensor | None:
    """What the best results looked at, fp32 [B, n_best, T, S] on the CPU, T the most steps that one has taken.

    In each step it is what the entry of the beam that the result came from looked at. All in one copy, which a device
    is waited for once. None where attention was not asked for.
    """
    if not flight.attention_BTKS.shape[3]:
        return None
    num_steps = int(flight.sentences.length_B.max())
    beam_index_BKT = flight.results.beam_index_BKT[:, :n_best, 1 : num_steps + 1]
    rows_B11 = torch.arange(len(beam_index_BKT), device=beam_index_BKT.device)[:, None, None]
    steps_T = torch.arange(num_steps, device=beam_index_BKT.device)
    return flight.attention_BTKS[rows_B11, steps_T, beam_index_BKT].cpu()


# Sentences in flight hold at most so many padded source tokens for each of batch_size.
LONG_SOURCE_TOKENS = 100

# Newcomers enter where they make up this part of those then in flight: joining copies what is in flight.
_SMALLEST_GROUP = 1 / 4

# Steps until the next look at which sentences are done, by kind of device. Looking waits for a CUDA device, and a few
# steps of sentences that are done cost less than that; a CPU has nothing to wait for.
STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 2}

# The part of the sentences in flight that must be done before they leave, by kind of device. On CUDA other shapes want
# another graph, while steps with some rows that are done take as long; on a CPU every row costs.
SMALLEST_DEPARTURE = {"cpu": 0.0, "cuda": 1 / 2}


@torch.inference_mode()
def search(
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
    on_done: Callable[[int, SearchResult], None] | None = None,
) -> list[SearchResult]:
    """The result of each source, in the order of `sources`.

    Hypotheses are finished ones, or, only where none finished within the length limit, the active ones, flagged.
    Samples are flagged one by one.

    sources: ids of pieces and EOS. They enter in this order; sorted by length, least is padded. At most batch_size
    of them, holding at most LONG_SOURCE_TOKENS * batch_size padded tokens, are in flight (one is, however long).
    device: where the model is. The model must be in evaluation mode.
    suppressed: ids that are never produced, masked after the log-softmax.
    prefixes: target ids, without BOS and EOS, that the translation of each source starts with. They count in tokens,
    log_prob and score; nothing forbids them.
    keys: what tells apart sentences in sampling; equal ones draw the same numbers. By default the positions.
    on_done: called with a source's position and its result as soon as its search is over.
    Raises InputError for options.coverage_beta > 0 with a model without attention, and for a model whose
    probabilities are not numbers.
    """
    assert EOS_ID not in suppressed, "a search without EOS never finishes"
    assert batch_size >= 1
    prefixes = [()] * len(sources) if prefixes is None else prefixes
    keys = range(len(sources)) if keys is None else keys
    assert len(prefixes) == len(keys) == len(sources), "one prefix and one key for each source"
    assert not any(EOS_ID in prefix for prefix in prefixes), "a prefix ends nothing"
    suppressed_N = torch.tensor(suppressed, dtype=torch.long, device=device)
    check_interval = STEPS_BETWEEN_CHECKS.get(device.type, max(STEPS_BETWEEN_CHECKS.values()))
    with replayed(partial(advance, model, suppressed_N=suppressed_N, options=options), device) as step:
        run = _Search(model, step, sources, prefixes, keys, options, suppressed_N)
        while run.unfinished():
            run.admit(batch_size, with_attention)
            for _ in range(check_interval):
                run.step()
            for index in run.release():
                if on_done is not None:
                    on_done(index, run.results[index])
        return [run.results[index] for index in range(len(sources))]


class _Search:
    """The sentences that wait, that are in flight, and that are done, by position in `sources`.

    flight: None or one row for each of in_flight. entered: the number of the step before which each came.
    last_forced, next_limit: the last step in which one of in_flight is within its prefix, and the first in which one
    may reach its limit.
    """

    def __init__(
        self,
        model: SearchModel,
        take_step: Step,
        sources: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        keys: Sequence[int],
        options: SearchOptions,
        suppressed_N: Tensor,
    ) -> None:
        self.model = model
        self.take_step = take_step
        self.sources = sources
        self.prefixes = prefixes
        self.keys = keys
        self.options = options
        self.suppressed_N = suppressed_N
        self.limits = [
            options.length_limit(len(source), len(prefix)) for source, prefix in zip(sources, prefixes, strict=True)
        ]
        self.num_admitted = 0
        self.num_steps = 0
        self.flight: ActiveBatch | None = None
        self.in_flight: list[int] = []
        self.entered: dict[int, int] = {}
        self.results: dict[int, SearchResult] = {}
        self.last_forced = self.next_limit = 0

    def unfinished(self) -> bool:
        return bool(self.in_flight) or self.num_admitted < len(self.sources)

    def admit(self, batch_size: int, with_attention: bool) -> None:
        """Lets waiting sentences enter: as many as fit, once they are enough to be worth it, or are all that wait."""
        group = self._group(batch_size)
        few = len(group) < _SMALLEST_GROUP * (len(self.in_flight) + len(group))
        if not group or (few and group.stop < len(self.sources)):
            return
        device, options = self.suppressed_N.device, self.options
        limits = [self.limits[index] for index in group]
        sentences = Sentences.start(
            torch.tensor(limits, device=device),
            torch.tensor([self.keys[index] for index in group], device=device),
            padded([self.prefixes[index] for index in group], device),
            options,
        )
        source = padded([self.sources[index] for index in group], device)
        newcomers = ActiveBatch.start(self.model, source, sentences, max(limits) + 1, options, with_attention)
        self.flight = newcomers if self.flight is None else ActiveBatch.join(self.flight, newcomers)
        self.in_flight += group
        self.entered.update((index, self.num_steps) for index in group)
        self.num_admitted = group.stop
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Notes what steps need to know of those in flight, which only changes when sentences enter or leave."""
        entered, in_flight = self.entered, self.in_flight
        self.last_forced = max((entered[index] + len(self.prefixes[index]) for index in in_flight), default=0)
        self.next_limit = min((entered[index] + self.limits[index] for index in in_flight), default=0)

    def _group(self, batch_size: int) -> range:
        """The waiting sentences that fit beside those in flight: by number and by padded tokens."""
        num, end = len(self.in_flight), self.num_admitted
        widest = max((len(self.sources[index]) for index in self.in_flight), default=0)
        while end < len(self.sources) and num < batch_size:
            widest = max(widest, len(self.sources[end]))
            if num and (num + 1) * widest > batch_size * LONG_SOURCE_TOKENS:
                break
            num, end = num + 1, end + 1
        return range(self.num_admitted, end)

    def step(self) -> None:
        """One step of all sentences in flight."""
        assert self.flight is not None
        self.num_steps += 1
        self.flight = self.take_step(
            self.flight,
            some_forced=self.num_steps <= self.last_forced,
            some_at_limit=self.num_steps >= self.next_limit,
        )

    def release(self) -> list[int]:
        """Lets sentences that are done leave, notes their results, and says which they were."""
        assert self.flight is not None
        done = self.flight.sentences.done_B.tolist()
        if sum(done) <= SMALLEST_DEPARTURE.get(self.suppressed_N.device.type, 0.0) * len(done) and not all(done):
            return []
        leaving = [row for row, is_done in enumerate(done) if is_done]
        staying = compact_order([row for row, is_done in enumerate(done) if not is_done])
        indices = [self.in_flight[row] for row in leaving]
        left = self.flight.only(torch.tensor(leaving, device=self.suppressed_N.device))
        found = collect(left, self.options.n_best)
        self.results.update(zip(indices, found, strict=True))
        for row, index in enumerate(indices):
            if not found[row].hypotheses:
                self._check_numbers(index, left.active.tokens_BKT[row, 0, : found[row].steps + 1])
        self.in_flight = [self.in_flight[row] for row in staying]
        self._look_ahead()
        if not staying:
            self.flight = None
            return indices
        target_width = max(self.limits[index] for index in self.in_flight) + 1
        source_width = max(len(self.sources[index]) for index in self.in_flight)
        num_steps = max(self.num_steps - self.entered[index] for index in self.in_flight)
        self.flight = self.flight.stay(staying, target_width, source_width, num_steps)
        return indices

    def _check_numbers(self, index: int, tokens_T: Tensor) -> None:
        """Raises InputError where a search without a result ran on probabilities that are none.

        tokens_T: what an active hypothesis held last, BOS first. Search takes what is not a number for impossible, so
        the model is asked again.
        """
        device = self.suppressed_N.device
        source, target = padded([self.sources[index]], device), padded([tokens_T.tolist()], device)
        found = force_decode(self.model, source, target, replace(self.options, coverage_beta=0.0))
        if found.token_log_probs_BT.isnan().any():
            raise InputError(
                "the model's probabilities are not numbers, so its weights diverged in training: use an earlier "
                "checkpoint"
            )
