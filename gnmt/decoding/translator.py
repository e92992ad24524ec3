"""Translator: text to translations with the models of checkpoints."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from gnmt.batch import UNK_ID
from gnmt.checkpoint.file import Weights
from gnmt.checkpoint.load import LoadedModel
from gnmt.config.build import build, decoding_node, resolve
from gnmt.config.validate import check_component
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.alignment import Words, with_unknown_copied, words_of_source
from gnmt.decoding.engine.inference_copy import inference_copy
from gnmt.decoding.ensemble import Ensemble, Mean, load_members
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.scoring import PairScore, joined_scores, pairs_of, score_pairs, scoring_order
from gnmt.decoding.search import Hypothesis, SearchResult, search
from gnmt.decoding.translation import Translation, cut_line
from gnmt.device import Precision, choose_device, choose_precision, is_out_of_memory
from gnmt.errors import InputError, counted
from gnmt.logs import progress_bar
from gnmt.model.interfaces import SearchModel
from gnmt.model.seq2seq import Seq2Seq


def place_of(path: str | None, line: int) -> str:
    """`path:line` as editors and compilers write it, or `line N` for a text that is no file; line: from 1."""
    return f"line {line}" if path is None else f"{path}:{line}"


log = logging.getLogger(__name__)


# Runs without a shortage after which twice the batch is tried again. A batch that does not fit costs the sentences that
# are in flight, so this is a small part of what lies between two attempts.
RUNS_UNTIL_LARGER = 8


class FittingBatches:
    """The size of batches that fits: halved where memory runs out, and raised again when others have left room."""

    def __init__(self) -> None:
        self._fitting: int | None = None  # None while the size that is asked for fits
        self._runs_without_shortage = 0

    def run(self, run: Callable[[int], object], batch_size: int, first_left: Callable[[], str]) -> None:
        """run(size) with a size of at most batch_size; see with_smaller_batches."""
        size = batch_size if self._fitting is None else min(batch_size, self._fitting)
        fitted = with_smaller_batches(run, size, first_left)
        if fitted < size:
            self._fitting, self._runs_without_shortage = fitted, 0
        elif self._fitting is not None:
            self._runs_without_shortage += 1
            if self._runs_without_shortage == RUNS_UNTIL_LARGER:
                self._fitting, self._runs_without_shortage = 2 * size, 0
                log.info("no shortage of memory since: going on with batch_size=%d", min(2 * size, batch_size))
            if self._fitting >= batch_size:
                self._fitting = None


def with_smaller_batches(run: Callable[[int], object], batch_size: int, first_left: Callable[[], str]) -> int:
    """run(batch_size), and where that runs out of memory, of half the size, and so on, with a warning each time.

    run: keeps what it has done when it fails, and does the rest when it is called again. first_left: names the line
    that was at work when a batch of one did not fit; InputError says it then. Other errors go through. Returns the size
    that fitted in the end.
    """
    while True:
        try:
            run(batch_size)
            return batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise InputError(
                    f"{first_left()} does not fit into memory, not even by itself: lower max_source_tokens, "
                    "decoding.beam_size or decoding.max_length_factor, or use another device"
                ) from None
        # Outside the handler: until it ends, the error's frames hold the tensors that did not fit.
        batch_size //= 2
        log.warning("out of memory: going on with batch_size=%d", batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# The pieces of a cut line draw other samples than each other and than any line with a number below this.
_KEYS_OF_PIECES = 1 << 40


class Piece(NamedTuple):
    """What is searched at once: the `part`-th part of the line in that row of the window; ids end with EOS."""

    row: int
    part: int
    ids: list[int]


def translate_window(
    translator: Translator,
    lines: Sequence[str],
    prefixes: Sequence[str],
    first_line: int,
    path: str | None,
    options: SearchOptions,
    attention: bool,
    on_lines: Callable[[int], object],
) -> list[Translation]:
    """One translation for each line; see Translator.stream. on_lines: told how many lines more are done."""
    parts = [_cut(translator, line, place_of(path, first_line + row)) for row, line in enumerate(lines)]
    on_lines(sum(not line for line in parts))
    # The longest first: what does not fit into memory shows early, and the last to be searched take few steps.
    pieces = sorted(
        (Piece(row, part, ids) for row, line in enumerate(parts) for part, ids in enumerate(line)),
        key=lambda piece: -len(piece.ids),
    )
    with_attention = attention or translator.copies_unknown
    results = _search(translator, pieces, prefixes, first_line, path, options, with_attention, on_lines)
    of_line: list[dict[int, SearchResult]] = [{} for _ in lines]
    for piece, result in zip(pieces, results, strict=True):
        of_line[piece.row][piece.part] = result
    for row, found in enumerate(of_line):
        if not all(result.hypotheses for result in found.values()):
            log.warning(
                "%s has no translation, because no token may follow what must come first: decoding.min_length and "
                "decoding.no_repeat_ngram together leave none, or its prefix has no probability; it stays empty",
                place_of(path, first_line + row),
            )
    return [
        _translation(translator, line, sources, [found[part] for part in range(len(sources))], attention)
        for line, sources, found in zip(lines, parts, of_line, strict=True)
    ]


def _cut(translator: Translator, line: str, place: str) -> list[list[int]]:
    """What of a line is searched at once, with a warning where that is not the whole line."""
    tokenizers, limit = translator.tokenizers, translator.max_source_tokens
    parts = cut_line(tokenizers, line, limit)
    if len(parts) > 1:
        framing = tokenizers.num_framing_ids
        log.warning(
            "%s has %d tokens, at most %d are translated at once: it is translated in %d pieces",
            *(place, sum(len(part) - framing for part in parts), limit - framing, len(parts)),
        )
    return parts


def _search(
    translator: Translator,
    pieces: Sequence[Piece],
    prefixes: Sequence[str],
    first_line: int,
    path: str | None,
    options: SearchOptions,
    with_attention: bool,
    on_lines: Callable[[int], object],
) -> list[SearchResult]:
    """The result of each piece, with smaller batches where memory runs out."""
    encode = translator.tokenizers.target.encode
    prefix_ids = [encode(prefixes[piece.row]) if piece.part == 0 else [] for piece in pieces]
    keys = [first_line + piece.row + piece.part * _KEYS_OF_PIECES for piece in pieces]
    found: dict[int, SearchResult] = {}
    left_of_row = Counter(piece.row for piece in pieces)

    def keep(place: int, result: SearchResult) -> None:
        found[place] = result
        row = pieces[place].row
        left_of_row[row] -= 1
        if not left_of_row[row]:
            on_lines(1)

    def places_left() -> list[int]:
        return [place for place in range(len(pieces)) if place not in found]

    def first_left() -> str:
        piece = pieces[places_left()[0]]
        return f"{place_of(path, first_line + piece.row)} ({len(piece.ids)} tokens)"

    def run(batch_size: int) -> None:
        places = places_left()
        search(
            translator.search_model,
            [pieces[place].ids for place in places],
            options,
            device=translator.precision.device,
            suppressed=translator.suppressed,
            prefixes=[prefix_ids[place] for place in places],
            keys=[keys[place] for place in places],
            with_attention=with_attention,
            batch_size=batch_size,
            on_done=lambda index, result: keep(places[index], result),
        )

    translator.within_memory(run, first_left)
    return [found[place] for place in range(len(pieces))]


def _translation(
    translator: Translator,
    line: str,
    sources: Sequence[Sequence[int]],
    results: Sequence[SearchResult],
    attention: bool,
) -> Translation:
    """One line's translation from the results of its pieces, none for a blank line.

    Where a piece has no result, the line has none: an empty translation, which is not finished.
    """
    source_tokens = tuple(token for source in sources for token in source)
    words = words_of_source(translator.tokenizers.source, line, source_tokens) if translator.copies_unknown else None
    # Where one piece has fewer hypotheses than another, the line has as few.
    by_rank = list(zip(*(result.hypotheses for result in results), strict=False)) or [()]
    best, *others = [
        Translation(
            text=_text(translator, hypotheses, words),
            score=sum((hypothesis.score for hypothesis in hypotheses), 0.0),
            tokens=tuple(token for hypothesis in hypotheses for token in hypothesis.tokens),
            attentions=_attentions(hypotheses) if attention else (),
            finished=len(hypotheses) == len(results) and all(hypothesis.finished for hypothesis in hypotheses),
            log_prob=sum((hypothesis.log_prob for hypothesis in hypotheses), 0.0),
            source_tokens=source_tokens,
            segment_lengths=tuple(len(hypothesis.tokens) for hypothesis in hypotheses) if len(hypotheses) > 1 else (),
        )
        for hypotheses in by_rank
    ]
    return replace(
        best,
        alternatives=tuple(others),
        steps=sum(result.steps for result in results),
        steps_after_best=sum(result.steps - result.best_found_at for result in results),
    )


def _text(translator: Translator, hypotheses: Sequence[Hypothesis], words: Words | None) -> str:
    """The pieces' texts, joined by a space. words: of the source, where they stand in for unknown pieces."""
    target = translator.tokenizers.target
    texts, column = [], 0
    for hypothesis in hypotheses:
        if words is None or UNK_ID not in hypothesis.tokens:
            texts.append(target.decode(hypothesis.tokens))
        else:
            texts.append(with_unknown_copied(target, hypothesis.tokens, _required(hypothesis), words, column))
        if words is not None:
            column += _required(hypothesis).shape[1]
    return " ".join(text for text in texts if text)


def _required(hypothesis: Hypothesis) -> torch.Tensor:
    """A hypothesis' attention, which copying needs."""
    if hypothesis.attention_TS is None:
        raise InputError(
            "replace_unknown=copy takes the most attended source word, but this model has no attention that aligns "
            "target with source tokens: use replace_unknown=none"
        )
    return hypothesis.attention_TS


def _attentions(hypotheses: Sequence[Hypothesis]) -> tuple[torch.Tensor, ...]:
    """Those of the pieces."""
    return tuple(hypothesis.attention_TS for hypothesis in hypotheses if hypothesis.attention_TS is not None)


ReplaceUnknown = Literal["none", "copy"]

_OPTIONS = f"{SearchOptions.__module__}.{SearchOptions.__name__}"  # the `_target_` that means them
# Lines that are read, sorted by length and searched together, in batches, and the fewest of them: each window of a file
# becomes a file of its own until the end, and millions of lines must not become as many thousands of files.
_WINDOW_BATCHES = 32
_FEWEST_WINDOW_LINES = 256
_ONE_PREFIX_A_LINE = "give one prefix for each line, an empty one for none"


class Translator:
    """Translates lines with a model, or with several together; one translation for each line, in order.

    model: on its device, with the weights of now: it is copied, and may train on. Several are an ensemble (see
    gnmt.decoding.ensemble) and must have these tokenizers. precision: which type products run in, see gnmt.device.
    batch_size: sentences searched at once; where they do not fit into memory, half of them, and
        after some windows without a shortage twice as many again, up to these.
    max_source_tokens: lines with more source tokens (with EOS) are translated in pieces, cut at sentence ends where
    possible, since models know no longer ones from training; less where a model has not learned so many positions.
    ensemble: how the models' probabilities become one, `log_probs` or `probabilities`.
    replace_unknown: `copy` puts the most attended source word in the place of each unknown piece, `none` leaves ` ⁇ `.
    unused_target_ids: further ids that are never produced, such as pieces that no training sentence holds.

    Beyond 1e-5 of a score (and, since the coverage penalty is beta times a logarithm for each source token, 1e-5 * beta
    for each of these), a translation in fp32 does not depend on the other lines or on batch_size. A window of up
    to `chunk_lines` lines is a pure function of its lines, its first line's number (which seeds sampling) and the
    settings; `translate` of at most so many lines is one window.
    """

    def __init__(
        self,
        model: Seq2Seq | Sequence[Seq2Seq],
        tokenizers: Tokenizers,
        options: SearchOptions,
        precision: Precision,
        batch_size: int = 64,
        max_source_tokens: int = 250,
        *,
        ensemble: Mean = "log_probs",
        replace_unknown: ReplaceUnknown = "none",
        unused_target_ids: Iterable[int] = (),
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
        least, framing = tokenizers.num_framing_ids + 1, "BOS and EOS" if tokenizers.source_bos else "EOS"
        if max_source_tokens < least:
            raise InputError(
                f"max_source_tokens is {max_source_tokens}; it must be {least} or more (one token and {framing})"
            )
        if replace_unknown not in get_args(ReplaceUnknown):
            raise InputError(f"replace_unknown is {replace_unknown!r}; it must be none or copy")
        models = list(model) if isinstance(model, Sequence) else [model]
        limits = [member.max_source_tokens for member in models if member.max_source_tokens is not None]
        members = [inference_copy(member, precision) for member in models]
        self.search_model: SearchModel = members[0] if len(members) == 1 else Ensemble(members, ensemble)
        self.tokenizers = tokenizers
        self.options = options
        self.precision = precision
        self.batch_size = batch_size
        self._batches = FittingBatches()
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
        **search_options: Any,
    ) -> Translator:
        """The translator of a checkpoint: its model, its tokenizers and the search that it recorded.

        checkpoint: a path, or several, whose models translate together as the first one recorded. device, precision:
        as in the configs, see gnmt.device. search_options: fields of SearchOptions that replace recorded ones, such
        as beam_size=5. Raises InputError for whatever is wrong with any of these.
        """
        members = load_members(checkpoint, choose_device(device), trusted_packages)
        return cls.from_loaded(
            members,
            precision,
            batch_size,
            max_source_tokens,
            ensemble=ensemble,
            replace_unknown=replace_unknown,
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
        **search_options: Any,
    ) -> Translator:
        """The translator of models that are loaded already; see `load`."""
        first = members[0]
        unused = [set(member.contents.get("unused_target_ids", ())) for member in members]
        return cls(
            [member.model for member in members],
            first.tokenizers,
            search_options_of(first.config["decoding"], search_options),
            choose_precision(precision, first.device),
            batch_size,
            max_source_tokens,
            ensemble=ensemble,
            replace_unknown=replace_unknown,
            unused_target_ids=set.intersection(*unused),
        )

    @property
    def chunk_lines(self) -> int:
        """Lines that are searched together."""
        return max(_WINDOW_BATCHES * self.batch_size, _FEWEST_WINDOW_LINES)

    def translate(
        self,
        lines: Iterable[str],
        *,
        first_line: int = 1,
        path: str | None = None,
        prefixes: Iterable[str] | None = None,
        attention: bool = False,
        progress: bool | Callable[[int], object] = False,
        **search_options: Any,
    ) -> list[Translation]:
        """One translation for each line, in order; see `stream`."""
        return list(
            self.stream(
                lines,
                first_line=first_line,
                path=path,
                prefixes=prefixes,
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
        attention: bool = False,
        progress: bool | Callable[[int], object] = False,
        **search_options: Any,
    ) -> Iterator[Translation]:
        """Yields one translation for each line, in order, reading `chunk_lines` lines ahead.

        A line without a token (blank, or nothing but what the tokenizer drops) gives the empty translation: text "",
        score 0, no tokens. So does, unfinished and with a warning, one for which min_length and no_repeat_ngram leave
        no token to go on with. A line that was cut gives its pieces' texts joined by a space, their tokens one after
        another (with an EOS at the end of each), the sums of their scores and log-probabilities, and attention in
        blocks; the n-th of its alternatives joins the n-th of each piece.
        first_line: the number of the first line, for messages and as the seed of its samples. path: the file that the
        lines come from, for messages.
        prefixes: what each translation must begin with, "" for nothing; as many as lines. Of a cut line it is the
        first piece that begins so, and a blank line stays blank.
        attention: fill Translation.attention_TS. progress: True draws a bar on stderr where that is a terminal; a
        function is told how many lines more are done.
        search_options: fields of SearchOptions for this call alone.
        """
        if isinstance(lines, str) or isinstance(prefixes, str):
            raise InputError("translate takes a list of lines, but was given one string; use translate([line])")
        if isinstance(lines, Sized) and isinstance(prefixes, Sized) and len(lines) != len(prefixes):
            raise InputError(
                f"{counted(len(lines), 'line')} and {len(prefixes)} prefixes were given: {_ONE_PREFIX_A_LINE}"
            )
        options = self._options_with(search_options)
        total = len(lines) if isinstance(lines, Sized) else None
        return self._windows(lines, prefixes, first_line, path, options, attention, progress, total)

    def _windows(
        self,
        lines: Iterable[str],
        prefixes: Iterable[str] | None,
        first_line: int,
        path: str | None,
        options: SearchOptions,
        attention: bool,
        progress: bool | Callable[[int], object],
        total: int | None,
    ) -> Iterator[Translation]:
        """Yields the translations window by window."""
        remaining, remaining_prefixes = iter(lines), repeat("") if prefixes is None else iter(prefixes)
        with progress_bar(description="translating", unit="line", total=total, shown=progress is True) as bar:
            on_lines = progress if callable(progress) else bar.update
            while texts := list(islice(remaining, self.chunk_lines)):
                begin_with = list(islice(remaining_prefixes, len(texts)))
                if len(begin_with) < len(texts):
                    raise InputError(f"there are fewer prefixes than lines: {_ONE_PREFIX_A_LINE}")
                yield from translate_window(self, texts, begin_with, first_line, path, options, attention, on_lines)
                first_line += len(texts)
        if prefixes is not None and next(remaining_prefixes, None) is not None:
            raise InputError(f"there are more prefixes than lines: {_ONE_PREFIX_A_LINE}")

    def score(
        self,
        pairs: Iterable[tuple[str, str | Sequence[int] | Translation]],
        *,
        line_numbers: Sequence[int] | None = None,
        path: str | None = None,
        **search_options: Any,
    ) -> list[PairScore]:
        """How probable each pair's target is as the translation of its source, in order.

        A target is text, which is cut into pieces and ended with EOS; or ids as they are (InputError for those that no
        search writes); or a Translation, whose ids get the score that search reported, where its text may be cut
        otherwise than search wrote it. A blank target
        text is EOS alone; no ids at all (the translation of a blank line) score 0. A blank source is read as EOS
        alone, which says little, since training leaves such pairs out. A long source is read whole, but for a
        Translation in pieces. line_numbers: what messages call the pairs, by default 1, 2, ...
        path: the file that they come from, for messages.
        search_options: fields of SearchOptions for this call alone.
        """
        options = self._options_with(search_options)
        pairs = list(pairs)
        numbers = range(1, len(pairs) + 1) if line_numbers is None else line_numbers
        places = [place_of(path, number) for number in numbers]
        lines = [
            pairs_of(self.tokenizers, *pair, self.max_source_tokens, place)
            for pair, place in zip(pairs, places, strict=True)
        ]
        flat = [pair for line in lines for pair in line]
        place_of_pair = [place for line, place in zip(lines, places, strict=True) for _ in line]
        found: dict[int, PairScore] = {}

        def first_left() -> str:
            return next(place_of_pair[index] for index in scoring_order(flat) if index not in found)

        def run(batch_size: int) -> None:
            score_pairs(self.search_model, flat, options, self.precision.device, batch_size, found)

        self.within_memory(run, first_left)
        scores = (found[index] for index in range(len(flat)))
        return [joined_scores(list(islice(scores, len(line)))) for line in lines]

    def within_memory(self, run: Callable[[int], object], first_left: Callable[[], str]) -> None:
        """run(batch_size), with smaller batches where memory runs out; see FittingBatches."""
        self._batches.run(run, self.batch_size, first_left)

    def _options_with(self, changes: Mapping[str, Any]) -> SearchOptions:
        if not changes:
            return self.options
        return search_options_of({"_target_": _OPTIONS, **dataclasses.asdict(self.options)}, changes)


def search_options_of(recorded: Mapping[str, Any], overrides: Mapping[str, Any]) -> SearchOptions:
    """The recorded node with some fields replaced, checked like any config."""
    node = {**recorded, **overrides}
    errors = check_component(node, "decoding", expected=(SearchOptions,))
    if errors:
        raise InputError("the search options are wrong:\n  " + "\n  ".join(errors))
    options = build(node)
    assert isinstance(options, SearchOptions)
    return options


class LoadedTranslator(NamedTuple):
    """A translator and what its checkpoints hold, the first one's first."""

    translator: Translator
    members: tuple[LoadedModel, ...]


def load_translator(
    cfg: Any,
    device: str | None = None,
    replace_unknown: ReplaceUnknown = "none",
    weights: Weights = "averaged",
) -> LoadedTranslator:
    """Loads what the keys checkpoint, ensemble, batch_size, max_source_tokens, precision, decoding and
    trusted_packages of a checked config say.

    device: instead of the config's, for a process among several. precision "recorded" is that of the first
    checkpoint's training, and batch_size null that of its evaluations. weights: see gnmt.checkpoint.load.load_model.
    """
    values = resolve(cfg)
    device = values["device"] if device is None else device
    members = load_members(values["checkpoint"], choose_device(device), tuple(values["trusted_packages"]), weights)
    first = members[0]
    translator = Translator.from_loaded(
        members,
        first.contents["precision"] if values["precision"] == "recorded" else values["precision"],
        values["batch_size"] or first.config["trainer"]["evaluation_batch_size"],
        values["max_source_tokens"],
        ensemble=values["ensemble"],
        replace_unknown=replace_unknown,
        **decoding_node(first.config["decoding"], cfg.decoding),
    )
    return LoadedTranslator(translator, members)
