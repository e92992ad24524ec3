"""How translations are written: text, TSV or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gnmt.data.tokenizer import LINE_BREAKS, Tokenizers
from gnmt.decoding.alignment import pharaoh, word_alignment
from gnmt.decoding.options import SearchOptions
from gnmt.types import InputError, Translation

_COLUMNS = ("line", "rank", "score", "log_prob", "finished", "text")
_NOT_IN_TSV = LINE_BREAKS | {ord("\t"): " "}
# JSON writes the control characters of ASCII as escapes; these three end a line for some readers as well.
_JSON_ESCAPES = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


@dataclass(frozen=True)
class OutputFormat:
    """One of three formats, in UTF-8.

    text: the best translation, one line for each line of input.
    tsv: a heading, then a line for each hypothesis: line (of the input, from 1), rank (from 1, the best), score
        (equation 14), log_prob (natural), finished (true or false), text, with tabs and line breaks as spaces, and
        with `alignments` alignment.
    jsonl: an object for each line of input: {"line", "source", "translations": [{"text", "score", "log_prob",
        "tokens" (ids, with EOS where finished), "finished", "part_lengths" (tokens of each piece, for a line that was
        cut), with `alignments` "alignment"}, …]}, the best first.

    alignments: word alignments as `0-0 1-2`, source word and target word counted from 0, which takes attention.
    """

    kind: Literal["text", "tsv", "jsonl"] = "text"
    alignments: bool = False

    def check(self, options: SearchOptions) -> None:
        """Raises InputError where it has no place for what is asked for."""
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
        self, first_line: int, sources: Sequence[str], translations: Sequence[Translation], tokenizers: Tokenizers
    ) -> bytes:
        """What is written of these translations; first_line: the place of the first source in its input, from 1."""
        rows = enumerate(zip(sources, translations, strict=True), start=first_line)
        return "".join(self._lines(number, source, best, tokenizers) for number, (source, best) in rows).encode()

    def _lines(self, number: int, source: str, best: Translation, tokenizers: Tokenizers) -> str:
        if self.kind == "text":
            return best.text.translate(LINE_BREAKS) + "\n"
        hypotheses = [(one, self._alignment(tokenizers, source, one)) for one in (best, *best.alternatives)]
        if self.kind == "jsonl":
            entry = {"line": number, "source": source, "translations": [json_entry(*one) for one in hypotheses]}
            return json.dumps(entry, ensure_ascii=False).translate(_JSON_ESCAPES) + "\n"
        return "".join(tsv_row(number, rank, *one) for rank, one in enumerate(hypotheses, start=1))

    def _alignment(self, tokenizers: Tokenizers, source: str, one: Translation) -> str | None:
        return pharaoh(word_alignment(tokenizers, source, one)) if self.alignments else None


def tsv_row(number: int, rank: int, one: Translation, alignment: str | None) -> str:
    finished = "true" if one.finished else "false"
    text = one.text.translate(_NOT_IN_TSV)
    cells = [str(number), str(rank), f"{one.score:.6f}", f"{one.log_prob:.6f}", finished, text]
    return "\t".join([*cells, *([] if alignment is None else [alignment])]) + "\n"


def json_entry(one: Translation, alignment: str | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "text": one.text,
        "score": one.score,
        "log_prob": one.log_prob,
        "tokens": list(one.tokens),
        "finished": one.finished,
    }
    if one.part_lengths:
        entry["part_lengths"] = list(one.part_lengths)
    return entry if alignment is None else {**entry, "alignment": alignment}
