"""From lines of text to translations: the one way that training, evaluate.py, translate.py and Python users share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from gnmt.checkpoint import LoadedModel
from gnmt.config import build, check_component
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.engine import fast_model
from gnmt.decoding.ensemble import Ensemble, Mean, load_members
from gnmt.decoding.forced import PairScore, joined_scores, pairs_of, score_pairs, scoring_order
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.out_of_memory import FittingBatches
from gnmt.decoding.places import place_of
from gnmt.decoding.search import SearchModel
from gnmt.decoding.window import translate_window
from gnmt.model.seq2seq import Seq2Seq
from gnmt.runtime import Precision, choose_device, choose_precision
from gnmt.types import UNK_ID, InputError, Translation, counted

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
    gnmt.decoding.ensemble) and must have these tokenizers. precision: which type products run in, see gnmt.runtime.
    batch_size: sentences searched at once; where they do not fit into memory, half of them, and
        after some windows without a shortage twice as many again, up to these.
    max_source_tokens: lines with more source tokens (with EOS) are translated in pieces, cut at sentence ends where
    possible, since models know no longer ones from training; less where a model has not learned so many positions.
    ensemble: how the models' probabilities become one, `log_probs` or `probabilities`.
    replace_unknown: `copy` puts the most attended source word in the place of each unknown piece, `none` leaves ` ⁇ `.
    unused_target_ids: further ids that are never produced, such as pieces that no training sentence holds.

    Beyond 1e-5 of a score (and, since the coverage penalty is beta times a logarithm for each source token, 1e-5 * beta
    for each of these), a translation in fp32 does not depend on the other lines or on batch_size. A window of up
    to `window_lines` lines is a pure function of its lines, its first line's number (which seeds sampling) and the
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
        members = [fast_model(member, precision) for member in models]
        self.search_model: SearchModel = members[0] if len(members) == 1 else Ensemble(members, ensemble)
        self.tokenizers = tokenizers
        self.options = options
        self.precision = precision
        self.batch_size = batch_size
        self._batches = FittingBatches()
        self.max_source_tokens = min([max_source_tokens, *limits])
        self.banned = tuple(sorted({*tokenizers.target.never_produced, *unused_target_ids}))
        self.copies_unknown = replace_unknown == "copy" and UNK_ID not in self.banned

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
        as in the configs, see gnmt.runtime. search_options: fields of SearchOptions that replace recorded ones, such
        as beam_size=5. Raises InputError for whatever is wrong with any of these.
        """
        members = load_members(checkpoint, choose_device(device), trusted_packages)
        return cls.of(
            members,
            precision,
            batch_size,
            max_source_tokens,
            ensemble=ensemble,
            replace_unknown=replace_unknown,
            **search_options,
        )

    @classmethod
    def of(
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
    def window_lines(self) -> int:
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
        """Yields one translation for each line, in order, reading `window_lines` lines ahead.

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
        with tqdm(total=total, desc="translating", unit="line", disable=None if progress is True else True) as bar:
            on_lines = progress if callable(progress) else bar.update
            while texts := list(islice(remaining, self.window_lines)):
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
