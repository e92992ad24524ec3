"""Corpora: files, the demo grammar, Multi30k, Korean-English, and mixtures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from gnmt.config.validate import Range
from gnmt.data.cleaning import Cleaning
from gnmt.data.download import download
from gnmt.data.parallel_text import ParallelFiles, ParallelText, naming_columns
from gnmt.errors import InputError
from gnmt.fileio import FileStamp


@dataclass(frozen=True, kw_only=True)
class Corpus(ABC):
    """What every corpus says of itself.

    name: names the preprocessed folder. bleu_tokenize: sacreBLEU's tokenization of the target language.
    cleaning: of the training text only; dev and test text stay as they are. preprocessed: the preprocessed folder,
    null for one named after the settings. num_workers: processes that encode the training text; what is preprocessed is the
    same for any number.
    """

    name: str
    source_language: str
    target_language: str
    bleu_tokenize: str = "13a"
    cleaning: Cleaning = field(default_factory=Cleaning)
    preprocessed: str | None = None
    num_workers: Annotated[int, Range(1)] = 1

    # Fields that say where things lie or what they are called, not what the preprocessed text will be.
    _not_content: ClassVar[tuple[str, ...]] = ("name", "bleu_tokenize", "preprocessed", "num_workers")

    def settings(self) -> dict[str, Any]:
        """The fields that decide what the preprocessed text will be, as JSON values; files count by content, not here."""
        kept = {name: value for name, value in asdict(self).items() if name not in self._not_content}
        return {"kind": type(self).__name__, **kept}

    def location(self) -> dict[str, Any]:
        """Files that the config names, as JSON values: they tell default preprocessed folders apart."""
        return {}

    @abstractmethod
    def training_text(self) -> ParallelText: ...

    def training_texts(self) -> dict[str, WeightedText]:
        """The training text in the parts that are cleaned and weighed for themselves, by name, in the text's order."""
        return {self.name: WeightedText(self.training_text(), self.cleaning)}

    @abstractmethod
    def dev_text(self) -> ParallelText: ...

    @abstractmethod
    def test_texts(self) -> dict[str, ParallelText]:
        """Test sets by name, possibly none."""


@dataclass(frozen=True, kw_only=True)
class FilesCorpus(Corpus):
    """A user's own files. test: any number of named test sets; one that names no files is not there."""

    name: str = "files"
    source_language: str = "source"
    target_language: str = "target"
    train: ParallelFiles = field(default_factory=ParallelFiles)
    dev: ParallelFiles = field(default_factory=ParallelFiles)
    test: dict[str, ParallelFiles] = field(default_factory=dict)

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, "train", "dev", "test")

    def __post_init__(self) -> None:
        missing = [key for key, text in {"train": self.train, "dev": self.dev}.items() if not text.given]
        if missing:
            raise InputError(
                "\n".join(
                    f"data.{key} names no files: give data.{key}.source=FILE data.{key}.target=FILE, "
                    f"or data.{key}.pairs=FILE (.tsv or .jsonl)"
                    for key in missing
                )
            )
        check_test_names(self.test)

    def location(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("train", "dev", "test")}

    def training_text(self) -> ParallelText:
        return self.train

    def dev_text(self) -> ParallelText:
        return self.dev

    def test_texts(self) -> dict[str, ParallelText]:
        return {name: text for name, text in self.test.items() if text.given}


def check_test_names(names: Iterable[str]) -> None:
    """Raises InputError for a name that cannot be a test set's folder."""
    for name in names:
        if name.startswith(".") or "/" in name or not name:
            raise InputError(f"data.test: {name!r} cannot name a test set; it becomes the name of a folder")


@dataclass(frozen=True)
class GeneratedText:
    """One split of the demo corpus."""

    split: Literal["train", "dev", "test"]
    num_train: int
    num_dev: int
    num_test: int
    seed: int

    def iterate(self) -> Iterator[tuple[str, str]]:
        splits = _generate(self.num_train, self.num_dev, self.num_test, self.seed)
        yield from splits[self.split]

    def fingerprint(self, known: Mapping[str, FileStamp]) -> dict[str, Any]:
        from gnmt.data.demo_grammar.corpus import CORPUS_VERSION  # sizes and seed stand in the corpus' settings

        return {"grammar_version": CORPUS_VERSION, "split": self.split}


@lru_cache(maxsize=1)
def _generate(num_train: int, num_dev: int, num_test: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    from gnmt.data.demo_grammar.corpus import generate

    return dict(generate(num_train, num_dev, num_test, seed)._asdict())


@dataclass(frozen=True, kw_only=True)
class DemoCorpus(Corpus):
    """The embedded English-German grammar: needs no files, and is the same everywhere for a seed."""

    name: str = "demo"
    source_language: str = "en"
    target_language: str = "de"
    num_train: Annotated[int, Range(1)] = 20_000
    num_dev: Annotated[int, Range(1)] = 500
    num_test: Annotated[int, Range(1)] = 500
    seed: int = 1

    def __post_init__(self) -> None:
        for key in ("num_train", "num_dev", "num_test"):
            if getattr(self, key) < 1:
                raise InputError(f"data.{key} must be 1 or more, found {getattr(self, key)}")
        if (self.source_language, self.target_language) not in (("en", "de"), ("de", "en")):
            raise InputError(
                "the demo corpus goes from en to de or from de to en, found "
                f"data.source_language={self.source_language} data.target_language={self.target_language}"
            )

    def training_text(self) -> ParallelText:
        return self._text("train")

    def dev_text(self) -> ParallelText:
        return self._text("dev")

    def test_texts(self) -> dict[str, ParallelText]:
        return {"test": self._text("test")}

    def _text(self, split: Literal["train", "dev", "test"]) -> ParallelText:
        text = GeneratedText(split, self.num_train, self.num_dev, self.num_test, self.seed)
        return text if self.source_language == "en" else Reversed(text)


@dataclass(frozen=True)
class Reversed:
    """Parallel text read from target to source."""

    text: ParallelText

    def iterate(self) -> Iterator[tuple[str, str]]:
        for source, target in self.text.iterate():
            yield target, source

    def fingerprint(self, known: Mapping[str, FileStamp]) -> dict[str, Any]:
        return {**self.text.fingerprint(known), "reversed": True}


@dataclass(frozen=True, kw_only=True)
class Multi30k(Corpus):
    """Multi30k, task 1: 29,000 image captions with translations (Elliott et al. 2016), en, de, fr, cs.

    folder: a local copy, with train.en, dev.en (or val.en) and test_2016_flickr.en and so on, plain or .gz; the
    test set may be absent. With null the files are downloaded from `url` into `download_folder` and
    checked against their sha256.
    """

    name: str = "multi30k"
    source_language: str = "en"
    target_language: str = "de"
    folder: str | None = None
    download_folder: str = "downloads/multi30k"
    url: str = (
        "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
    )

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, "folder", "download_folder", "url")

    def __post_init__(self) -> None:
        for key in ("source_language", "target_language"):
            if getattr(self, key) not in MULTI30K_LANGUAGES:
                raise InputError(
                    f"data.{key} must be one of {', '.join(MULTI30K_LANGUAGES)}, found {getattr(self, key)}"
                )
        if self.source_language == self.target_language:
            raise InputError(f"data.source_language and data.target_language are both {self.source_language}")

    def training_text(self) -> ParallelText:
        return self._files("train")

    def dev_text(self) -> ParallelText:
        return self._files("dev", "val")

    def test_texts(self) -> dict[str, ParallelText]:
        name = "test_2016_flickr"
        if self.folder is not None and not any(Path(self.folder).glob(f"{name}.{self.source_language}*")):
            return {}
        return {name: self._files(name)}

    def _files(self, *splits: str) -> ParallelFiles:
        return ParallelFiles(self._file(splits, self.source_language), self._file(splits, self.target_language))

    def _file(self, splits: tuple[str, ...], language: str) -> str:
        if self.folder is None:
            name = f"{splits[-1]}.{language}.gz"
            path = Path(self.download_folder) / name
            advice = "Check the network, or put the corpus into a folder yourself and name it with data.folder=PATH"
            download(f"{self.url.rstrip('/')}/{name}", path, MULTI30K_SHA256[name], advice=advice)
            return str(path)
        return find_in_folder(
            self.folder,
            [f"{split}.{language}" for split in splits],
            advice="; leave it out to download Multi30k",
        )


def find_in_folder(folder: str, names: Iterable[str], advice: str = "") -> str:
    """Path of the first of the files that data.folder holds, each looked for as .gz and then plain.

    advice: ends the message where there is no such folder. Raises InputError for that, and where there is none of them.
    """
    if not Path(folder).is_dir():
        raise InputError(f"data.folder={folder}: no such folder{advice}")
    names = [f"{name}{ending}" for name in names for ending in (".gz", "")]
    for name in names:
        if (Path(folder) / name).is_file():
            return str(Path(folder) / name)
    raise InputError(f"data.folder={folder}: holds none of {', '.join(names)}")


MULTI30K_LANGUAGES = ("en", "de", "fr", "cs")
# Of the files at the commit that `url` names.
MULTI30K_SHA256 = {
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.fr.gz": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    "train.cs.gz": "a65adb8b32e3bc664f21ecba7a6e7f6950fd1f405e135f7c312faabdb6255077",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.fr.gz": "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
    "val.cs.gz": "b63226e05c4bd5dd6a42897d74b86a1b9d2c31498252c572b1ea7f7996927fcc",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.fr.gz": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
    "test_2016_flickr.cs.gz": "200a4a74cc9560f051924abb9803be008d1908d77f747e9141aeb86dfd2797f1",
}


Language = Literal["ko", "en"]
TEST_SET = "test_pydocs"
# What sacreBLEU itself takes for these target languages.
BLEU_TOKENIZERS = {"en": "13a", "ko": "ko-mecab"}


@dataclass(frozen=True, kw_only=True)
class KoreanEnglish(Corpus):
    """Documentation, help texts and everyday sentences, in either direction.

    folder: holds train.ko, train.en, dev.ko, dev.en, test_pydocs.ko, test_pydocs.en, plain or .gz; the test set may be
    absent. There is no public place to download them from. bleu_tokenizers: sacreBLEU's tokenization by target
    language. bleu_tokenize: empty for the target language's of those.

    Raises InputError for another language, for twice the same one, and where no folder is named.
    """

    name: str = "koen"
    source_language: Language = "ko"
    target_language: Language = "en"
    bleu_tokenize: str = ""
    bleu_tokenizers: Mapping[str, str] = field(default_factory=lambda: dict(BLEU_TOKENIZERS))
    folder: str | None = None

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, "bleu_tokenizers", "folder")

    def __post_init__(self) -> None:
        for key in ("source_language", "target_language"):
            if getattr(self, key) not in get_args(Language):
                raise InputError(
                    f"data.{key} must be one of {', '.join(get_args(Language))}, found {getattr(self, key)}"
                )
        if self.source_language == self.target_language:
            raise InputError(
                f"data.source_language and data.target_language are both {self.source_language}: for the other "
                "direction give both, data.source_language=en data.target_language=ko"
            )
        if self.folder is None:
            raise InputError(
                "data.folder is not given: this corpus is not downloaded; name a folder that holds train.ko, train.en, "
                f"dev.ko and dev.en (and {TEST_SET}.ko, {TEST_SET}.en), plain or .gz, with data.folder=FOLDER"
            )
        if not self.bleu_tokenize:
            if self.target_language not in self.bleu_tokenizers:
                raise InputError(
                    f"data.bleu_tokenizers has none for {self.target_language}, found {dict(self.bleu_tokenizers)}; "
                    "give it, or data.bleu_tokenize"
                )
            object.__setattr__(self, "bleu_tokenize", self.bleu_tokenizers[self.target_language])

    def training_text(self) -> ParallelText:
        return self._files("train")

    def dev_text(self) -> ParallelText:
        return self._files("dev")

    def test_texts(self) -> dict[str, ParallelText]:
        assert self.folder is not None
        if not any(Path(self.folder).glob(f"{TEST_SET}.{self.source_language}*")):
            return {}
        return {TEST_SET: self._files(TEST_SET)}

    def _files(self, split: str) -> ParallelFiles:
        assert self.folder is not None
        return ParallelFiles(
            find_in_folder(self.folder, [f"{split}.{self.source_language}"]),
            find_in_folder(self.folder, [f"{split}.{self.target_language}"]),
        )


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

    Vocabularies are learned from all of them, every pair as likely as any other, whatever the weights, which are no
    part of what is preprocessed: the same folder serves others.
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

    def training_texts(self) -> dict[str, WeightedText]:
        return {name: replace(corpus, text=JoinedText({name: corpus.text})) for name, corpus in self._given.items()}

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

    def fingerprint(self, known: Mapping[str, FileStamp]) -> dict[str, Any]:
        """Files of all texts in one list, as prepare compares them, and apart from it what else the texts say."""
        fingerprint: dict[str, Any] = {"files": []}
        for name, text in self.texts.items():
            own = text.fingerprint(known)
            fingerprint["files"] += [{**file, "role": f"{name}.{file['role']}"} for file in own.pop("files", [])]
            fingerprint[name] = own
        return fingerprint
