"""Output formats of translate.py: plain text, TSV, JSON lines, and pairs for training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.alignment import pharaoh, word_alignment, word_attention
from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import Translation
from gnmt.errors import InputError
from gnmt.fileio import LINE_BREAKS

_COLUMNS = ("line", "rank", "score", "log_prob", "finished", "text")
_NOT_IN_TSV = LINE_BREAKS | {ord("\t"): " "}
# JSON escapes the control characters of ASCII; some readers end a line at these three as well.
_JSON_ESCAPES = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class Origin(NamedTuple):
    """Precision and checkpoints of a translation; its scores depend on them.

    Args:
        precision: Name such as "bf16".
        checkpoints: The first digits of each checkpoint's sha256, in the order given.
    """

    precision: str
    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class OutputFormat:
    """Format translations as plain text, TSV or JSON lines, in UTF-8.

    text: The best translation, one line for each line of input.

    tsv: A heading, then one line for each hypothesis with the columns line (of the input, from 1), rank (from 1, the
    best), score (Wu et al. 2016, eq. 14), log_prob (natural), finished (true or false), text (tabs and line breaks
    replaced by spaces) and, with `alignments`, alignment.

    jsonl: One object for each line of input, with the keys line, source, scoring (the options of eq. 14), precision,
    checkpoints (see `Origin`) and translations, the best first. Each translation has text, score, log_prob, tokens
    (ids, with EOS if finished), finished, segment_lengths (tokens of each segment, for a line that was cut), and on
    request alignment and word_attention.

    pairs: JSON lines as well, one object with the keys source and translation for each finished hypothesis that is not
    blank. A corpus reads such a file by its `pairs` and `columns` (Kim and Rush 2016; Sennrich et al. 2016).

    Args:
        kind: The format.
        alignments: Add word alignments such as `0-0 1-2`: indices of source word and target word, from 0.
        word_attention: Add the matrix behind the alignments, with a row for each target word and a column for each
            source word.
    """

    kind: Literal["text", "tsv", "jsonl", "pairs"] = "text"
    alignments: bool = False
    word_attention: bool = False

    @property
    def attention(self) -> bool:
        """True if translations must hold their attention."""
        return self.alignments or self.word_attention

    def check(self, options: SearchOptions) -> None:
        """Raise InputError if the format cannot hold what was requested."""
        if self.word_attention and self.kind != "jsonl":
            raise InputError(f"format={self.kind} cannot hold word_attention=true: use format=jsonl")
        if self.alignments and self.kind in ("text", "pairs"):
            raise InputError(f"format={self.kind} cannot hold alignments=true: use format=tsv or format=jsonl")
        if self.kind == "text" and options.n_best > 1:
            raise InputError(
                f"format=text holds one translation for each line, but decoding.n_best is {options.n_best}: "
                "use format=tsv, format=jsonl or format=pairs"
            )

    @property
    def heading(self) -> bytes:
        """The bytes before the first line."""
        if self.kind != "tsv":
            return b""
        columns = [*_COLUMNS, "alignment"] if self.alignments else _COLUMNS
        return ("\t".join(columns) + "\n").encode()

    def encode(
        self,
        first_line: int,
        sources: Sequence[str],
        translations: Sequence[Translation],
        tokenizers: Tokenizers,
        options: SearchOptions,
        origin: Origin,
    ) -> bytes:
        """Return the bytes of the output for these translations.

        Args:
            first_line: Line number of the first source in its input, from 1.
            sources: The lines of input.
            translations: One for each source.
            tokenizers: Both sides' tokenizers, for words of alignments.
            options: The options of the search.
            origin: Precision and checkpoints, for jsonl.
        """
        made_with = {"scoring": options.scoring, "precision": origin.precision, "checkpoints": origin.checkpoints}
        rows = enumerate(zip(sources, translations, strict=True), start=first_line)
        return "".join(self._lines(line, source, best, tokenizers, made_with) for line, (source, best) in rows).encode()

    def num_omitted(self, translations: Iterable[Translation]) -> int:
        """Return the number of hypotheses that format=pairs leaves out; 0 for other formats."""
        if self.kind != "pairs":
            return 0
        return sum(not _is_in_pairs(hypothesis) for best in translations for hypothesis in (best, *best.alternatives))

    def _lines(
        self, line: int, source: str, best: Translation, tokenizers: Tokenizers, made_with: Mapping[str, object]
    ) -> str:
        if self.kind == "text":
            return best.text.translate(LINE_BREAKS) + "\n"
        hypotheses = (best, *best.alternatives)
        if self.kind == "pairs":
            kept = filter(_is_in_pairs, hypotheses)
            return "".join(_json_line({"source": source, "translation": hypothesis.text}) for hypothesis in kept)
        extras = [self.extras(tokenizers, source, hypothesis) for hypothesis in hypotheses]
        if self.kind == "jsonl":
            entries = [_json_entry(hypothesis) | extra for hypothesis, extra in zip(hypotheses, extras, strict=True)]
            return _json_line({"line": line, "source": source, **made_with, "translations": entries})
        rows = enumerate(zip(hypotheses, extras, strict=True), start=1)
        return "".join(_tsv_row(line, rank, hypothesis, extra.values()) for rank, (hypothesis, extra) in rows)

    def extras(self, tokenizers: Tokenizers, source: str, hypothesis: Translation) -> dict[str, object]:
        """Return the alignment and the attention between words, as far as the format has them."""
        extras: dict[str, object] = {}
        if self.alignments:
            extras["alignment"] = pharaoh(word_alignment(tokenizers, source, hypothesis))
        if self.word_attention:
            matrix = word_attention(tokenizers, source, hypothesis)
            extras["word_attention"] = [[round(weight, 4) for weight in row] for row in matrix.tolist()]
        return extras


def _is_in_pairs(hypothesis: Translation) -> bool:
    return hypothesis.finished and bool(hypothesis.text.strip())


def _tsv_row(line: int, rank: int, hypothesis: Translation, extras: Iterable[object]) -> str:
    finished = "true" if hypothesis.finished else "false"
    scores = (f"{hypothesis.score:.6f}", f"{hypothesis.log_prob:.6f}")
    cells = [str(line), str(rank), *scores, finished, hypothesis.text.translate(_NOT_IN_TSV)]
    return "\t".join([*cells, *map(str, extras)]) + "\n"


def _json_line(entry: Mapping[str, object]) -> str:
    return json.dumps(entry, ensure_ascii=False).translate(_JSON_ESCAPES) + "\n"


def _json_entry(hypothesis: Translation) -> dict[str, object]:
    entry: dict[str, object] = {
        "text": hypothesis.text,
        "score": hypothesis.score,
        "log_prob": hypothesis.log_prob,
        "tokens": list(hypothesis.tokens),
        "finished": hypothesis.finished,
    }
    if hypothesis.segment_lengths:
        entry["segment_lengths"] = list(hypothesis.segment_lengths)
    return entry
