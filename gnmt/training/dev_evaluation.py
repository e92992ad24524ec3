"""Compute dev loss, BLEU and the entropy of the attention during training.

`DevEvaluator` translates the dev set with the same Translator that `evaluate.py` and `translate.py` use, and measures
the loss of its references, with the attention that this pass computes anyway. `report_evaluation` writes the result to
TensorBoard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gnmt.data.batching import batch_boundaries, batch_of
from gnmt.data.corpora import Direction, bleu_tokenizer
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.alignment import draw_alignment
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import check_coverage
from gnmt.decoding.segments import Translation
from gnmt.decoding.translator import Translator
from gnmt.device import Precision
from gnmt.distributed import Ranks
from gnmt.errors import format_count
from gnmt.evaluation.metrics import Scores, score_translations
from gnmt.logs import counter, progress_bar
from gnmt.reporting.tensorboard import Reporter, translations_table
from gnmt.signals import Abandoned
from gnmt.training.objective import Objective
from gnmt.training.train_metrics import CLIPPING_DELTA

MAX_PAIR_TOKENS = 1000
"""Largest number of tokens on either side of a pair whose loss is measured."""
TOKENS_PER_PAIR = 64
"""A batch for the loss has at most this number of padded source and target tokens per sentence of the batch size."""


@dataclass(frozen=True)
class DevResult:
    """The result of one evaluation.

    Args:
        loss: Unsmoothed nats per target token with EOS.
        scores: BLEU, chrF, chrF++ and GLEU of the translations.
        sources: The dev sentences.
        references: Reference translations.
        translations: Translations of the model.
        tokenizers: Tokenizers of the model.
        by_direction: Scores of each direction of a multilingual model by its name; ` (zero-shot)` follows the name of
            one that is not trained. `scores` are then the means over the trained directions.
        attention_entropy: Entropy of the alignment attention over the source in nats, averaged over the target tokens
            with EOS of the references; None for a model without attention.
        clipping_delta: Bound to which the model clipped activations; None for a model without `clipping`.
    """

    loss: float
    scores: Scores
    sources: Sequence[str]
    references: Sequence[str]
    translations: Sequence[Translation]
    tokenizers: Tokenizers
    by_direction: Mapping[str, Scores] = field(default_factory=dict)
    attention_entropy: float | None = None
    clipping_delta: float | None = None

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite if that overflows, NaN without a loss."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    def scalars(self) -> dict[str, float]:
        """Return the metrics by their TensorBoard tags."""
        own = {
            "dev/loss": self.loss,
            "dev/perplexity": self.perplexity,
            "dev/bleu": self.scores.bleu,
            "dev/chrf": self.scores.chrf,
            "dev/chrfpp": self.scores.chrfpp,
            "dev/gleu": self.scores.gleu,
        }
        if self.attention_entropy is not None:
            own["dev/attention_entropy"] = self.attention_entropy
        if self.clipping_delta is not None:
            own[CLIPPING_DELTA] = self.clipping_delta
        for name, scores in self.by_direction.items():
            tag = name.replace(" (zero-shot)", ".zero_shot")
            own |= {f"dev/{tag}/bleu": scores.bleu, f"dev/{tag}/chrf": scores.chrf}
        return own

    def summary(self) -> str:
        """Return the metrics as text for a log line."""
        by_direction = ", ".join(f"{name} {scores.bleu:.2f}" for name, scores in self.by_direction.items())
        return (
            f"loss {self.loss:.3f}, perplexity {self.perplexity:.2f}, "
            f"BLEU {self.scores.bleu:.2f}, chrF {self.scores.chrf:.2f}"
            + (f"; BLEU by direction: {by_direction}" if by_direction else "")
            + ("" if self.clipping_delta is None else f"; activations clipped to {self.clipping_delta:.3g}")
        )


class BatchLoss(NamedTuple):
    """Sums over the target tokens with EOS of a batch.

    Args:
        loss: Nats.
        num_tokens: Number of these tokens.
        attention_entropy: Entropy of the attention of each of them, in nats; None for a model without attention.
    """

    loss: float
    num_tokens: int
    attention_entropy: float | None


class RankResult(NamedTuple):
    """The translations and losses that one rank has computed.

    Args:
        translations: Translations of the rank's sentences, in their order.
        losses: For each of the rank's batches, by index, its sums.
    """

    translations: list[Translation]
    losses: dict[int, BatchLoss]


class DevEvaluator:
    """Evaluate the current weights on the dev set.

    With R ranks, each rank translates one contiguous part of the sentences and measures the loss of every R-th batch.
    All ranks return the complete result, which equals that of one process.

    Args:
        objective: The model and its loss.
        tokenizers: Tokenizers of the model.
        options: Search options.
        precision: Device and number format.
        pairs: Source and reference texts of the dev set.
        bleu_tokenize: Tokenization of sacreBLEU; with `directions` it may be `auto`, by the target language of each.
        batch_size: Number of sentences that are translated at the same time.
        unused_target_ids: Ids that search suppresses.
        ranks: The processes that evaluate together.
        directions: The directions of the pairs, for a multilingual model. The loss is that of the trained directions.

    Raises:
        InputError: The options need attention and the model has none.
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
        unused_target_ids: Sequence[int],
        ranks: Ranks,
        directions: Sequence[Direction] = (),
    ) -> None:
        # train() has checked this already, but not for a model that cannot be built on the meta device.
        check_coverage(options, objective.model.decoder.has_attention)
        self.objective = objective
        self.tokenizers = tokenizers
        self.options = options
        self.precision = precision
        self.sources, self.references = [source for source, _ in pairs], [target for _, target in pairs]
        self.bleu_tokenize = bleu_tokenize
        self.batch_size = batch_size
        self.unused_target_ids = unused_target_ids
        self.ranks = ranks
        self.directions = directions
        self.direction_of = [direction for direction in directions for _ in range(direction.num_dev_pairs)]

    def __call__(self, abandoning: Callable[[], AbstractContextManager[None]] = nullcontext) -> DevResult:
        """Translate the dev set, measure the loss, and return the result of all ranks.

        Args:
            abandoning: Returns the context in which this rank computes; there, a signal may raise Abandoned.

        Raises:
            Abandoned: A rank was interrupted. All ranks raise it, after the others have finished their own work.
        """
        own: RankResult | None
        try:
            with abandoning():
                own = RankResult(self.translations(), self.losses())
        except Abandoned:
            own = None
        results: list[RankResult | None] = self.ranks.gather(own)
        translations: list[Translation] = []
        losses: dict[int, BatchLoss] = {}
        for result in results:
            if result is None:
                raise Abandoned
            translations += result.translations
            losses |= result.losses
        by_direction = self.scores_by_direction(translations)
        if self.directions:
            scores = mean_scores([by_direction[name] for name in self.trained_names()])
        else:
            texts = [translation.text for translation in translations]
            scores = score_translations(texts, self.references, tokenize=self.bleu_tokenize)
        return DevResult(
            mean_loss(losses),
            scores,
            self.sources,
            self.references,
            translations,
            self.tokenizers,
            by_direction,
            mean_attention_entropy(losses),
            None if self.objective.model.clip is None else float(self.objective.model.clip.delta),
        )

    def trained_names(self) -> list[str]:
        """Return the names of the trained directions."""
        return list(dict.fromkeys(direction.name for direction in self.directions if not direction.is_zero_shot))

    def scores_by_direction(self, translations: Sequence[Translation]) -> dict[str, Scores]:
        """Return the scores of each direction, see DevResult."""
        rows: dict[Direction, list[tuple[str, str]]] = {}
        for direction, translation, reference in zip(
            self.direction_of, translations if self.directions else (), self.references, strict=False
        ):
            key = replace(direction, num_dev_pairs=0)  # directions of the same name are scored together
            rows.setdefault(key, []).append((translation.text, reference))
        return {
            direction.name + " (zero-shot)" * direction.is_zero_shot: score_translations(
                [text for text, _ in pairs],
                [reference for _, reference in pairs],
                tokenize=bleu_tokenizer(self.bleu_tokenize, direction.target_language),
            )
            for direction, pairs in rows.items()
        }

    def own_sentences(self) -> slice:
        """Return the range of sentences that this rank translates. Each rank gets about as many characters."""
        rank, num_ranks = self.ranks.rank, self.ranks.world_size
        ends = np.cumsum([len(source) + 1 for source in self.sources])
        total = int(ends[-1])
        start, end = (int(np.searchsorted(ends, total * r / num_ranks, side="right")) for r in (rank, rank + 1))
        return slice(start, end if rank + 1 < num_ranks else len(self.sources))

    def translations(self) -> list[Translation]:
        """Translate the sentences of this rank. Only the first dev sentence keeps its attention, for the figure."""
        own = self.own_sentences()
        if own.start == own.stop:
            return []
        # A translator copies the weights, so each evaluation needs a new one.
        translator = Translator(
            self.objective.model,
            self.tokenizers,
            self.options,
            self.precision,
            self.batch_size,
            unused_target_ids=self.unused_target_ids,
        )
        sources = self.sources[own]
        shown = self.ranks.is_rank_0
        with progress_bar(description="translating", unit="line", total=len(sources), shown=shown) as bar:
            translations = translator.translate(
                sources,
                target_languages=[one.target_language for one in self.direction_of[own]] if self.directions else None,
                attention=own.start == 0,
                first_line=own.start + 1,
                progress=counter(bar),
            )
        if own.start > 0:
            return translations
        return translations[:1] + [replace(translation, attentions=()) for translation in translations[1:]]

    def measured_pairs(self) -> list[tuple[list[int], list[int]]]:
        """Return the ids of the pairs whose loss is measured, without EOS, sorted by length.

        A pair is left out if a side is empty, has more than MAX_PAIR_TOKENS tokens, or has more tokens than the model
        has learned positions, or if its direction is not trained.
        """
        source = self.tokenizers.source.encode_all(self.sources)
        target = self.tokenizers.target.encode_all(self.references)
        rows = list(zip(source, target, strict=True))
        if self.directions:
            prefixes = {one: self.tokenizers.into(one.target_language).source_prefix for one in set(self.directions)}
            rows = [
                (prefixes[direction] + source_ids if source_ids else source_ids, target_ids)
                for (source_ids, target_ids), direction in zip(rows, self.direction_of, strict=True)
                if not direction.is_zero_shot
            ]
        model = self.objective.model
        limits = max_measured_subwords(model.encoder.max_tokens), max_measured_subwords(model.decoder.max_tokens)
        pairs = [pair for pair in rows if all(0 < len(side) <= limit for side, limit in zip(pair, limits, strict=True))]
        return sorted(pairs, key=lambda pair: (len(pair[1]), len(pair[0])))

    @torch.no_grad()
    def losses(self) -> dict[int, BatchLoss]:
        """Return the unsmoothed loss of each batch of this rank, by index; `measured_pairs` fill the batches."""
        pairs = self.measured_pairs()
        lengths = [np.array([len(pair[side]) for pair in pairs], dtype=np.int64) for side in (0, 1)]
        boundaries = batch_boundaries(lengths[0], lengths[1], budget=self.batch_size * TOKENS_PER_PAIR)
        self.objective.eval()
        losses: dict[int, BatchLoss] = {}
        for index, (start, end) in enumerate(pairwise(boundaries)):
            if index % self.ranks.world_size != self.ranks.rank:
                continue
            rows = pairs[start:end]
            batch = batch_of([row[0] for row in rows], [row[1] for row in rows], np.arange(start, end))
            batch = batch.to(self.precision.device)
            with self.precision.autocast():
                loss_sum, num_tokens, attention_BTS = self.objective.cross_entropy(batch, attention=True)
            entropy = None if attention_BTS is None else float(sum_entropy(attention_BTS, batch.labels.mask_BT))
            losses[index] = BatchLoss(float(loss_sum), int(num_tokens), entropy)
        return losses


def sum_entropy(attention_BTS: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the entropy of each row of attention in nats, summed over the real target tokens (fp32 scalar).

    Args:
        attention_BTS: Attention over the source, 0 at padding.
        mask_BT: True for real target tokens.
    """
    entropy_BT: Tensor = torch.special.entr(attention_BTS.float()).sum(-1)
    return entropy_BT.masked_fill(~mask_BT, 0.0).sum()


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Return the means of BLEU, chrF, chrF++ and GLEU over several directions."""
    return Scores(
        bleu=sum(one.bleu for one in scores) / len(scores),
        chrf=sum(one.chrf for one in scores) / len(scores),
        chrfpp=sum(one.chrfpp for one in scores) / len(scores),
        ter=None,
        gleu=sum(one.gleu for one in scores) / len(scores),
        signatures={
            metric: f"mean of {format_count(len(scores), 'direction')}, {signature}"
            for metric, signature in scores[0].signatures.items()
        },
        num_sentences=sum(one.num_sentences for one in scores),
    )


def mean_loss(losses: Mapping[int, BatchLoss]) -> float:
    """Return the mean loss of all batches in nats per token, or NaN without batches.

    It is summed in the order of the batches, so that it does not depend on the number of ranks.
    """
    in_order = [losses[index] for index in sorted(losses)]
    num_tokens = sum(batch.num_tokens for batch in in_order)
    return sum(batch.loss for batch in in_order) / num_tokens if num_tokens else math.nan


def mean_attention_entropy(losses: Mapping[int, BatchLoss]) -> float | None:
    """Return the mean entropy of the attention in nats, or None without attention or batches."""
    in_order = [losses[index] for index in sorted(losses)]
    found = [batch.attention_entropy for batch in in_order if batch.attention_entropy is not None]
    return sum(found) / sum(batch.num_tokens for batch in in_order) if found else None


def max_measured_subwords(max_tokens: int | None) -> int:
    """Return the largest number of subwords of a side whose loss is measured.

    max_tokens: number of learned positions, one of which is for EOS or BOS; None for a model without them.
    """
    return MAX_PAIR_TOKENS if max_tokens is None else min(MAX_PAIR_TOKENS, max_tokens - 1)


def report_by_tokens(reporter: Reporter, metrics: Mapping[str, float], num_tokens: int) -> None:
    """Write dev loss and BLEU to TensorBoard over the number of source and target tokens that were trained on.

    With this number in place of the update, runs with batches of different sizes can be compared.
    """
    for name in ("loss", "bleu"):
        reporter.scalar(f"dev_by_tokens/{name}", metrics[f"dev/{name}"], num_tokens)


def report_evaluation(reporter: Reporter, result: DevResult, step: int, num_samples: int) -> None:
    """Write the metrics, sample translations and one alignment to TensorBoard.

    Args:
        reporter: Writes TensorBoard data.
        result: Result of the evaluation.
        step: Update after which it was made.
        num_samples: Number of sample translations to write.
    """
    for tag, value in result.scalars().items():
        reporter.scalar(tag, value, step)
    for metric, signature in result.scores.signatures.items():
        reporter.fact(f"about/signature/{metric}", signature, step)
    if num_samples:
        texts = (translation.text for translation in result.translations)
        rows = zip(result.sources, result.references, texts, strict=True)
        reporter.text("samples/translations", translations_table(islice(rows, num_samples)), step)
    figure = draw_alignment(result.tokenizers, result.translations[0])
    if figure is not None:
        reporter.figure("samples/alignment", figure, step)
