"""Several languages in one model (Johnson et al. 2017, arXiv 1611.04558): corpora in any number of directions.

A tag before the source, such as `<2de>`, names the target language. It is a control symbol of the source's vocabulary:
no text is encoded as a tag, and no model produces one. `Multilingual` combines other corpora, each of which may be
used in both directions. `gnmt.data.tokenizer.Tokenizers.into` chooses the target language of a translation.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

from gnmt.config.validate import Range
from gnmt.data.cleaning import Cleaning
from gnmt.data.corpora import (
    SCRIPTS,
    Corpus,
    DirectedText,
    Direction,
    Mixture,
    ReversedText,
    WeightedText,
    language_unlike_13a,
)
from gnmt.data.parallel_text import ParallelText, naming_columns
from gnmt.errors import InputError
from gnmt.fileio import FileFingerprint

_LANGUAGE = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")
_UNNAMED = ("source", "target")  # the languages of data=files unless they are given


@dataclass(frozen=True, kw_only=True)
class Multilingual(Corpus):
    """Several corpora, each in one or both directions, for one model.

    Every direction has its own dev set, and a test set for each of the corpus, named `<test set>.<direction>`. A
    direction is named `<source language>-<target language>`, such as en-de.

    Args:
        corpora: The corpora by name, with one vocabulary. Two of them may have the same languages.
        trained_directions: Names of the directions to train; None for both directions of every corpus, without those
            of `zero_shot`.
        zero_shot: Names of directions that are evaluated and never trained. Their corpora provide dev and test sets.
        temperature: Directions are sampled in proportion to n^(1/temperature), where n is their number of training
            pairs (Arivazhagan et al. 2019, arXiv 1907.05019). 1 uses every pair equally often, and more
            makes directions more equal. It may change without new preprocessing.
    """

    name: str = "multilingual"
    source_language: str = field(init=False, default="multilingual")
    target_language: str = field(init=False, default="multilingual")
    corpora: dict[str, Corpus] = field(default_factory=dict)
    trained_directions: list[str] | None = None
    zero_shot: list[str] = field(default_factory=list)
    temperature: Annotated[float, Range(1, 1000)] = 1.0
    cleaning: Cleaning = field(init=False, default_factory=Cleaning)  # unused: each corpus has its own

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, "temperature")

    def __post_init__(self) -> None:
        if not self.corpora:
            raise InputError(
                "data.corpora names no corpus: add one with +data@data.corpora.NAME=files, where files is a file of "
                "configs/data, and its settings, such as data.corpora.NAME.source_language=en"
            )
        for name, corpus in self.corpora.items():
            _check_corpus(f"data.corpora.{name}", corpus)
        known = list(dict.fromkeys(direction.name for direction in self._all_directions()))
        for key, names in (("trained_directions", self.trained_directions or ()), ("zero_shot", self.zero_shot)):
            if wrong := [name for name in names if name not in known]:
                raise InputError(
                    f"data.{key}: {wrong[0]!r} is not a direction of data.corpora, which have {', '.join(known)}"
                )
        if both := [name for name in self.zero_shot if name in (self.trained_directions or ())]:
            raise InputError(
                f"data.zero_shot: {both[0]} is in data.trained_directions too; a zero-shot direction is never trained"
            )
        if not self._trained():
            raise InputError("no direction is left to train: shorten data.zero_shot or extend data.trained_directions")

    @property
    def target_languages(self) -> tuple[str, ...]:
        """The languages that have a tag, sorted."""
        return tuple(sorted({direction.target_language for direction in self._evaluated()}))

    def check_references(self, references: Iterable[str]) -> None:
        """Raise InputError if BLEU of a direction would use 13a although its dev references need another tokenization.

        The references of each direction are read again, instead of the given ones of all directions.
        """
        for direction in self._evaluated():
            own = (target for _, target in self._text(direction, "dev").iterate())
            found = language_unlike_13a(self.bleu_tokenize, direction.target_language, own)
            if found is not None:
                raise InputError(
                    f"data.corpora.{direction.corpus}: most letters of the dev references in "
                    f"{direction.target_language} are {SCRIPTS[found]}, for which BLEU needs another tokenization "
                    f"than 13a: name the language {found}, or choose data.bleu_tokenize yourself"
                )

    def settings(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "max_pairs": self.max_pairs,
            "corpora": {
                name: {**corpus.settings(), "languages": [corpus.source_language, corpus.target_language]}
                for name, corpus in self.corpora.items()
            },
            "trained_directions": sorted({direction.name for direction in self._trained()}),
            "zero_shot": sorted(set(self.zero_shot)),
        }

    def named_files(self) -> dict[str, Any]:
        return {"corpora": {name: corpus.named_files() for name, corpus in self.corpora.items()}}

    def training_text(self) -> ParallelText:
        return _JoinedText([_Part(one.corpus, self._text(one, "train")) for one in self._trained()], "train")

    def training_texts(self) -> dict[str, WeightedText]:
        return {
            f"{one.corpus}.{one.name}": DirectedText(
                _JoinedText([_Part(one.corpus, self._text(one, "train"))], "train"),
                self.corpora[one.corpus].cleaning,
                target_language=one.target_language,
            )
            for one in self._trained()
        }

    def weights(self, num_pairs: Sequence[int]) -> list[float]:
        """Return the weight of each of `training_texts`: n^(1/temperature) for its direction, by its share of n."""
        names = [direction.name for direction in self._trained()]
        totals: dict[str, int] = defaultdict(int)
        for name, number in zip(names, num_pairs, strict=True):
            totals[name] += number
        return [
            number / totals[name] * totals[name] ** (1 / self.temperature)
            for name, number in zip(names, num_pairs, strict=True)
        ]

    def dev_text(self) -> ParallelText:
        return _JoinedText([_Part(one.corpus, self._text(one, "dev")) for one in self._evaluated()], "dev")

    def directions(self) -> list[Direction]:
        trained = {direction.name for direction in self._trained()}
        return [
            Direction(
                one.name,
                one.target_language,
                is_zero_shot=one.name not in trained,
                num_dev_pairs=sum(1 for _ in self._text(one, "dev").iterate()),
            )
            for one in self._evaluated()
        ]

    def trained_sources(self, target_language: str) -> list[str]:
        """Return the source languages of the directions that are trained into a language, sorted."""
        return sorted({one.source_language for one in self._trained() if one.target_language == target_language})

    def test_texts(self) -> dict[str, ParallelText]:
        texts: dict[str, ParallelText] = {}
        for direction in self._evaluated():
            for test, text in self.corpora[direction.corpus].test_texts().items():
                name = f"{test}.{direction.name}"
                if name in texts:
                    raise InputError(
                        f"data.corpora.{direction.corpus} and another corpus have the test set {test} for "
                        f"{direction.name}: give one of them another name"
                    )
                texts[name] = ReversedText(text) if direction.reverse else text
        return texts

    def _all_directions(self) -> list[_CorpusDirection]:
        """Return both directions of every corpus, in the order of the corpora."""
        return [
            _CorpusDirection(name, *languages, reverse)
            for name, corpus in self.corpora.items()
            for reverse, languages in (
                (False, (corpus.source_language, corpus.target_language)),
                (True, (corpus.target_language, corpus.source_language)),
            )
        ]

    def _trained(self) -> list[_CorpusDirection]:
        wanted = self.trained_directions
        return [
            direction
            for direction in self._all_directions()
            if (direction.name not in self.zero_shot if wanted is None else direction.name in wanted)
        ]

    def _evaluated(self) -> list[_CorpusDirection]:
        trained = self._trained()
        return [one for one in self._all_directions() if one in trained or one.name in self.zero_shot]

    def _text(self, direction: _CorpusDirection, split: str) -> ParallelText:
        """Return the training or dev text of a direction."""
        corpus = self.corpora[direction.corpus]
        text = corpus.training_text() if split == "train" else corpus.dev_text()
        return ReversedText(text) if direction.reverse else text


class _CorpusDirection(NamedTuple):
    """One direction of a corpus of a Multilingual.

    Args:
        corpus: Name of the corpus.
        source_language, target_language: The languages.
        reverse: Source and target of the corpus are exchanged.
    """

    corpus: str
    source_language: str
    target_language: str
    reverse: bool

    @property
    def name(self) -> str:
        return f"{self.source_language}-{self.target_language}"


class _Part(NamedTuple):
    """The text of one direction of the named corpus."""

    corpus: str
    text: ParallelText


@dataclass(frozen=True)
class _JoinedText:
    """The texts of several directions, read one after another. split: `train` or `dev`."""

    parts: Sequence[_Part]
    split: str

    def iterate(self) -> Iterator[tuple[str, str]]:
        for part in self.parts:
            with naming_columns(f"data.corpora.{part.corpus}.{self.split}"):
                yield from part.text.iterate()

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        """Return the files of all corpora as one list, and the rest of each fingerprint under the corpus' name.

        A corpus that is used in both directions is hashed once; the settings hold the directions.
        """
        fingerprint: dict[str, Any] = {"files": []}
        for part in self.parts:
            if part.corpus in fingerprint:
                continue
            text = part.text.text if isinstance(part.text, ReversedText) else part.text
            own = text.fingerprint(known)
            fingerprint["files"] += [{**file, "role": f"{part.corpus}.{file['role']}"} for file in own.pop("files", [])]
            fingerprint[part.corpus] = own
        return fingerprint


def _check_corpus(key: str, corpus: Corpus) -> None:
    """Raise InputError for a corpus that cannot be one of several languages."""
    if isinstance(corpus, Mixture | Multilingual):
        raise InputError(f"{key} is itself a combination of corpora: name its corpora one by one in data.corpora")
    for side in ("source_language", "target_language"):
        language = getattr(corpus, side)
        if not _LANGUAGE.fullmatch(language) or language in _UNNAMED:
            raise InputError(
                f"{key}.{side} is {language!r}, allowed is the name of a language in letters, digits, - and _, such as "
                "de, which becomes the tag <2de>"
            )
    if corpus.source_language == corpus.target_language:
        raise InputError(f"{key}: source_language and target_language are both {corpus.source_language}")
    for setting, default, instead in (
        ("max_pairs", None, "data.max_pairs"),
        ("preprocessed", None, "data.preprocessed"),
        ("bleu_tokenize", "auto", "data.bleu_tokenize"),
    ):
        if getattr(corpus, setting) != default:
            raise InputError(f"{key}.{setting} has no effect: all corpora are preprocessed together; use {instead}")
