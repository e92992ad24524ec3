"""How translations are written: text, TSV or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.alignment import pharaoh, word_alignment, word_attention
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.translation import Translation
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS, sha256_of

_DIGITS = 12  # of a sha256
_COLUMNS = ("line", "rank", "score", "log_prob", "finished", "text")
_NOT_IN_TSV = LINE_BREAKS | {ord("\t"): " "}
# JSON writes the control characters of ASCII as escapes; these three end a line for some readers as well.
_JSON_ESCAPES = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class Origin(NamedTuple):
    """What scores come from, beside the search. checkpoints: the first digits of their sha256, in the order given."""

    precision: str
    checkpoints: tuple[str, ...]


def short_digests(checkpoints: Iterable[str | Path]) -> tuple[str, ...]:
    """Enough of the sha256 of each file to tell checkpoints apart; raises InputError for one that cannot be read."""
    return tuple(digest[:_DIGITS] for digest in sha256_of_checkpoints(checkpoints))


def sha256_of_checkpoints(checkpoints: Iterable[str | Path]) -> list[str]:
    try:
        return [sha256_of(path) for path in checkpoints]
    except OSError as error:  # gone since it was loaded
        raise InputError(f"checkpoint {error.filename} cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class OutputFormat:
    """One of three formats, in UTF-8.

    text: the best translation, one line for each line of input.
    tsv: a heading, then a line for each hypothesis: line (of the input, from 1), rank (from 1, the best), score
        (equation 14), log_prob (natural), finished (true or false), text, with tabs and line breaks as spaces, and
        with `alignments` alignment.
    jsonl: an object for each line of input: {"line", "source", "scoring" (the options that scores depend on: equation
        14), "precision", "checkpoints" (see Origin), "translations": [{"text", "score", "log_prob", "tokens"
        (ids, with EOS where finished), "finished", "segment_lengths" (tokens of each piece, for a line that was
        cut), with `alignments` "alignment", with `word_attention` "word_attention"}, …]}, the best first.

    alignments: word alignments as `0-0 1-2`, source word and target word counted from 0, which takes attention.
    word_attention: the matrix that they come from, a row for each target word, a column for each source word.
    """

    kind: Literal["text", "tsv", "jsonl"] = "text"
    alignments: bool = False
    word_attention: bool = False

    @property
    def attention(self) -> bool:
        """Whether translations must hold their attention."""
        return self.alignments or self.word_attention

    def check(self, options: SearchOptions) -> None:
        """Raises InputError where it has no place for what is asked for."""
        if self.word_attention and self.kind != "jsonl":
            raise InputError(f"format={self.kind} has no place for word_attention=true: use format=jsonl")
        if self.kind != "text":
            return
        if options.n_best > 1:
            raise InputError(
                f"format=text holds one translation for each line, but decoding.n_best is {options.n_best}: "
                "use format=tsv or format=jsonl"
            )
        if self.alignments:
            raise InputError("format=text has no place for alignments=true: use format=tsv or format=jsonl")

    @property
    def heading(self) -> bytes:
        """What stands before the first line."""
        if self.kind != "tsv":
            return b""
        return ("\t".join([*_COLUMNS, *(["alignment"] if self.alignments else [])]) + "\n").encode()

    def write(
        self,
        first_line: int,
        sources: Sequence[str],
        translations: Sequence[Translation],
        tokenizers: Tokenizers,
        options: SearchOptions,
        origin: Origin,
    ) -> bytes:
        """What is written of these translations; first_line: the place of the first source in its input, from 1.

        options: what they were searched with. origin: what their scores come from.
        """
        made_with = {"scoring": options.scoring, "precision": origin.precision, "checkpoints": origin.checkpoints}
        rows = enumerate(zip(sources, translations, strict=True), start=first_line)
        lines = (self._lines(number, source, best, tokenizers, made_with) for number, (source, best) in rows)
        return "".join(lines).encode()

    def _lines(
        self, number: int, source: str, best: Translation, tokenizers: Tokenizers, made_with: Mapping[str, object]
    ) -> str:
        if self.kind == "text":
            return best.text.translate(LINE_BREAKS) + "\n"
        hypotheses = (best, *best.alternatives)
        extras = [self._extras(tokenizers, source, one) for one in hypotheses]
        if self.kind == "jsonl":
            entries = [json_entry(one) | extra for one, extra in zip(hypotheses, extras, strict=True)]
            entry = {"line": number, "source": source, **made_with, "translations": entries}
            return json.dumps(entry, ensure_ascii=False).translate(_JSON_ESCAPES) + "\n"
        rows = enumerate(zip(hypotheses, extras, strict=True), start=1)
        return "".join(tsv_row(number, rank, one, extra.values()) for rank, (one, extra) in rows)

    def _extras(self, tokenizers: Tokenizers, source: str, one: Translation) -> dict[str, object]:
        """What is written on request."""
        extras: dict[str, object] = {}
        if self.alignments:
            extras["alignment"] = pharaoh(word_alignment(tokenizers, source, one))
        if self.word_attention:
            matrix = word_attention(tokenizers, source, one)
            extras["word_attention"] = [[round(weight, 4) for weight in row] for row in matrix.tolist()]
        return extras


def tsv_row(number: int, rank: int, one: Translation, extras: Iterable[object]) -> str:
    finished = "true" if one.finished else "false"
    text = one.text.translate(_NOT_IN_TSV)
    cells = [str(number), str(rank), f"{one.score:.6f}", f"{one.log_prob:.6f}", finished, text]
    return "\t".join([*cells, *map(str, extras)]) + "\n"


def json_entry(one: Translation) -> dict[str, object]:
    entry: dict[str, object] = {
        "text": one.text,
        "score": one.score,
        "log_prob": one.log_prob,
        "tokens": list(one.tokens),
        "finished": one.finished,
    }
    if one.segment_lengths:
        entry["segment_lengths"] = list(one.segment_lengths)
    return entry
