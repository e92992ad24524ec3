"""Cleaning of training text: drop pairs by rules, and report how many were dropped and why.

`Cleaning` holds the rules, `Cleaner` applies them, and `CleaningReport` counts the dropped pairs. Rules about text
(blank, identical, duplicate) are applied before encoding; rules about length, in tokens, after it. The report also
counts the lines of dev and test sets that are among the kept pairs (see gnmt.data.held_out); no rule drops those.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnmt.config.validate import Range
from gnmt.data.held_out import Overlap
from gnmt.errors import format_count

# The reasons for dropping a pair, each with the field of Cleaning that causes it, in the order in which they are
# tested: a pair counts under the first reason that applies.
REASONS = {
    "blank": "drop_blank",
    "identical": "drop_identical",
    "duplicate": "drop_duplicates",
    "too_long": "max_length_tokens",
    "length_ratio": "max_length_ratio",
}
_NUM_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 300
_INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # Unicode's categories


@dataclass(frozen=True)
class Cleaning:
    """Rules for dropping training pairs. A pair is kept unchanged or dropped; no text is truncated.

    Args:
        max_length_tokens: Maximum tokens of either side, including EOS; None for no limit.
        max_length_ratio: Maximum tokens of the longer side per token of the shorter, including EOS; None for no limit.
        drop_duplicates: Keep only the first of equal pairs (both sides equal).
        drop_identical: Drop pairs with equal source and target.
        drop_blank: Drop pairs with a side that has no text, which is to say nothing but white space and invisible
            characters, or no subword after normalization. If False, such pairs are valid but rarely useful.
    """

    max_length_tokens: Annotated[int, Range(1)] | None = 256
    max_length_ratio: Annotated[float, Range(1)] | None = 4.0
    drop_duplicates: bool = False
    drop_identical: bool = False
    drop_blank: bool = True


class NumberedPair(NamedTuple):
    """A sentence pair and its number in the corpus, from 1."""

    number: int
    source: str
    target: str


class Cleaner:
    """Apply the rules of `Cleaning` to the pairs of one corpus, first by their text and then by their ids."""

    def __init__(self, options: Cleaning) -> None:
        self._options = options
        self._duplicates = DuplicateFilter()

    def by_text(self, pairs: Sequence[NumberedPair]) -> tuple[CleaningReport, list[NumberedPair]]:
        """Return a report on the pairs, and the pairs that are not blank, identical or duplicate.

        To find duplicates, this method must be called with every pair of the corpus once, in order.
        """
        report = CleaningReport(num_pairs=len(pairs))
        kept = [pair for pair in pairs if not self._drop_by_text(pair, report)]
        if not self._options.drop_duplicates:
            return report, kept
        is_new = self._duplicates.first_seen([(pair.source, pair.target) for pair in kept])
        for pair, new in zip(kept, is_new, strict=True):
            if not new:
                report.drop("duplicate", pair)
        return report, [pair for pair, new in zip(kept, is_new, strict=True) if new]

    def _drop_by_text(self, pair: NumberedPair, report: CleaningReport) -> bool:
        source, target = pair.source.strip(), pair.target.strip()
        if self._options.drop_blank and not (_is_visible(source) and _is_visible(target)):
            report.drop("blank", pair)
        elif self._options.drop_identical and source == target:
            report.drop("identical", pair)
        else:
            return False
        return True

    def keeps(self, pair: NumberedPair, num_source: int, num_target: int, report: CleaningReport) -> bool:
        """Return True if the rules about length keep a pair, and count it in the report as kept or dropped.

        Args:
            pair: The pair.
            num_source, num_target: Number of its subwords, without EOS.
            report: The report to update.
        """
        longer, shorter = max(num_source, num_target) + 1, min(num_source, num_target) + 1
        limit, ratio = self._options.max_length_tokens, self._options.max_length_ratio
        if self._options.drop_blank and shorter == 1:
            report.drop("blank", pair)  # normalization removed all text, such as a zero-width space
        elif limit is not None and longer > limit:
            report.drop("too_long", pair)
        elif ratio is not None and longer > ratio * shorter:
            report.drop("length_ratio", pair)
        else:
            report.num_kept += 1
            return True
        return False


@dataclass
class CleaningReport:
    """The number of training pairs read, kept, and dropped for each reason, with examples of dropped pairs.

    Args:
        num_pairs: Number of pairs read.
        num_kept: Number of pairs kept.
        dropped: Number of dropped pairs by reason.
        examples: The first dropped pairs by reason.
        overlaps: By the name of each dev and test set, such as test.news: its lines that are also among the kept
            pairs. Empty in the report on a part of the pairs.
    """

    num_pairs: int = 0
    num_kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {reason: [] for reason in REASONS})
    overlaps: dict[str, Overlap] = field(default_factory=dict)

    def drop(self, reason: str, pair: NumberedPair) -> None:
        """Count a dropped pair."""
        self.dropped[reason] += 1
        if len(self.examples[reason]) < _NUM_EXAMPLES:
            source, target = _shortened(pair.source), _shortened(pair.target)
            self.examples[reason].append({"pair": pair.number, "source": source, "target": target})

    def add(self, other: CleaningReport) -> None:
        """Add the report on later pairs."""
        self.num_pairs += other.num_pairs
        self.num_kept += other.num_kept
        for reason in REASONS:
            self.dropped[reason] += other.dropped[reason]
            self.examples[reason] += other.examples[reason][: _NUM_EXAMPLES - len(self.examples[reason])]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CleaningReport:
        overlaps = {name: Overlap(**overlap) for name, overlap in values["overlaps"].items()}
        return cls(**{**values, "overlaps": overlaps})

    def counts(self) -> str:
        """Return one line with the numbers of pairs read, kept, and dropped for each reason that occurred."""
        dropped = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items() if count)
        line = f"{format_count(self.num_pairs, 'pair')} read, {self.num_kept} kept"
        return f"{line}, dropped: {dropped}" if dropped else line

    def rules(self, options: Cleaning, key: str) -> str:
        """Return a line for each rule that dropped pairs, with an example; `key` is the config key of `options`."""
        lines = []
        for reason, rule in REASONS.items():
            for example in self.examples[reason][:1]:
                value = json.dumps(getattr(options, rule))
                sides = f"{example['source']!r} and {example['target']!r}"
                lines.append(
                    f"  {key}.{rule}={value} dropped {self.dropped[reason]}, such as pair {example['pair']}: {sides}"
                )
        return "\n".join(lines)

    def text(self) -> str:
        """Return the complete report as text: the counts, the overlaps, then the examples of dropped pairs."""
        lines = [self.counts()]
        for name, overlap in self.overlaps.items():
            lines.append(overlap.counts(name))
            lines.extend(f"  line {example['line']}: {_shortened(example['source'])}" for example in overlap.examples)
        for reason, examples in self.examples.items():
            for example in examples:
                lines.append(f"\n{reason}: pair {example['pair']}")
                lines.extend((f"  source: {example['source']}", f"  target: {example['target']}"))
        return "\n".join(lines) + "\n"


def _is_visible(text: str) -> bool:
    """Return True if a text has a character other than white space, control and format characters."""
    return any(unicodedata.category(character) not in _INVISIBLE for character in text)


def _shortened(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + "…"


class DuplicateFilter:
    """A set of pairs that stores 8 bytes per pair: a 64-bit hash of both sides.

    The hashes are stored in sorted runs. A new run is merged with the last one if it is at least as long, so there are
    at most about log2(n) runs, and a look-up takes one binary search in each. While two runs are merged, they exist
    twice in memory. A Python set would need about 60 bytes per pair.

    Two different pairs have equal hashes with probability 2^-64. Among n pairs, the probability of dropping one wrongly
    is n^2 / 2^65: 3e-8 for a million pairs, 3e-4 for a hundred million.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def first_seen(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.bool_]:
        """Return bool [N]: False for a pair that occurred in an earlier call or earlier in `pairs`."""
        hashes = np.fromiter((_hash(source, target) for source, target in pairs), np.uint64, len(pairs))
        run, first_indices = np.unique(hashes, return_index=True)
        known = np.zeros(len(run), dtype=np.bool_)
        for old in self._runs:
            indices = np.minimum(np.searchsorted(old, run), len(old) - 1)
            known |= old[indices] == run
        is_new = np.zeros(len(pairs), dtype=np.bool_)
        is_new[first_indices[~known]] = True
        self._remember(run[~known])
        return is_new

    def _remember(self, run: NDArray[np.uint64]) -> None:
        if len(run) == 0:
            return
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate((self._runs.pop(), run))
            run.sort()
        self._runs.append(run)


def _hash(source: str, target: str) -> int:
    left = source.encode("utf-8")
    # The length distinguishes ("ab", "c") from ("a", "bc").
    digest = hashlib.blake2b(b"%d:%b%b" % (len(left), left, target.encode("utf-8")), digest_size=8).digest()
    return int.from_bytes(digest, "little")
