"""Find sentences of dev and test sets that also stand in the training text.

A model may know their translations by heart, so scores on them say little about new text. Nothing is removed: whether
the training text or the set should lose such sentences is the user's decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnmt.errors import format_count

MAX_FRACTION = 0.001
"""The largest fraction of a set's sentences that may stand in the training text without a warning."""

_NUM_EXAMPLES = 3


@dataclass
class Overlap:
    """The number of lines of a dev or test set that also stand in the training text, character by character.

    Args:
        num_lines: Number of lines of the set.
        num_sources: Number of lines whose source is the source of a training pair. Blank sources do not count.
        num_pairs: Number of these lines whose source and target together are a training pair.
        examples: Line number and source of the first lines that `num_sources` counts.
    """

    num_lines: int
    num_sources: int = 0
    num_pairs: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_too_large(self) -> bool:
        """True if the overlap deserves a warning."""
        return self.num_sources > MAX_FRACTION * self.num_lines

    def counts(self, name: str) -> str:
        """Return the counts as text.

        Args:
            name: Name of the set.
        """
        sources = format_count(self.num_lines, "source")
        return f"{name}: {self.num_sources} of {sources} also in the training text, {self.num_pairs} with their target"


@dataclass
class FoundSentences:
    """The sources and the pairs of dev and test sets that were found in a part of the training text."""

    sources: set[str] = field(default_factory=set)
    pairs: set[tuple[str, str]] = field(default_factory=set)

    def add(self, other: FoundSentences) -> None:
        """Add what was found in another part."""
        self.sources |= other.sources
        self.pairs |= other.pairs

    def to_json(self) -> dict[str, list[Any]]:
        return {"sources": sorted(self.sources), "pairs": sorted(self.pairs)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> FoundSentences:
        return cls(set(found["sources"]), {(source, target) for source, target in found["pairs"]})


class HeldOutSentences:
    """The sentences of dev and test sets, to be searched for in the training text.

    The memory that they and the result need does not grow with the training text.

    Args:
        sets: Source and target of each line of each set, by the name of the set.
    """

    def __init__(self, sets: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        self._pairs = {(source, target) for pairs in sets.values() for source, target in pairs if source.strip()}
        self._sources = {source for source, _ in self._pairs}

    def find_in(self, pairs: Iterable[tuple[str, str]]) -> FoundSentences:
        """Return the sentences that stand among some training pairs."""
        known = [pair for pair in pairs if pair[0] in self._sources]
        return FoundSentences({source for source, _ in known}, self._pairs.intersection(known))


def overlap_of(lines: Sequence[tuple[str, str]], found: FoundSentences) -> Overlap:
    """Return the overlap of a set with the training text.

    Args:
        lines: Source and target of each line of the set.
        found: What was found in the whole training text.
    """
    known = [(number, pair) for number, pair in enumerate(lines, start=1) if pair[0] in found.sources]
    examples = [{"line": number, "source": source} for number, (source, _) in known[:_NUM_EXAMPLES]]
    return Overlap(len(lines), len(known), sum(pair in found.pairs for _, pair in known), examples)
