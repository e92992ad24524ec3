"""Leaving bad training pairs out, and telling which went and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnmt.config.validate import Range
from gnmt.errors import InputError, counted

# In the order in which they are asked: a pair is counted under the first that applies.
REASONS = ("blank", "identical", "duplicate", "too_long", "length_ratio")
# The keyword of Cleaning behind each.
_RULES = ("drop_blank", "drop_identical", "drop_duplicates", "max_length_tokens", "max_length_ratio")
_NUM_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 300


@dataclass(frozen=True)
class Cleaning:
    """Which training pairs to leave out. A pair is kept whole or dropped whole; nothing is ever truncated.

    max_length_tokens: most tokens on either side, EOS counted; null for no limit. max_length_ratio: most
    tokens of the longer side per token of the shorter, EOS counted on both; null for no limit.
    drop_duplicates: of equal pairs (both sides equal) only the first stays. drop_identical: pairs whose
    two sides are the same text. drop_blank: pairs with a side that has no text, or no piece after
    normalization. With drop_blank=false such a side is trained on as EOS alone: the framing always
    leaves at least one token, so it is harmless to the arithmetic, if seldom wise.
    """

    max_length_tokens: Annotated[int, Range(1)] | None = 256
    max_length_ratio: Annotated[float, Range(1)] | None = 4.0
    drop_duplicates: bool = False
    drop_identical: bool = False
    drop_blank: bool = True

    def __post_init__(self) -> None:
        if self.max_length_tokens is not None and self.max_length_tokens < 1:
            raise InputError(f"cleaning.max_length_tokens must be 1 or more, or null, found {self.max_length_tokens}")
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1:
            raise InputError(f"cleaning.max_length_ratio must be 1 or more, or null, found {self.max_length_ratio}")


class NumberedPair(NamedTuple):
    """A pair and its place in the corpus, counted from 1."""

    number: int
    source: str
    target: str


@dataclass
class CleaningReport:
    """How many training pairs were read and kept, and for each reason how many went, with examples."""

    num_pairs: int = 0
    num_kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {reason: [] for reason in REASONS})

    def drop(self, reason: str, pair: NumberedPair) -> None:
        self.dropped[reason] += 1
        if len(self.examples[reason]) < _NUM_EXAMPLES:
            source, target = _shown(pair.source), _shown(pair.target)
            self.examples[reason].append({"pair": pair.number, "source": source, "target": target})

    def add(self, other: CleaningReport) -> None:
        """Takes in the report on the pairs that follow."""
        self.num_pairs += other.num_pairs
        self.num_kept += other.num_kept
        for reason in REASONS:
            self.dropped[reason] += other.dropped[reason]
            self.examples[reason] += other.examples[reason][: _NUM_EXAMPLES - len(self.examples[reason])]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def counts(self) -> str:
        """One line: pairs read, kept, and dropped for each reason that occurred."""
        dropped = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items() if count)
        return f"{counted(self.num_pairs, 'pair')} read, {self.num_kept} kept" + (
            f", dropped: {dropped}" if dropped else ""
        )

    def rules(self, options: Cleaning, key: str) -> str:
        """Lines with the settings that dropped pairs, under the config's key, each with a pair that it dropped."""
        lines = []
        for reason, rule in zip(REASONS, _RULES, strict=True):
            for example in self.examples[reason][:1]:
                value = json.dumps(getattr(options, rule))
                sides = f"{example['source']!r} and {example['target']!r}"
                lines.append(
                    f"  {key}.{rule}={value} dropped {self.dropped[reason]}, such as pair {example['pair']}: {sides}"
                )
        return "\n".join(lines)

    def text(self) -> str:
        """The whole report for reading."""
        lines = [self.counts()]
        for reason, examples in self.examples.items():
            for example in examples:
                lines.append(f"\n{reason}: pair {example['pair']}")
                lines.extend((f"  source: {example['source']}", f"  target: {example['target']}"))
        return "\n".join(lines) + "\n"


def _shown(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[:_EXAMPLE_CHARACTERS] + "…"


class Cleaner:
    """Decides about pairs, first by their text and then by their ids, and reports."""

    def __init__(self, options: Cleaning) -> None:
        self._options = options
        self._duplicates = DuplicateFilter()

    def by_text(self, pairs: Sequence[NumberedPair]) -> tuple[CleaningReport, list[NumberedPair]]:
        """Drops blank, identical and repeated pairs. Every pair of the corpus passes here once, in order."""
        report = CleaningReport(num_pairs=len(pairs))
        kept = [pair for pair in pairs if not self._dropped_by_text(pair, report)]
        if not self._options.drop_duplicates:
            return report, kept
        first = self._duplicates.first_seen([(pair.source, pair.target) for pair in kept])
        for pair, new in zip(kept, first, strict=True):
            if not new:
                report.drop("duplicate", pair)
        return report, [pair for pair, new in zip(kept, first, strict=True) if new]

    def _dropped_by_text(self, pair: NumberedPair, report: CleaningReport) -> bool:
        source, target = pair.source.strip(), pair.target.strip()
        if self._options.drop_blank and not (source and target):
            report.drop("blank", pair)
        elif self._options.drop_identical and source == target:
            report.drop("identical", pair)
        else:
            return False
        return True

    def keeps(self, pair: NumberedPair, num_source: int, num_target: int, report: CleaningReport) -> bool:
        """Whether a pair with that many pieces (without EOS) stays; the report counts it either way."""
        longer, shorter = max(num_source, num_target) + 1, min(num_source, num_target) + 1
        limit, ratio = self._options.max_length_tokens, self._options.max_length_ratio
        if self._options.drop_blank and shorter == 1:
            report.drop("blank", pair)  # text that normalization removes, such as a zero-width space
        elif limit is not None and longer > limit:
            report.drop("too_long", pair)
        elif ratio is not None and longer > ratio * shorter:
            report.drop("length_ratio", pair)
        else:
            report.num_kept += 1
            return True
        return False


class DuplicateFilter:
    """Remembers 8 bytes a pair: a 64-bit hash of both sides.

    The hashes lie in sorted runs; a new run is merged with its neighbor as soon as it is at least as
    long, so there are never more than about log2(n) runs and a look-up is a few binary searches (the
    runs briefly exist twice while they merge). A Python set would take some 60 bytes a pair. Two
    different pairs share a hash with probability 2^-64: among n pairs one is lost wrongly with
    probability n^2 / 2^65, which is 3e-8 for a million pairs and 3e-4 for a hundred million.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def first_seen(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.bool_]:
        """bool [N]: True where neither an earlier call nor an earlier pair of this one held the same pair."""
        hashes = np.fromiter((_hash(source, target) for source, target in pairs), np.uint64, len(pairs))
        run, first_places = np.unique(hashes, return_index=True)
        known = np.zeros(len(run), dtype=np.bool_)
        for old in self._runs:
            places = np.minimum(np.searchsorted(old, run), len(old) - 1)
            known |= old[places] == run
        is_rank_0 = np.zeros(len(pairs), dtype=np.bool_)
        is_rank_0[first_places[~known]] = True
        self._remember(run[~known])
        return is_rank_0

    def _remember(self, run: NDArray[np.uint64]) -> None:
        if len(run) == 0:
            return
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate((self._runs.pop(), run))
            run.sort()
        self._runs.append(run)


def _hash(source: str, target: str) -> int:
    left = source.encode("utf-8")
    # The length in front keeps ("ab", "c") apart from ("a", "bc").
    digest = hashlib.blake2b(b"%d:%b%b" % (len(left), left, target.encode("utf-8")), digest_size=8).digest()
    return int.from_bytes(digest, "little")
