"""`Translator` translates text lines with the models of checkpoints.

`Translator.stream` reads lines in chunks. `_translate_chunk` cuts long lines into segments, searches all segments of a
chunk together (`_search`), and joins the results of each line's segments to its Translation (`_join`).
`Translator.score` computes force-decoding scores of given translations. Both continue with smaller batches when memory
runs out (`FittingBatchSize`). `load_translator` makes a Translator from the config of a command.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, repeat
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import torch

from gnmt.batch import UNK_ID
from gnmt.checkpoint.load import LoadedModel
from gnmt.config.build import build, resolve
from gnmt.config.validate import Range, check_component, check_value
from gnmt.data.multilingual import Multilingual
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.alignment import Words, copy_unknown_words, words_of_source
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.engine.search_batch import ResidentMemory
from gnmt.decoding.ensemble import Ensemble, Mean, load_members
from gnmt.decoding.options import SearchOptions, build_search_options, given_options
from gnmt.decoding.scoring import PairScore, joined_score, pairs_of_line, score_pairs, scoring_order
from gnmt.decoding.search import Hypothesis, SearchResult, search_as_completed
from gnmt.decoding.segments import Translation, cut_line
from gnmt.device import Precision, choose_device, choose_precision, is_out_of_memory, keep_freed_memory
from gnmt.errors import InputError, format_count
from gnmt.fileio import path_list
from gnmt.model.interfaces import SearchModel
from gnmt.model.seq2seq import Seq2Seq

log = logging.getLogger(__name__)

ReplaceUnknown = Literal["none", "copy"]

# A chunk has this many batches, and at least SMALLEST_CHUNK lines. translate.py stores each finished chunk in a file of
# its own until the end, and small chunks of a large file would make many files.
CHUNK_BATCHES = 32
SMALLEST_CHUNK = 256

# A chunk ends at the line with which its text reaches this many characters, about 100 tokens, for each of its largest
# number of lines. Otherwise a chunk of very long lines would take hours, and finished work is stored by chunks.
CHARACTERS_PER_LINE = 400

# After a shortage of memory, twice the batch size is tried after this many successes. A failed attempt costs the
# active batch, so attempts are rare.
SUCCESSES_UNTIL_LARGER = 8

# How long a chunk waits for the lines that follow its first one in a pipe. A program that writes many lines is slower
# than their reader at times; one that waits for an answer gets it this much later.
LONGEST_WAIT_SECONDS = 0.02

# Distance between the sampling keys of a line's segments. It is larger than any line number.
SEGMENT_KEY_OFFSET = 1 << 40

ONE_PREFIX_PER_LINE = "give one prefix for each line, an empty one for none"


class Segment(NamedTuple):
    """The part of a line that is searched at once: the whole line, or a segment of a long one.

    Attributes:
        row: Index of the line in its chunk.
        number: Index of the segment in its line.
        ids: Source ids with their framing.
        prefix: Target ids that the translation starts with.
        key: Seed of its samples.
        location: `path:line` or `line N`, for messages.
    """

    row: int
    number: int
    ids: list[int]
    prefix: list[int]
    key: int
    location: str


class FittingBatchSize:
    """The largest batch size that fits into memory: halved after each shortage, doubled again after successes.

    Args:
        free: Called after a shortage, to free what can be made again.
    """

    def __init__(self, free: Callable[[], None]) -> None:
        self._free = free
        self._fitting: int | None = None  # None while the requested size fits
        self._successes = 0  # attempts with this size; -1 after a shortage, so that the retry does not count

    @contextmanager
    def attempt(self, largest: int, location: str) -> Iterator[int]:
        """Yield a batch size for the work of a `with` block.

        If the block runs out of memory, the error is suppressed with a warning, and the next attempt gets half the
        size. The caller repeats attempts until its work is done. Other errors pass through.

        Args:
            largest: The requested batch size.
            location: The first unfinished line, for messages.

        Raises:
            InputError: The previous attempt failed with one line in a batch.
        """
        size = largest if self._fitting is None else min(largest, self._fitting)
        if size == 0:
            self._fitting, self._successes = None, 0
            raise InputError(
                f"{location} does not fit into memory, not even by itself: lower max_source_tokens, "
                "decoding.beam_size or decoding.max_length_factor, or use another device"
            )
        if self._successes < 0:
            # Done here, because until the failed block ended, its error's frames held the tensors that did not fit.
            self._free()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        try:
            yield size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._fitting, self._successes = size // 2, -1
            if size > 1:
                log.warning("out of memory: continuing with batch_size=%d", size // 2)
            return
        if self._fitting is not None:
            self._successes += 1
            if self._successes == SUCCESSES_UNTIL_LARGER:
                self._fitting, self._successes = 2 * size, 0
                log.info("there is enough memory again: continuing with batch_size=%d", min(2 * size, largest))
            if self._fitting >= largest:
                self._fitting = None


class Translator:
    """Translate lines with a model, or with an ensemble of several.

    In fp32, a translation does not depend on the other lines or on batch_size, except where two scores differ by less
    than 1e-5 (with a coverage penalty, 1e-5 * beta more for each source token). Lines are translated in chunks of up to
    `chunk_lines`. The translations of a chunk are a pure function of its lines, the number of its first line (which
    seeds sampling) and the settings.

    Args:
        model: A model on its device, or several for an ensemble (see gnmt.decoding.ensemble). Models are copied, so
            they may be trained further without effect on the translator.
        tokenizers: The tokenizers of all models.
        options: The search options.
        precision: Data type of matrix products; see gnmt.device.
        batch_size: Largest number of sentences in the active batch. It is halved while memory runs out.
        max_source_tokens: Lines with more source tokens (with EOS) are translated in segments (see `cut_line`), because
            models do not generalize to much longer lines than in training. A model with learned positions limits it
            further.
        ensemble: Mean of the models' probabilities, `log_probs` or `probabilities`.
        replace_unknown: `copy` replaces each UNK by the source word that received most of its attention, `none` keeps
            ` ⁇ `.
        unused_target_ids: Further ids that are never produced, such as subwords that no training sentence holds.
        target_language: The language to translate into, if the model has several, such as de; `translate` may name
            another one for each line.
    """

    def __init__(
        self,
        model: Seq2Seq | Sequence[Seq2Seq],
        tokenizers: Tokenizers,
        options: SearchOptions,
        precision: Precision,
        batch_size: Annotated[int, Range(1)] = 64,
        max_source_tokens: int = 250,
        *,
        ensemble: Mean = "log_probs",
        replace_unknown: ReplaceUnknown = "none",
        unused_target_ids: Iterable[int] = (),
        target_language: str | None = None,
    ) -> None:
        check_arguments(
            Translator.__init__,
            batch_size=batch_size,
            max_source_tokens=max_source_tokens,
            ensemble=ensemble,
            replace_unknown=replace_unknown,
            target_language=target_language,
        )
        if target_language is not None:
            tokenizers = tokenizers.into(target_language)
        least = 2 + tokenizers.source_bos + bool(tokenizers.tags)
        framing = " and ".join(["BOS"] * tokenizers.source_bos + ["a tag"] * bool(tokenizers.tags) + ["EOS"])
        if max_source_tokens < least:
            raise InputError(
                f"max_source_tokens is {max_source_tokens}; it must be {least} or more (one token and {framing})"
            )
        models = list(model) if isinstance(model, Sequence) else [model]
        limits = [member.max_source_tokens for member in models if member.max_source_tokens is not None]
        members = [inference_copy(member, precision) for member in models]
        self.search_model: SearchModel = members[0] if len(members) == 1 else Ensemble(members, ensemble)
        self.tokenizers = tokenizers
        self.options = options
        self.precision = precision
        self.batch_size = batch_size
        keep_freed_memory(sum(p.numel() for member in models for p in member.parameters()), precision.device)
        self.resident = ResidentMemory() if precision.device.type == "cuda" else None
        self.fitting_batch_size = FittingBatchSize(self._free_memory)
        self.max_source_tokens = min([max_source_tokens, *limits])
        self.suppressed = tuple(sorted({*tokenizers.target.never_produced, *unused_target_ids}))
        self.copies_unknown = replace_unknown == "copy" and UNK_ID not in self.suppressed

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | Sequence[str | Path],
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 64,
        max_source_tokens: int = 250,
        trusted_packages: tuple[str, ...] = (),
        ensemble: Mean = "log_probs",
        replace_unknown: ReplaceUnknown = "none",
        target_language: str | None = None,
        **search_options: Any,
    ) -> Translator:
        """Load a translator from a checkpoint: its model, tokenizers and recorded search options.

        Args:
            checkpoint: A path, or several for an ensemble, which uses the search options of the first.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            precision: `auto`, `fp32`, `tf32`, `bf16`, `fp16` or `int8`.
            batch_size: See Translator.
            max_source_tokens: See Translator.
            trusted_packages: Packages besides gnmt whose classes the checkpoint may name.
            ensemble: See Translator.
            replace_unknown: See Translator.
            target_language: See Translator.
            search_options: Fields of SearchOptions that replace recorded ones, such as beam_size=5.

        Raises:
            InputError: Any of these is wrong, or the checkpoint cannot be loaded.
        """
        check_arguments(Translator.load, device=device, precision=precision, trusted_packages=trusted_packages)
        checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint
        if not isinstance(checkpoints, Sequence) or not all(isinstance(path, str | Path) for path in checkpoints):
            raise InputError(f"checkpoint: found {checkpoint!r}, allowed is a path or a list of paths")
        return cls.from_loaded(
            load_members(checkpoint, choose_device(device), trusted_packages),
            precision,
            batch_size,
            max_source_tokens,
            ensemble=ensemble,
            replace_unknown=replace_unknown,
            target_language=target_language,
            **search_options,
        )

    @classmethod
    def from_loaded(
        cls,
        members: Sequence[LoadedModel],
        precision: str = "auto",
        batch_size: int = 64,
        max_source_tokens: int = 250,
        *,
        ensemble: Mean = "log_probs",
        replace_unknown: ReplaceUnknown = "none",
        target_language: str | None = None,
        **search_options: Any,
    ) -> Translator:
        """Make a translator from loaded models; see `load`."""
        first = members[0]
        unused = [set(member.contents["unused_target_ids"]) for member in members]
        return cls(
            [member.model for member in members],
            first.tokenizers,
            build_search_options(first.config["decoding"], search_options),
            choose_precision(precision, first.device),
            batch_size,
            max_source_tokens,
            ensemble=ensemble,
            replace_unknown=replace_unknown,
            unused_target_ids=set.intersection(*unused),
            target_language=target_language,
        )

    @property
    def chunk_lines(self) -> int:
        """The largest number of lines that are sorted by length and searched together, in batches."""
        return max(CHUNK_BATCHES * self.batch_size, SMALLEST_CHUNK)

    @property
    def chunk_characters(self) -> int:
        """The number of characters of text at which a chunk ends, after the line that reaches it."""
        return CHARACTERS_PER_LINE * self.chunk_lines

    def translate(
        self,
        lines: Iterable[str],
        *,
        first_line: int = 1,
        path: str | None = None,
        prefixes: Iterable[str] | None = None,
        target_languages: Iterable[str] | None = None,
        attention: bool = False,
        progress: Callable[[float], object] | None = None,
        **search_options: Any,
    ) -> list[Translation]:
        """Return one translation for each line, in order; see `stream`."""
        return list(
            self.stream(
                lines,
                first_line=first_line,
                path=path,
                prefixes=prefixes,
                target_languages=target_languages,
                attention=attention,
                progress=progress,
                **search_options,
            )
        )

    def stream(
        self,
        lines: Iterable[str],
        *,
        first_line: int = 1,
        path: str | None = None,
        prefixes: Iterable[str] | None = None,
        target_languages: Iterable[str] | None = None,
        attention: bool = False,
        progress: Callable[[float], object] | None = None,
        **search_options: Any,
    ) -> Iterator[Translation]:
        """Yield one translation for each line, in order. Lines are read a chunk at a time (see `next_chunk`).

        A line without a token (blank, or only characters that the tokenizer drops) has an empty translation: text "",
        score 0, no tokens. A line for which no token is possible, because min_length and no_repeat_ngram together
        suppress all or the prefix has probability 0, has an empty, unfinished translation, and a warning is logged.

        The translation of a line that was cut has the texts of its segments joined by a space, their tokens one after
        another (with EOS at the end of each), the sums of their scores and log-probabilities, and one attention matrix
        for each. Its n-th alternative joins the n-th alternatives of the segments.

        Args:
            lines: The source lines.
            first_line: Number of the first line, for messages and as the seed of its samples.
            path: File that the lines were read from, for messages.
            prefixes: The text that the translation of each line starts with, "" for none. White space around it is
                ignored. The translation of a blank line is empty in any case.
            target_languages: The language to translate each line into, for a model with several; None for the
                translator's.
            attention: Fill Translation.attentions.
            progress: Called with the number of lines that were finished since its last call, for example `update` of a
                progress bar. A line that was cut counts in equal parts, one for each segment.
            search_options: Fields of SearchOptions that replace the translator's for this call.

        Raises:
            InputError: An argument or an option is wrong, or a line does not fit into memory by itself.
        """
        for name, texts, example in (
            ("lines", lines, "translate([line])"),
            ("prefixes", () if prefixes is None else prefixes, "prefixes=[prefix]"),
            ("target_languages", () if target_languages is None else target_languages, "target_languages=[language]"),
        ):
            if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
                raise InputError(f"{name} must be a list of strings, found {texts!r:.80}: use {example}")
        check_arguments(Translator.stream, first_line=first_line, path=path)
        if isinstance(lines, Sized) and isinstance(prefixes, Sized) and len(lines) != len(prefixes):
            raise InputError(
                f"there are {format_count(len(lines), 'line')}, but len(prefixes) is {len(prefixes)}: "
                f"{ONE_PREFIX_PER_LINE}"
            )
        options = self.options.with_changes(search_options)
        if target_languages is None:
            self.check_target_language()

        def translations() -> Iterator[Translation]:
            remaining = _checked(lines, path, first_line)
            remaining_prefixes = repeat("") if prefixes is None else _checked(prefixes, None, first_line)
            own_language = repeat(self.tokenizers.target_language)
            remaining_languages = own_language if target_languages is None else iter(target_languages)
            number = first_line
            while chunk := next_chunk(remaining, self.chunk_lines, self.chunk_characters):
                chunk_prefixes = list(islice(remaining_prefixes, len(chunk)))
                if len(chunk_prefixes) < len(chunk):
                    raise InputError(f"there are fewer prefixes than lines: {ONE_PREFIX_PER_LINE}")
                chunk_languages = list(islice(remaining_languages, len(chunk)))
                if len(chunk_languages) < len(chunk):
                    raise InputError("there are fewer target_languages than lines: give one for each line")
                locations = [line_location(path, number + row) for row in range(len(chunk))]
                yield from self._translate_chunk(
                    chunk, chunk_prefixes, chunk_languages, number, locations, options, attention, progress
                )
                number += len(chunk)
            if prefixes is not None and next(remaining_prefixes, None) is not None:
                raise InputError(f"there are more prefixes than lines: {ONE_PREFIX_PER_LINE}")

        return translations()  # a nested generator, so that the call itself raises errors of its arguments

    def _translate_chunk(
        self,
        lines: Sequence[str],
        prefixes: Sequence[str],
        languages: Sequence[str | None],
        first_line: int,
        locations: Sequence[str],
        options: SearchOptions,
        attention: bool,
        progress: Callable[[float], object] | None,
    ) -> list[Translation]:
        """Translate the lines of one chunk; see `stream`.

        Args:
            lines: The source lines.
            prefixes: One for each line.
            languages: The target language of each line; None for a model with only one.
            first_line: Number of the first line.
            locations: One for each line, for messages.
            options: The search options.
            attention: Fill Translation.attentions.
            progress: See `stream`.
        """
        segments = []
        tokenizers = {language: self.tokenizers.into(language) for language in set(languages)}
        for row, (line, prefix, language, location) in enumerate(
            zip(lines, prefixes, languages, locations, strict=True)
        ):
            for number, ids in enumerate(self._cut(line, tokenizers[language], location)):
                # A space at its end would be a subword of its own, but a space begins the next word's subword.
                prefix_ids = self.tokenizers.target.encode(prefix.strip()) if number == 0 else []
                key = first_line + row + number * SEGMENT_KEY_OFFSET
                segments.append(Segment(row, number, ids, prefix_ids, key, location))
        # The longest first: if memory is short, it runs out early, and the last ones to be searched take few steps.
        segments.sort(key=lambda segment: -len(segment.ids))
        num_segments = Counter(segment.row for segment in segments)
        if progress is not None:
            progress(len(lines) - len(num_segments))  # the empty lines
        by_line: list[list[tuple[Segment, SearchResult]]] = [[] for _ in lines]
        for segment, result in self._search(segments, options, attention or self.copies_unknown):
            by_line[segment.row].append((segment, result))
            if progress is not None:
                progress(1 if num_segments[segment.row] == 1 else 1 / num_segments[segment.row])

        translations = []
        for line, location, found in zip(lines, locations, by_line, strict=True):
            if not all(result.hypotheses for _, result in found):
                log.warning(
                    "%s has no translation and stays empty: decoding.min_length and decoding.no_repeat_ngram together "
                    "suppress every token, or its prefix has probability 0",
                    location,
                )
            found.sort(key=lambda pair: pair[0].number)
            sources, of_segments = [segment.ids for segment, _ in found], [result for _, result in found]
            translations.append(self._join(line, sources, of_segments, attention))
        return translations

    def into(self, language: str | None) -> Translator:
        """Return the translator for this target language, which shares the models of this one."""
        translator = copy.copy(self)
        translator.tokenizers = self.tokenizers.into(language)
        return translator

    def check_target_language(self) -> None:
        """Raise InputError if the model has several target languages and the translator has none of them."""
        self.tokenizers.into(self.tokenizers.target_language)

    def _free_memory(self) -> None:
        """Free the memory of earlier searches."""
        if self.resident is not None:
            self.resident.free()

    def _cut(self, line: str, tokenizers: Tokenizers, location: str) -> list[list[int]]:
        """Cut a line into the segments that are searched at once, with a warning if there are several."""
        segments = cut_line(tokenizers, line, self.max_source_tokens)
        if len(segments) > 1:
            framing = tokenizers.num_framing_ids
            num_tokens = sum(len(segment) - framing for segment in segments)
            limit = self.max_source_tokens - framing
            log.warning(
                "%s has %d tokens, more than the %d that are translated at once: it is translated in %d segments",
                location,
                num_tokens,
                limit,
                len(segments),
            )
        return segments

    def _search(
        self, segments: Sequence[Segment], options: SearchOptions, with_attention: bool
    ) -> Iterator[tuple[Segment, SearchResult]]:
        """Yield each segment with its result as soon as its search is over.

        When memory runs out, the unfinished segments are searched again in smaller batches.
        """
        finished: set[int] = set()
        while remaining := [index for index in range(len(segments)) if index not in finished]:
            first = segments[remaining[0]]
            name = f"{first.location} ({len(first.ids)} tokens)"
            with self.fitting_batch_size.attempt(self.batch_size, name) as batch_size:
                for number, result in search_as_completed(
                    self.search_model,
                    [segments[index].ids for index in remaining],
                    options,
                    device=self.precision.device,
                    suppressed=self.suppressed,
                    prefixes=[segments[index].prefix for index in remaining],
                    keys=[segments[index].key for index in remaining],
                    with_attention=with_attention,
                    batch_size=batch_size,
                    resident=self.resident,
                ):
                    finished.add(remaining[number])
                    yield segments[remaining[number]], result

    def _join(
        self, line: str, sources: Sequence[Sequence[int]], results: Sequence[SearchResult], attention: bool
    ) -> Translation:
        """Join the results of a line's segments to its translation.

        If a segment has no hypothesis, the line has an empty, unfinished translation.

        Args:
            line: The source line.
            sources: Source ids of its segments, none for an empty line.
            results: One for each segment.
            attention: Fill Translation.attentions.
        """
        source_tokens = tuple(token for source in sources for token in source)
        words = words_of_source(self.tokenizers.source, line, source_tokens) if self.copies_unknown else None
        # A line has as many hypotheses as the segment with the fewest.
        by_rank = list(zip(*(result.hypotheses for result in results), strict=False)) or [()]
        best, *others = [
            Translation(
                text=self._text(hypotheses, words),
                score=sum((hypothesis.score for hypothesis in hypotheses), 0.0),
                tokens=tuple(token for hypothesis in hypotheses for token in hypothesis.tokens),
                attentions=tuple(
                    hypothesis.attention_TS
                    for hypothesis in hypotheses
                    if attention and hypothesis.attention_TS is not None
                ),
                finished=len(hypotheses) == len(results) and all(hypothesis.finished for hypothesis in hypotheses),
                log_prob=sum((hypothesis.log_prob for hypothesis in hypotheses), 0.0),
                source_tokens=source_tokens,
                segment_lengths=(
                    tuple(len(hypothesis.tokens) for hypothesis in hypotheses) if len(hypotheses) > 1 else ()
                ),
            )
            for hypotheses in by_rank
        ]
        return replace(
            best,
            alternatives=tuple(others),
            steps=sum(result.steps for result in results),
            steps_after_best=sum(result.steps - result.best_found_at for result in results),
        )

    def _text(self, hypotheses: Sequence[Hypothesis], words: Words | None) -> str:
        """Decode the segments of a line and join them by a space. words: source words to replace UNK by, or None."""
        target = self.tokenizers.target
        if words is None:
            texts = [target.decode(hypothesis.tokens) for hypothesis in hypotheses]
            return " ".join(text for text in texts if text)
        texts, column = [], 0
        for hypothesis in hypotheses:
            attention_TS = hypothesis.attention_TS
            if attention_TS is None:
                raise InputError(
                    "replace_unknown=copy takes the most attended source word, but this model has no attention that "
                    "aligns target with source tokens: use replace_unknown=none"
                )
            if UNK_ID in hypothesis.tokens:
                texts.append(copy_unknown_words(target, hypothesis.tokens, attention_TS, words, column))
            else:
                texts.append(target.decode(hypothesis.tokens))
            column += attention_TS.shape[1]
        return " ".join(text for text in texts if text)

    def score(
        self,
        pairs: Iterable[tuple[str, str | Sequence[int] | Translation]],
        *,
        line_numbers: Sequence[int] | None = None,
        path: str | None = None,
        attention: bool = False,
        **search_options: Any,
    ) -> list[PairScore]:
        """Return the force-decoding score of each pair (source line, translation), in order.

        A translation is given in one of three forms. Text is tokenized and ended with EOS. Ids are scored as they are.
        A Translation has its ids scored, which reproduces the score that search reported, even where its text would be
        tokenized differently; if its source line was cut, it is scored segment by segment.

        A blank text is scored as EOS alone; the score of an empty sequence of ids is 0. A blank source is EOS alone,
        which training data do not contain. A source longer than max_source_tokens is cut only for a Translation.

        Args:
            pairs: Source lines and their translations.
            line_numbers: Number of each pair in messages, by default 1, 2, ...
            path: File that the pairs were read from, for messages.
            attention: Return the attention of each target token too; a model without attention returns none.
            search_options: Fields of SearchOptions that replace the translator's for this call.

        Raises:
            InputError: An argument or an option is wrong, ids are given that no search produces, or the segments of a
                Translation do not match its source.
        """
        options = self.options.with_changes(search_options)
        self.check_target_language()
        if isinstance(pairs, str) or not isinstance(pairs, Iterable):
            raise InputError(f"pairs must be a list of pairs, found {pairs!r:.80}: use score([(source, translation)])")
        pairs = list(pairs)
        numbers = range(1, len(pairs) + 1) if line_numbers is None else list(line_numbers)
        if len(numbers) != len(pairs):
            raise InputError(
                f"there are {format_count(len(pairs), 'pair')}, but len(line_numbers) is {len(numbers)}: give one "
                "number for each pair"
            )
        locations = [line_location(path, number) for number in numbers]
        for pair, location in zip(pairs, locations, strict=True):
            if not _is_pair(pair):
                raise InputError(
                    f"{location}: found {pair!r:.80}, allowed is a pair of a source line and its translation, which is "
                    "text, a list of ids or a Translation"
                )
        lines = [
            pairs_of_line(self.tokenizers, source, target, self.max_source_tokens, location)
            for (source, target), location in zip(pairs, locations, strict=True)
        ]
        id_pairs = [pair for line in lines for pair in line]
        location_of_pair = [location for line, location in zip(lines, locations, strict=True) for _ in line]
        order = scoring_order(id_pairs)
        in_order: list[PairScore] = []
        while remaining := order[len(in_order) :]:
            with self.fitting_batch_size.attempt(self.batch_size, location_of_pair[remaining[0]]) as batch_size:
                waiting = [id_pairs[index] for index in remaining]
                device = self.precision.device
                for scores in score_pairs(self.search_model, waiting, options, device, batch_size, attention):
                    in_order += scores
        found = dict(zip(order, in_order, strict=True))
        in_line_order = (found[index] for index in range(len(id_pairs)))
        return [joined_score(list(islice(in_line_order, len(line)))) for line in lines]


def next_chunk(
    lines: Iterator[str],
    max_lines: int,
    max_characters: int,
    is_ready: Callable[[float], bool] = lambda deadline: True,
) -> list[str]:
    """Return the lines of the next chunk, and read no further line; an empty list at the end.

    Args:
        lines: The remaining lines.
        max_lines: Largest number of lines of a chunk.
        max_characters: The chunk ends at the line with which its text reaches this length.
        is_ready: Waits for the next line of `lines` until a given time (time.monotonic), and returns whether it is
            there. The chunk ends when no line has come within LONGEST_WAIT_SECONDS from its first line.
    """
    chunk: list[str] = []
    num_characters, deadline = 0, 0.0
    for line in lines:
        if not chunk:
            deadline = time.monotonic() + LONGEST_WAIT_SECONDS
        chunk.append(line)
        num_characters += len(line)
        if len(chunk) == max_lines or num_characters >= max_characters or not is_ready(deadline):
            break
    return chunk


def line_location(path: str | None, number: int) -> str:
    """Return `path:number`, or `line number` for lines that were read from no file. number: counted from 1."""
    return f"line {number}" if path is None else f"{path}:{number}"


def _checked(texts: Iterable[str], path: str | None, first_line: int) -> Iterator[str]:
    """Yield the texts; raise InputError for one that is no string."""
    for number, text in enumerate(texts, start=first_line):
        if not isinstance(text, str):
            raise InputError(f"{line_location(path, number)}: found {text!r:.80}, allowed is a string (str)")
        yield text


def check_arguments(function: Callable[..., object], **arguments: Any) -> None:
    """Raise InputError for arguments that do not have the types and ranges of the function's annotations."""
    hints = get_type_hints(function, include_extras=True)
    errors: list[str] = []
    for name, value in arguments.items():
        errors += check_value(value, hints[name], name, lambda *_: [])
    if errors:
        raise InputError("; ".join(errors))


def _is_pair(value: Any) -> bool:
    """Return whether the value is a source line with text, ids or a Translation."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2 or not isinstance(value[0], str):
        return False
    target = value[1]
    is_ids = isinstance(target, Sequence) and all(isinstance(token, Integral) for token in target)
    return isinstance(target, str | Translation) or is_ids


class LoadedTranslator(NamedTuple):
    """A translator with the paths and the contents of its checkpoints, in the order given."""

    translator: Translator
    checkpoints: list[str]
    members: tuple[LoadedModel, ...]

    def require_attention(self, option: str) -> None:
        """Raise InputError if an option needs attention and no model has it. Call it before the translation."""
        if not any(member.model.decoder.has_attention for member in self.members):
            raise InputError(
                f"{option} needs attention that aligns target with source tokens, which this model does not have: "
                f"leave out {option.partition('=')[0]}="
            )

    def log_trained_directions(self) -> None:
        """Log from which languages the last training of a multilingual model was into the target language.

        For an ensemble, the training is that of the first checkpoint.
        """
        node, target = self.members[0].config["data"], self.translator.tokenizers.target_language
        if target is None or check_component(node, "data", expected=(Multilingual,)):
            return  # one direction, or corpora of another package
        corpus: Multilingual = build(node)
        sources = corpus.trained_sources(target)
        if sources:
            log.info("the model was last trained into %s from %s", target, ", ".join(sources))
        else:
            log.warning("the last training of the model had no direction into %s", target)


def load_translator(cfg: Any, device: str | None = None) -> LoadedTranslator:
    """Load the translator that the config of a command describes.

    The keys of gnmt.config.schema.TranslatorConfig and batch_size are read, and, if the command has them,
    replace_unknown (see Translator) and weights (see gnmt.checkpoint.load.load_model). `precision: recorded` is the
    precision of the first checkpoint's training, and `batch_size: null` the batch size of its evaluations.

    Args:
        cfg: A checked config.
        device: Replaces the config's device, for one process among several.
    """
    values = resolve(cfg)
    checkpoints = path_list(values["checkpoint"])
    members = load_members(
        checkpoints,
        choose_device(values["device"] if device is None else device),
        tuple(values["trusted_packages"]),
        values.get("weights", "averaged"),
    )
    first = members[0]
    translator = Translator.from_loaded(
        members,
        first.contents["precision"] if values["precision"] == "recorded" else values["precision"],
        values["batch_size"] or first.config["trainer"]["evaluation_batch_size"],
        values["max_source_tokens"],
        ensemble=values["ensemble"],
        replace_unknown=values.get("replace_unknown", "none"),
        target_language=values["target_language"],
        **given_options(cfg.decoding),
    )
    loaded = LoadedTranslator(translator, checkpoints, members)
    if translator.copies_unknown:
        loaded.require_attention("replace_unknown=copy")
    return loaded
