"""Count the lines of a text that a tokenizer changes: those for which decode(encode(line)) is another text.

A model never sees a changed line as it stands: it reads, or learns to write, another one. A reference that is changed
cannot be translated correctly.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gnmt.batch import UNK_ID
from gnmt.data.tokenizer import AnyTokenizer
from gnmt.errors import format_count
from gnmt.fileio import LINE_BREAKS

CAUSES = ("normalization", "unknown", "white_space")
"""Why a line changes: normalization; characters without a subword; ▁ or a line break, which decoding makes a space."""

MAX_FRACTION = 0.001
"""The largest fraction of changed lines without a warning."""

_NUM_EXAMPLES = 3
_CONTEXT = 20  # characters of an example on each side of its first difference


@dataclass
class ChangedLines:
    """The number of lines that change, by cause, with examples.

    Args:
        num_lines: Number of lines.
        num_changed: Number of lines that change.
        causes: Number of changed lines by cause, one of CAUSES. A line with an unknown character counts only there.
        examples: Number, text and new text of the first changed lines.
    """

    num_lines: int = 0
    num_changed: int = 0
    causes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: ChangedLines) -> None:
        """Add the counts of later lines."""
        self.num_lines += other.num_lines
        self.num_changed += other.num_changed
        for cause in CAUSES:
            self.causes[cause] += other.causes[cause]
        self.examples += other.examples[: _NUM_EXAMPLES - len(self.examples)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def is_too_many(self, side: str) -> bool:
        """Return True if more than MAX_FRACTION of the lines change.

        Sources are normalized on purpose, so only those with unknown characters count.
        """
        num_lost = self.causes["unknown"] if side == "source" else self.num_changed
        return num_lost > MAX_FRACTION * self.num_lines

    def describe(self, text: str, side: str) -> str:
        """Return a message that names the text, causes, remedies and examples.

        Args:
            text: Name of the lines, such as data.train.target.
            side: "source" or "target".
        """
        reasons = {
            "normalization": f"are normalized, which tokenizer.{side}_normalization=identity avoids",
            "unknown": "have characters without a subword, which tokenizer.byte_fallback=true avoids",
            "white_space": "contain ▁ or a line break such as U+2028, which becomes a space",
        }
        causes = [f"{number} {reasons[cause]}" for cause, number in self.causes.items() if number]
        examples = [f"\n  line {example['line']}: {_difference(example)}" for example in self.examples]
        return (
            f"{text}: {self.num_changed} of {format_count(self.num_lines, 'line')} change when they are encoded as "
            f"subwords and decoded: {'; '.join(causes)}" + "".join(examples)
        )


def changed_lines(
    tokenizer: AnyTokenizer,
    lines: Sequence[str],
    ids: Sequence[list[int]] | None = None,
    numbers: Sequence[int] | None = None,
    num_threads: int = -1,
) -> ChangedLines:
    """Count the lines for which decode(encode(line)) is another text.

    Args:
        tokenizer: The tokenizer of their side.
        lines: The lines.
        ids: The ids of each line; None to encode the lines.
        numbers: The number of each line; None for 1, 2 and so on.
        num_threads: Number of threads that encode and decode; -1 for one per core.
    """
    found = ChangedLines(num_lines=len(lines))
    ids = tokenizer.encode_all(lines, num_threads) if ids is None else ids
    numbers = range(1, len(lines) + 1) if numbers is None else numbers
    texts = tokenizer.decode_all(ids, num_threads)
    for number, line, line_ids, decoded in zip(numbers, lines, ids, texts, strict=True):
        if decoded == line:
            continue
        found.num_changed += 1
        found.causes[_cause(line, decoded, line_ids)] += 1
        if len(found.examples) < _NUM_EXAMPLES:
            found.examples.append({"line": number, "before": line, "after": decoded})
    return found


def _cause(line: str, decoded: str, ids: Sequence[int]) -> str:
    if UNK_ID in ids:
        return "unknown"
    return "white_space" if decoded == line.translate(LINE_BREAKS).replace("▁", " ") else "normalization"


def _difference(example: dict[str, Any]) -> str:
    """Return both texts around their first difference; if they look equal, with escapes for all but ASCII."""
    before, after = example["before"], example["after"]
    differing = (at for at, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    start = max(0, next(differing, min(len(before), len(after))) - _CONTEXT)
    shown = [text[start : start + 2 * _CONTEXT] for text in (before, after)]
    look_equal = len({unicodedata.normalize("NFC", text) for text in shown}) == 1
    return " → ".join(map(ascii if look_equal else repr, shown))
