"""Several corpora trained on together, each with its weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from gnmt.data.corpus import Cleaning, ParallelFiles, ParallelText, naming_columns
from gnmt.data.encoding import TrainingPart
from gnmt.data.lines import FileStamp
from gnmt.data.sources import Corpus, check_test_names
from gnmt.types import InputError, Range


@dataclass(frozen=True)
class WeightedText:
    """One corpus of a mixture.

    text: where it comes from; ParallelFiles that name no files leave it out. cleaning: of this text alone; what two
    texts both have is no duplicate. weight: what share of the training pairs is its own, relative to other weights.
    """

    text: ParallelText
    cleaning: Cleaning = field(default_factory=Cleaning)
    weight: Annotated[float, Range(0, open_low=True)] = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(f"data.corpora: a weight must be above 0, found {self.weight}")

    @property
    def given(self) -> bool:
        return not isinstance(self.text, ParallelFiles) or self.text.given


@dataclass(frozen=True, kw_only=True)
class Mixture(Corpus):
    """Texts by name, in shares by weight. Each goes through its own pairs once before it begins anew.

    Vocabularies are learnt from all of them, every pair as likely as any other, whatever the weights, which are no
    part of what is prepared: the same folder serves others.
    """

    name: str = "mixture"
    corpora: dict[str, WeightedText] = field(default_factory=dict)
    dev: ParallelFiles = field(default_factory=ParallelFiles)
    test: dict[str, ParallelFiles] = field(default_factory=dict)
    cleaning: Cleaning = field(init=False, default_factory=Cleaning)  # each text has its own

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, "corpora", "dev", "test", "cleaning")

    def __post_init__(self) -> None:
        if not self._given:
            raise InputError(
                "data.corpora names no files: give data.corpora.first.text.source=FILE "
                "data.corpora.first.text.target=FILE"
            )
        if not self.dev.given:
            raise InputError("data.dev names no files: give data.dev.source=FILE data.dev.target=FILE")
        check_test_names(self.test)

    @property
    def _given(self) -> dict[str, WeightedText]:
        return {name: corpus for name, corpus in self.corpora.items() if corpus.given}

    def settings(self) -> dict[str, Any]:
        corpora = {name: {"cleaning": asdict(corpus.cleaning)} for name, corpus in self._given.items()}
        return {**super().settings(), "corpora": corpora}

    def location(self) -> dict[str, Any]:
        texts = {name: repr(corpus.text) for name, corpus in self._given.items()}
        return {"corpora": texts, "dev": repr(self.dev), "test": repr(self.test)}

    def training_text(self) -> ParallelText:
        return JoinedText({name: corpus.text for name, corpus in self._given.items()})

    def training_parts(self) -> dict[str, TrainingPart]:
        return {name: TrainingPart(JoinedText({name: c.text}), c.cleaning, c.weight) for name, c in self._given.items()}

    def dev_text(self) -> ParallelText:
        return self.dev

    def test_texts(self) -> dict[str, ParallelText]:
        return {name: text for name, text in self.test.items() if text.given}


@dataclass(frozen=True)
class JoinedText:
    """Texts one after another."""

    texts: Mapping[str, ParallelText]

    def iterate(self) -> Iterator[tuple[str, str]]:
        for name, text in self.texts.items():
            with naming_columns(f"data.corpora.{name}.text"):
                yield from text.iterate()

    def identity(self, known: Mapping[str, FileStamp]) -> dict[str, Any]:
        """Files of all texts in one list, as prepare compares them, and apart from it what else the texts say."""
        identity: dict[str, Any] = {"files": []}
        for name, text in self.texts.items():
            own = text.identity(known)
            identity["files"] += [{**file, "role": f"{name}.{file['role']}"} for file in own.pop("files", [])]
            identity[name] = own
        return identity
