"""From lines of text to translations: the one way that training, evaluate.py, translate.py and Python users share."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from gnmt.checkpoint import LoadedModel, load_model
from gnmt.config import build, check_component
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.search import Hypothesis, SearchOptions, search
from gnmt.model.seq2seq import Seq2Seq
from gnmt.runtime import Precision, choose_device, choose_precision
from gnmt.types import EOS_ID, PAD_ID, InputError, Tokens, Translation

log = logging.getLogger(__name__)

_OPTIONS = f"{SearchOptions.__module__}.{SearchOptions.__name__}"  # the `_target_` that means them
# Lines that are read, sorted by length and batched together, in batches.
_WINDOW_BATCHES = 32
# A batch holds `batch_size` sentences of up to so many tokens, and fewer longer ones.
_LONG_SOURCE_TOKENS = 100
# Ends of sentences: in scripts with spaces, marks before a space; in those without, the marks alone.
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*""")


class _Piece(NamedTuple):
    """What is searched at once: the `part`-th part of the line in that row of the window; ids end with EOS."""

    row: int
    part: int
    ids: list[int]


class Translator:
    """Translates lines with a model; one translation for each line, in order.

    batch_size: sentences searched at once. max_source_tokens: lines with more source tokens (with EOS) are
    translated in pieces, cut at sentence ends where possible, since models know no longer ones from training.
    Where the tokens lie and in which type products run is `precision`'s matter; the model must be on its device.
    Beyond 1e-5 of a score, a translation in fp32 does not depend on the other lines or on batch_size.
    """

    def __init__(
        self,
        model: Seq2Seq,
        tokenizers: Tokenizers,
        options: SearchOptions,
        precision: Precision,
        batch_size: int = 64,
        max_source_tokens: int = 250,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be 1 or more")
        if max_source_tokens < 2:
            raise InputError(f"max_source_tokens is {max_source_tokens}; it must be 2 or more (one token and EOS)")
        self.model = model
        self.tokenizers = tokenizers
        self.options = options
        self.precision = precision
        self.batch_size = batch_size
        self.max_source_tokens = max_source_tokens

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 64,
        max_source_tokens: int = 250,
        trusted_packages: tuple[str, ...] = (),
        **search_options: Any,
    ) -> Translator:
        """The translator of a checkpoint: its model, its tokenizers and the search that it recorded.

        device, precision: as in the configs, see gnmt.runtime. search_options: fields of SearchOptions that replace
        recorded ones, such as beam_size=5. Raises InputError for whatever is wrong with any of these.
        """
        loaded = load_model(checkpoint, choose_device(device), trusted_packages)
        return cls.of(loaded, precision, batch_size, max_source_tokens, **search_options)

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        precision: str = "auto",
        batch_size: int = 64,
        max_source_tokens: int = 250,
        **search_options: Any,
    ) -> Translator:
        """The translator of a model that is loaded already; see `load`."""
        options = _search_options(loaded.config["decoding"], search_options)
        chosen = choose_precision(precision, loaded.device)
        return cls(loaded.model, loaded.tokenizers, options, chosen, batch_size, max_source_tokens)

    def translate(
        self, lines: Iterable[str], *, attention: bool = False, progress: bool = False, **search_options: Any
    ) -> list[Translation]:
        """One translation for each line, in order; see `stream`."""
        return list(self.stream(lines, attention=attention, progress=progress, **search_options))

    def stream(
        self,
        lines: Iterable[str],
        *,
        attention: bool = False,
        progress: bool = False,
        total: int | None = None,
        **search_options: Any,
    ) -> Iterator[Translation]:
        """Yields one translation for each line, in order, reading some thousand lines ahead.

        A line without a token (blank, or nothing but what the tokenizer drops) gives the empty translation: text "",
        score 0, no tokens. A line that was cut gives its pieces' texts joined by a space, their tokens one after
        another (with an EOS at the end of each), the sum of their scores, and attention in blocks.
        attention: fill Translation.attention_TS. progress: a bar on stderr where that is a terminal, of `total`
        lines, or of as many as `lines` says to hold.
        search_options: fields of SearchOptions for this call alone.
        """
        if isinstance(lines, str):
            raise InputError("translate takes a list of lines, but was given one string; use translate([line])")
        options = self.options
        if search_options:
            options = _search_options({"_target_": _OPTIONS, **dataclasses.asdict(options)}, search_options)
        if total is None and isinstance(lines, Sized):
            total = len(lines)
        return self._windows(lines, options, attention, progress, total)

    def _windows(
        self, lines: Iterable[str], options: SearchOptions, attention: bool, progress: bool, total: int | None
    ) -> Iterator[Translation]:
        """Yields the translations window by window."""
        remaining = iter(lines)
        first_line = 1
        with tqdm(total=total, desc="translating", unit="line", disable=None if progress else True) as bar:
            while window := list(islice(remaining, _WINDOW_BATCHES * self.batch_size)):
                yield from self._translate_window(window, first_line, options, attention, bar)
                first_line += len(window)

    def _translate_window(
        self, lines: Sequence[str], first_line: int, options: SearchOptions, attention: bool, bar: tqdm[Any]
    ) -> list[Translation]:
        """Cuts, sorts by length, searches batch by batch, and puts everything back in its place."""
        parts = [self._parts(text, first_line + row) for row, text in enumerate(lines)]
        pieces = [_Piece(row, part, ids) for row, line in enumerate(parts) for part, ids in enumerate(line)]
        of_line: list[dict[int, Hypothesis]] = [{} for _ in lines]
        bar.update(sum(not line for line in parts))
        with _evaluation_mode(self.model):
            for batch in self._batches(sorted(pieces, key=lambda piece: len(piece.ids))):
                for piece, hypothesis in zip(batch, self._search(batch, options, attention), strict=True):
                    of_line[piece.row][piece.part] = hypothesis
                bar.update(sum(piece.part == 0 for piece in batch))
        return [self._translation([found[part] for part in range(len(found))]) for found in of_line]

    def _search(self, batch: Sequence[_Piece], options: SearchOptions, attention: bool) -> list[Hypothesis]:
        """The best hypothesis of each piece."""
        ids_BS = pad_sequence([torch.tensor(piece.ids) for piece in batch], batch_first=True, padding_value=PAD_ID)
        source = Tokens(ids_BS, torch.tensor([len(piece.ids) for piece in batch])).to(self.precision.device)
        banned = self.tokenizers.target.never_produced
        with self.precision.autocast():
            results = search(self.model, source, options, banned=banned, with_attention=attention)
        return [hypotheses[0] for hypotheses in results]

    def _parts(self, line: str, number: int) -> list[list[int]]:
        """The token ids (with EOS) of what is translated at once: nothing, the whole line, or pieces of it."""
        ids = self.tokenizers.source.encode(line) if line.strip() else []
        limit = self.max_source_tokens - 1
        if len(ids) <= limit:
            return [[*ids, EOS_ID]] if ids else []
        pieces: list[list[int]] = [[]]
        for unit in self._units(line, limit):
            if pieces[-1] and len(pieces[-1]) + len(unit) > limit:
                pieces.append([])
            pieces[-1] += unit
        log.warning(
            "line %d has %d tokens, at most %d are translated at once: it is translated in %d pieces",
            *(number, len(ids), limit, len(pieces)),
        )
        return [[*piece, EOS_ID] for piece in pieces]

    def _units(self, line: str, limit: int) -> Iterator[list[int]]:
        """Token ids of sentences; of words where a sentence is over the limit; of parts where a word is."""
        encode = self.tokenizers.source.encode
        for sentence in split_sentences(line):
            ids = encode(sentence)
            if len(ids) <= limit:
                yield ids
                continue
            for word in sentence.split():
                ids = encode(word)
                yield from (ids[start : start + limit] for start in range(0, len(ids), limit))

    def _batches(self, pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
        """Groups pieces that come in order of length into batches bounded in sentences and in padded tokens."""
        batch: list[_Piece] = []
        for piece in pieces:
            padded_tokens = (len(batch) + 1) * len(piece.ids)
            if batch and (len(batch) == self.batch_size or padded_tokens > self.batch_size * _LONG_SOURCE_TOKENS):
                yield batch
                batch = []
            batch.append(piece)
        if batch:
            yield batch

    def _translation(self, hypotheses: Sequence[Hypothesis]) -> Translation:
        """One line's translation from those of its pieces, none for a blank line."""
        texts = [self.tokenizers.target.decode(hypothesis.tokens) for hypothesis in hypotheses]
        attention = [hypothesis.attention_TS for hypothesis in hypotheses if hypothesis.attention_TS is not None]
        return Translation(
            text=" ".join(text for text in texts if text),
            score=sum(hypothesis.score for hypothesis in hypotheses),
            tokens=tuple(token for hypothesis in hypotheses for token in hypothesis.tokens),
            attention_TS=torch.block_diag(*attention) if attention else None,  # type: ignore[no-untyped-call]
            finished=all(hypothesis.finished for hypothesis in hypotheses),
        )


def split_sentences(line: str) -> list[str]:
    """The line cut behind each sentence end; joined, they are the line again."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    cuts = [0, *ends, len(line)]
    return [line[start:end] for start, end in pairwise(cuts) if end > start]


def _search_options(recorded: Mapping[str, Any], overrides: Mapping[str, Any]) -> SearchOptions:
    """The recorded node with some fields replaced, checked like any config."""
    node = {**recorded, **overrides}
    errors = check_component(node, "decoding", expected=(SearchOptions,))
    if errors:
        raise InputError("the search options are wrong:\n  " + "\n  ".join(errors))
    options = build(node)
    assert isinstance(options, SearchOptions)
    return options


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
