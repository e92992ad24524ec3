"""What training asks of the dev set: loss, and BLEU of real translations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import torch

from gnmt.data.batching import batch_boundaries, batch_of
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.alignment import draw_alignment
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import check_coverage
from gnmt.decoding.translation import Translation
from gnmt.decoding.translator import Translator
from gnmt.device import Precision
from gnmt.distributed import Ranks
from gnmt.evaluation.metrics import Scores, score_translations
from gnmt.reporting.tensorboard import Reporter, translations_table
from gnmt.signals import Abandoned
from gnmt.training.objective import Objective

LONGEST_PAIR = 1000
"""Tokens on either side of a pair whose loss is measured."""
TOKENS_PER_PAIR = 64
"""Source and target tokens of a batch for the loss, padding counted, times the evaluation's batch size."""


@dataclass(frozen=True)
class DevResult:
    """One evaluation. loss: unsmoothed nats per target token with EOS."""

    loss: float
    scores: Scores
    sources: Sequence[str]
    references: Sequence[str]
    translations: Sequence[Translation]
    tokenizers: Tokenizers

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def scalars(self) -> dict[str, float]:
        """The figures by their TensorBoard tags."""
        return {
            "dev/loss": self.loss,
            "dev/perplexity": self.perplexity,
            "dev/bleu": self.scores.bleu,
            "dev/chrf": self.scores.chrf,
        }

    def summary(self) -> str:
        """The figures in a line."""
        return (
            f"loss {self.loss:.3f}, perplexity {self.perplexity:.2f}, "
            f"BLEU {self.scores.bleu:.2f}, chrF {self.scores.chrf:.2f}"
        )


class Measured(NamedTuple):
    """What one process has found out: its translations in order, and sums and tokens of its losses by their batch."""

    translations: list[Translation]
    losses: dict[int, tuple[float, int]]


class DevEvaluator:
    """Measures the model as it is, through the same Translator that `evaluate.py` and `translate.py` use.

    Of several processes each translates a stretch of the sentences and takes every R-th batch for the loss; all get the
    whole result, which is that of one process.

    options, precision, batch_size, unused_target_ids: of the translator, which is made anew for each evaluation, since
    it copies the weights.
    """

    def __init__(
        self,
        objective: Objective,
        tokenizers: Tokenizers,
        options: SearchOptions,
        precision: Precision,
        pairs: Sequence[tuple[str, str]],
        bleu_tokenize: str,
        batch_size: int,
        unused_target_ids: Sequence[int] = (),
        ranks: Ranks | None = None,
    ) -> None:
        # Now, not at the first evaluation, an hour after the start.
        check_coverage(options, objective.model.decoder.has_attention)
        self.objective = objective
        self.tokenizers = tokenizers
        self.options = options
        self.precision = precision
        self.sources, self.references = [source for source, _ in pairs], [target for _, target in pairs]
        self.bleu_tokenize = bleu_tokenize
        self.batch_size = batch_size
        self.unused_target_ids = unused_target_ids
        self.ranks = ranks or Ranks()

    def __call__(self, breakable: Callable[[], AbstractContextManager[None]] = nullcontext) -> DevResult:
        """breakable: the context of this process's share of the work, in which a signal may raise Abandoned.

        It is raised in all processes then, when each has come to the end of its share.
        """
        measured = None
        try:
            with breakable():
                measured = Measured(self.translations(), self.losses())
        except Abandoned:
            measured = None  # it may have come after the work
        shares: list[Measured | None] = self.ranks.gather(measured)
        translations: list[Translation] = []
        losses: dict[int, tuple[float, int]] = {}
        for share in shares:
            if share is None:
                raise Abandoned
            translations += share.translations
            losses |= share.losses
        texts = [translation.text for translation in translations]
        scores = score_translations(texts, self.references, tokenize=self.bleu_tokenize)
        return DevResult(mean_loss(losses), scores, self.sources, self.references, translations, self.tokenizers)

    def own_sentences(self) -> slice:
        """The stretch that this process translates; by length, all have about as much to do."""
        ends = np.cumsum([len(source) + 1 for source in self.sources])
        total = int(ends[-1])
        start, end = (
            int(np.searchsorted(ends, total * rank / self.ranks.world_size, side="right"))
            for rank in (self.ranks.rank, self.ranks.rank + 1)
        )
        return slice(start, end if self.ranks.rank + 1 < self.ranks.world_size else len(self.sources))

    def translations(self) -> list[Translation]:
        """One for each source of this process; the very first with its attention, for the alignment picture."""
        own = self.own_sentences()
        if own.start == own.stop:
            return []
        translator = Translator(
            self.objective.model,
            self.tokenizers,
            self.options,
            self.precision,
            self.batch_size,
            unused_target_ids=self.unused_target_ids,
        )
        translations = translator.translate(
            self.sources[own], attention=own.start == 0, first_line=own.start + 1, progress=self.ranks.is_rank_0
        )
        if own.start > 0:
            return translations
        return translations[:1] + [replace(translation, attentions=()) for translation in translations[1:]]

    @torch.no_grad()
    def losses(self) -> dict[int, tuple[float, int]]:
        """Unsmoothed nats and target tokens with EOS of this process's batches of pairs with text on both sides.

        Pairs of more than LONGEST_PAIR tokens on a side are left out, as attention over them would not fit in memory,
        and those for which the model has learned too few positions.
        """
        source = self.tokenizers.source.encode_all(self.sources)
        target = self.tokenizers.target.encode_all(self.references)
        model = self.objective.model
        limits = longest_scored(model.encoder.max_tokens), longest_scored(model.decoder.max_tokens)
        pairs = [
            pair
            for pair in zip(source, target, strict=True)
            if all(0 < len(side) <= limit for side, limit in zip(pair, limits, strict=True))
        ]
        pairs.sort(key=lambda pair: (len(pair[1]), len(pair[0])))
        lengths = [np.array([len(pair[side]) for pair in pairs], dtype=np.int64) for side in (0, 1)]
        starts = batch_boundaries(lengths[0], lengths[1], budget=self.batch_size * TOKENS_PER_PAIR)
        self.objective.eval()
        losses: dict[int, tuple[float, int]] = {}
        for number, (start, end) in enumerate(pairwise(starts)):
            if number % self.ranks.world_size != self.ranks.rank:
                continue
            rows = pairs[start:end]
            batch = batch_of([row[0] for row in rows], [row[1] for row in rows], np.arange(start, end))
            with self.precision.autocast():
                loss_sum, num_tokens = self.objective(batch.to(self.precision.device))
            losses[number] = float(loss_sum), int(num_tokens)
        return losses


def mean_loss(losses: Mapping[int, tuple[float, int]]) -> float:
    """Nats per token of all batches, added up in their order, whoever measured them; not a number where none is."""
    in_order = [losses[number] for number in sorted(losses)]
    num_tokens = sum(tokens for _, tokens in in_order)
    return sum(loss_sum for loss_sum, _ in in_order) / num_tokens if num_tokens else math.nan


def longest_scored(max_tokens: int | None) -> int:
    """Pieces of the longest sentence whose loss is measured, with room for EOS or BOS where positions were learned."""
    return LONGEST_PAIR if max_tokens is None else min(LONGEST_PAIR, max_tokens - 1)


def report_evaluation(reporter: Reporter, result: DevResult, step: int, num_samples: int) -> None:
    """Scalars, sample translations and one alignment to TensorBoard."""
    for tag, value in result.scalars().items():
        reporter.scalar(tag, value, step)
    for metric, signature in result.scores.signatures.items():
        reporter.text(f"dev/signature/{metric}", signature, step)
    if num_samples:
        texts = (translation.text for translation in result.translations)
        rows = zip(result.sources, result.references, texts, strict=True)
        reporter.text("dev/translations", translations_table(islice(rows, num_samples)), step)
    figure = draw_alignment(result.tokenizers, result.translations[0])
    if figure is not None:
        reporter.figure("dev/alignment", figure, step)
