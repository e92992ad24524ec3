"""Korean and English technical text from a local folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from gnmt.data.corpus import ParallelFiles, ParallelText
from gnmt.data.sources import Corpus, find_in_folder
from gnmt.types import InputError

Language = Literal["ko", "en"]
TEST_SET = "test_pydocs"
# What sacreBLEU itself takes for these target languages.
BLEU_TOKENIZERS = {"en": "13a", "ko": "ko-mecab"}


@dataclass(frozen=True, kw_only=True)
class KoreanEnglish(Corpus):
    """Documentation, help texts and everyday sentences, in either direction.

    folder: holds train.ko, train.en, dev.ko, dev.en, test_pydocs.ko, test_pydocs.en, plain or .gz; the test set may be
    absent. There is no public place to download them from. bleu_tokenizers: sacreBLEU's tokenisation by target
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
