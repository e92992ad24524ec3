"""Corpora that a config can name: own files, the demo grammar, Multi30k, Korean-English, and mixtures.

A corpus provides parallel text for training, development and testing. `Corpus` is the interface, which the other
classes implement. `gnmt.data.archives` holds the corpora in archives, and `gnmt.data.parallel_text` reads the text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from gnmt.config.validate import Range
from gnmt.data.cleaning import Cleaning
from gnmt.data.download import download
from gnmt.data.parallel_text import ParallelFiles, ParallelText, naming_columns
from gnmt.errors import InputError
from gnmt.fileio import COMPRESSED_SUFFIXES, FileFingerprint

MULTI30K_TEST_SET = "test_2016_flickr"
# SHA-256 of the files at the commit that Multi30k.url names.
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
KOREAN_ENGLISH_TEST_SET = "test_pydocs"

# sacreBLEU's default tokenization of the languages, by ISO 639 code, for which it is not 13a.
BLEU_TOKENIZERS_BY_LANGUAGE = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor"), "ko-mecab"),
}
SCRIPTS = {"zh": "Han", "ja": "kana or Han", "ko": "Hangul"}
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_NUM_REFERENCES_READ = 1000  # to find their script

# Fields that do not change the preprocessed text where they are only names for the user's files.
_LANGUAGES = ("source_language", "target_language")

Multi30kLanguage = Literal["en", "de", "fr", "cs"]
KoreanEnglishLanguage = Literal["ko", "en"]


@dataclass(frozen=True, kw_only=True)
class Corpus(ABC):
    """The interface of all corpora.

    Args:
        name: Name of the corpus; the name of its preprocessed folder begins with it.
        source_language, target_language: Codes or names of the languages.
        bleu_tokenize: sacreBLEU's tokenization, or `auto` for that of the target language, see `bleu_tokenizer`.
        max_pairs: Number of training pairs to use, a random sample of the corpus (see gnmt.data.sampling), before
            cleaning; None, or more than there are, for all. The sample of a mixture is one of all its pairs, so each
            text has about its share. Dev and test text is never sampled.
        cleaning: Which training pairs to drop. Dev and test text is never cleaned.
        preprocessed: Preprocessed folder; None for a folder that is named after the settings.
        num_workers: Processes that encode the training text. Their number does not change the result.
    """

    name: str
    source_language: str
    target_language: str
    bleu_tokenize: str = "auto"
    max_pairs: Annotated[int, Range(1)] | None = None
    cleaning: Cleaning = field(default_factory=Cleaning)
    preprocessed: str | None = None
    num_workers: Annotated[int, Range(1, 1024)] = 1

    # Fields that do not change the preprocessed text: names, locations, and files, whose content is fingerprinted.
    _not_content: ClassVar[tuple[str, ...]] = ("name", "bleu_tokenize", "preprocessed", "num_workers")

    @property
    def bleu_tokenizer(self) -> str:
        """sacreBLEU's tokenization of the target language."""
        return bleu_tokenizer(self.bleu_tokenize, self.target_language)

    def check_references(self, references: Iterable[str]) -> None:
        """Raise InputError if BLEU would be computed with 13a although the dev references need another tokenization."""
        language = language_unlike_13a(self.bleu_tokenize, self.target_language, references)
        if language is not None:
            raise InputError(
                f"data.target_language is {self.target_language}, but most letters of the dev references are "
                f"{SCRIPTS[language]}, for which BLEU needs another tokenization than 13a: set "
                f"data.target_language={language}, or choose data.bleu_tokenize yourself"
            )

    def settings(self) -> dict[str, Any]:
        """Return the fields that determine the preprocessed text, besides the content of files, as JSON values."""
        kept = {name: value for name, value in asdict(self).items() if name not in self._not_content}
        return {"kind": type(self).__name__, **kept}

    def named_files(self) -> dict[str, Any]:
        """Return the files that the config names, as JSON values. They determine the default preprocessed folder."""
        return {}

    @abstractmethod
    def training_text(self) -> ParallelText:
        """Return all training pairs, before sampling and cleaning."""

    def training_texts(self) -> dict[str, WeightedText]:
        """Return the parts of `training_text` that are cleaned and weighted separately, by name, in its order.

        They are not sampled yet.
        """
        return {self.name: WeightedText(self.training_text(), self.cleaning)}

    @abstractmethod
    def dev_text(self) -> ParallelText:
        """Return the pairs for evaluation during training."""

    def weights(self, num_pairs: Sequence[int]) -> list[float]:
        """Return the weight of each of `training_texts`, relative to the others.

        num_pairs: number of pairs of each, after cleaning.
        """
        return [text.weight for text in self.training_texts().values()]

    @property
    def target_languages(self) -> tuple[str, ...]:
        """The languages that a tag before the source may name; empty for a corpus with one target language."""
        return ()

    def directions(self) -> list[Direction]:
        """Return the directions of `dev_text`, in its order; empty for a corpus with one direction."""
        return []

    @abstractmethod
    def test_texts(self) -> dict[str, ParallelText]:
        """Return the test sets by name; there may be none."""


def bleu_tokenizer(name: str, language: str) -> str:
    """Return sacreBLEU's tokenization.

    Args:
        name: A tokenization, which is returned, or `auto` for that of the language.
        language: ISO 639 code of the target language, such as zh, zh-CN or zho_Hans. Other names have 13a.
    """
    code = re.split("[-_]", language.lower())[0]
    return BLEU_TOKENIZERS_BY_LANGUAGE.get(code, "13a") if name == "auto" else name


def language_unlike_13a(name: str, language: str, references: Iterable[str]) -> str | None:
    """Return zh, ja or ko if `bleu_tokenizer` chooses 13a and most letters of the references are of that language.

    13a separates words at spaces, so Chinese and Japanese text would have a BLEU near 0. A tokenization that the user
    has chosen is not questioned: the result is None, as for all other text.
    """
    if name != "auto" or bleu_tokenizer(name, language) != "13a":
        return None
    text = "".join(islice(references, _NUM_REFERENCES_READ))
    han, kana, hangul = (len(script.findall(text)) for script in (_HAN, _KANA, _HANGUL))
    if 2 * (han + kana + hangul) <= sum(map(str.isalpha, text)):
        return None
    if hangul > han + kana:
        return "ko"
    return "ja" if 10 * kana > han else "zh"


@dataclass(frozen=True)
class WeightedText:
    """The training text of one corpus, with its own cleaning and weight.

    Args:
        text: The pairs. A mixture leaves out a text of ParallelFiles that names no files.
        cleaning: Which pairs to drop. Duplicates are searched within this text alone.
        weight: Share of the training pairs that come from this text, relative to the other weights.
    """

    text: ParallelText
    cleaning: Cleaning = field(default_factory=Cleaning)
    weight: Annotated[float, Range(0, 1_000_000, open_low=True)] = 1.0

    @property
    def given(self) -> bool:
        """True unless the text is of ParallelFiles that name no files."""
        return not isinstance(self.text, ParallelFiles) or self.text.given


@dataclass(frozen=True)
class DirectedText(WeightedText):
    """The training text of one direction of a multilingual corpus.

    target_language: the language that the tag before each source names.
    """

    target_language: str = ""


@dataclass(frozen=True)
class Direction:
    """One direction of a multilingual corpus, in its dev text.

    Args:
        name: Source and target language, such as en-de.
        target_language: The language that the tag before each source names.
        is_zero_shot: The direction is evaluated but not trained.
        num_dev_pairs: Number of pairs of the dev text, which follow those of the direction before it. Two directions
            may have the same name.
    """

    name: str
    target_language: str
    is_zero_shot: bool
    num_dev_pairs: int


@dataclass(frozen=True, kw_only=True)
class FilesCorpus(Corpus):
    """A corpus of the user's own files.

    Args:
        train, dev: Training and dev text. Both are required.
        test: Test sets by name. A test set that names no files is left out.
    """

    name: str = "files"
    source_language: str = "source"
    target_language: str = "target"
    train: ParallelFiles = field(default_factory=ParallelFiles)
    dev: ParallelFiles = field(default_factory=ParallelFiles)
    test: dict[str, ParallelFiles] = field(default_factory=dict)

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, *_LANGUAGES, "train", "dev", "test")

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

    def named_files(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("train", "dev", "test")}

    def training_text(self) -> ParallelText:
        return self.train

    def dev_text(self) -> ParallelText:
        return self.dev

    def test_texts(self) -> dict[str, ParallelText]:
        return {name: text for name, text in self.test.items() if text.given}


def check_test_names(names: Iterable[str]) -> None:
    """Raise InputError for a name that cannot be the folder of a test set."""
    for name in names:
        if name.startswith(".") or "/" in name or not name:
            raise InputError(
                f"data.test: {name!r} cannot name a test set, because its text is copied to a folder of this name: "
                "give a name that is not empty, has no / and does not begin with a dot"
            )


@dataclass(frozen=True, kw_only=True)
class DemoCorpus(Corpus):
    """The embedded English-German corpus, generated by a grammar.

    It needs no files. Equal arguments give equal pairs on every machine.
    """

    name: str = "demo"
    source_language: str = "en"
    target_language: str = "de"
    num_train: Annotated[int, Range(1, 1_000_000)] = 20_000
    num_dev: Annotated[int, Range(1, 1_000_000)] = 500
    num_test: Annotated[int, Range(1, 1_000_000)] = 500
    seed: int = 1

    def __post_init__(self) -> None:
        if (self.source_language, self.target_language) not in (("en", "de"), ("de", "en")):
            raise InputError(
                "the demo corpus translates from en to de or from de to en, found "
                f"data.source_language={self.source_language} data.target_language={self.target_language}"
            )

    def training_text(self) -> ParallelText:
        return self._text("train")

    def dev_text(self) -> ParallelText:
        return self._text("dev")

    def test_texts(self) -> dict[str, ParallelText]:
        return {"test": self._text("test")}

    def _text(self, split: Literal["train", "dev", "test"]) -> ParallelText:
        text = DemoText(split, self.num_train, self.num_dev, self.num_test, self.seed)
        return text if self.source_language == "en" else ReversedText(text)


@dataclass(frozen=True)
class DemoText:
    """One split of the demo corpus, English to German."""

    split: Literal["train", "dev", "test"]
    num_train: int
    num_dev: int
    num_test: int
    seed: int

    def iterate(self) -> Iterator[tuple[str, str]]:
        yield from _generate_demo(self.num_train, self.num_dev, self.num_test, self.seed)[self.split]

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        """Return the version of the grammar and the split; `DemoCorpus.settings` holds sizes and seed."""
        from gnmt.data.demo_grammar.corpus import CORPUS_VERSION

        return {"grammar_version": CORPUS_VERSION, "split": self.split}


@lru_cache(maxsize=1)
def _generate_demo(num_train: int, num_dev: int, num_test: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    from gnmt.data.demo_grammar.corpus import generate

    return dict(generate(num_train, num_dev, num_test, seed)._asdict())


@dataclass(frozen=True)
class ReversedText:
    """Parallel text with source and target exchanged."""

    text: ParallelText

    def iterate(self) -> Iterator[tuple[str, str]]:
        for source, target in self.text.iterate():
            yield target, source

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        return {**self.text.fingerprint(known), "reversed": True}


@dataclass(frozen=True, kw_only=True)
class Multi30k(Corpus):
    """Multi30k, task 1 (Elliott et al. 2016): 29,000 image captions in English, German, French and Czech.

    Args:
        folder: A local copy with train.en, dev.en (or val.en), test_2016_flickr.en and the same files of the other
            language, plain or compressed. The test set may be absent. None downloads the files from `url` to
            `download_folder` and checks their SHA-256.
        download_folder: Folder for downloaded files.
        url: Address of a folder with the files.
    """

    name: str = "multi30k"
    source_language: Multi30kLanguage = "en"
    target_language: Multi30kLanguage = "de"
    folder: str | None = None
    download_folder: str = "downloads/multi30k"
    url: str = (
        "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
    )

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, "folder", "download_folder", "url")

    def __post_init__(self) -> None:
        if self.source_language == self.target_language:
            raise InputError(
                f"data.source_language and data.target_language are both {self.source_language}: "
                "give two different languages"
            )

    def training_text(self) -> ParallelText:
        return self._files("train")

    def dev_text(self) -> ParallelText:
        return self._files("dev", "val")

    def test_texts(self) -> dict[str, ParallelText]:
        if self.folder is not None and not _has_test_set(self.folder, MULTI30K_TEST_SET, self.source_language):
            return {}
        return {MULTI30K_TEST_SET: self._files(MULTI30K_TEST_SET)}

    def _files(self, *splits: str) -> ParallelFiles:
        """Return both files of a split. The last name is downloaded; a local copy may have any of the names."""
        return ParallelFiles(self._file(splits, self.source_language), self._file(splits, self.target_language))

    def _file(self, splits: tuple[str, ...], language: str) -> str:
        if self.folder is None:
            name = f"{splits[-1]}.{language}.gz"
            path = Path(self.download_folder) / name
            advice = "Check the network, or copy the corpus into a folder yourself and name it with data.folder=PATH"
            download(f"{self.url.rstrip('/')}/{name}", path, MULTI30K_SHA256[name], advice=advice)
            return str(path)
        names = [f"{split}.{language}" for split in splits]
        return find_in_folder(self.folder, names, advice="; omit data.folder to download Multi30k")


@dataclass(frozen=True, kw_only=True)
class KoreanEnglish(Corpus):
    """A Korean-English corpus of documentation, help texts and everyday sentences, in either direction.

    It cannot be downloaded, so `folder` is required.

    Args:
        folder: Folder with train.ko, train.en, dev.ko, dev.en, test_pydocs.ko and test_pydocs.en, plain or compressed.
            The test set may be absent.
    """

    name: str = "koen"
    source_language: KoreanEnglishLanguage = "ko"
    target_language: KoreanEnglishLanguage = "en"
    folder: str | None = None

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, "folder")

    def __post_init__(self) -> None:
        if self.source_language == self.target_language:
            raise InputError(
                f"data.source_language and data.target_language are both {self.source_language}: for the other "
                "direction give both, data.source_language=en data.target_language=ko"
            )
        if self.folder is None:
            test = KOREAN_ENGLISH_TEST_SET
            raise InputError(
                "data.folder is not given: this corpus cannot be downloaded; name a folder with train.ko, train.en, "
                f"dev.ko and dev.en (and {test}.ko, {test}.en), plain or compressed, with data.folder=FOLDER"
            )

    def training_text(self) -> ParallelText:
        return self._files("train")

    def dev_text(self) -> ParallelText:
        return self._files("dev")

    def test_texts(self) -> dict[str, ParallelText]:
        assert self.folder is not None
        if not _has_test_set(self.folder, KOREAN_ENGLISH_TEST_SET, self.source_language):
            return {}
        return {KOREAN_ENGLISH_TEST_SET: self._files(KOREAN_ENGLISH_TEST_SET)}

    def _files(self, split: str) -> ParallelFiles:
        assert self.folder is not None
        return ParallelFiles(
            find_in_folder(self.folder, [f"{split}.{self.source_language}"]),
            find_in_folder(self.folder, [f"{split}.{self.target_language}"]),
        )


def _has_test_set(folder: str, name: str, language: str) -> bool:
    return any(Path(folder).glob(f"{name}.{language}*"))


def find_in_folder(folder: str, names: Iterable[str], advice: str = "") -> str:
    """Return the path of the first file in `names` that exists in `folder`, a compressed one before a plain one.

    Raises InputError if the folder is missing or contains none of the files.

    Args:
        folder: Value of data.folder.
        names: File names without COMPRESSED_SUFFIXES.
        advice: End of the message about a missing folder.
    """
    if not Path(folder).is_dir():
        raise InputError(f"data.folder={folder}: no such folder{advice}")
    names, endings = list(names), (*COMPRESSED_SUFFIXES, "")
    for path in (Path(folder) / f"{name}{ending}" for name in names for ending in endings):
        if path.is_file():
            return str(path)
    raise InputError(
        f"data.folder={folder}: contains none of {', '.join(names)}, plain or with {', '.join(COMPRESSED_SUFFIXES)}"
    )


@dataclass(frozen=True, kw_only=True)
class Mixture(Corpus):
    """Several training texts, mixed in proportion to their weights.

    All pairs of a text are used once before any is repeated. Vocabularies are learned from all texts, with every pair
    equally probable. The weights do not change the preprocessed data, so one folder serves any weights.

    Args:
        corpora: The texts by name.
        dev: Dev text.
        test: Test sets by name. A test set that names no files is left out.
    """

    name: str = "mixture"
    corpora: dict[str, WeightedText] = field(default_factory=dict)
    dev: ParallelFiles = field(default_factory=ParallelFiles)
    test: dict[str, ParallelFiles] = field(default_factory=dict)
    cleaning: Cleaning = field(init=False, default_factory=Cleaning)  # unused: each text has its own

    _not_content: ClassVar[tuple[str, ...]] = (*Corpus._not_content, *_LANGUAGES, "corpora", "dev", "test", "cleaning")

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

    def named_files(self) -> dict[str, Any]:
        texts = {name: repr(corpus.text) for name, corpus in self._given.items()}
        return {"corpora": texts, "dev": repr(self.dev), "test": repr(self.test)}

    def training_text(self) -> ParallelText:
        return JoinedText({name: corpus.text for name, corpus in self._given.items()})

    def training_texts(self) -> dict[str, WeightedText]:
        # JoinedText adds the key of the text to error messages.
        return {name: replace(corpus, text=JoinedText({name: corpus.text})) for name, corpus in self._given.items()}

    def dev_text(self) -> ParallelText:
        return self.dev

    def test_texts(self) -> dict[str, ParallelText]:
        return {name: text for name, text in self.test.items() if text.given}


@dataclass(frozen=True)
class JoinedText:
    """The texts of a mixture, read one after another. Keys are their names in data.corpora."""

    texts: Mapping[str, ParallelText]

    def iterate(self) -> Iterator[tuple[str, str]]:
        for name, text in self.texts.items():
            with naming_columns(f"data.corpora.{name}.text"):
                yield from text.iterate()

    def fingerprint(self, known: Mapping[str, FileFingerprint]) -> dict[str, Any]:
        """Return the files of all texts as one list, and the rest of each fingerprint under the name of its text."""
        fingerprint: dict[str, Any] = {"files": []}
        for name, text in self.texts.items():
            own = text.fingerprint(known)
            fingerprint["files"] += [{**file, "role": f"{name}.{file['role']}"} for file in own.pop("files", [])]
            fingerprint[name] = own
        return fingerprint
