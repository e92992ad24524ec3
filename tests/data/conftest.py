"""Small artificial corpora."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gnmt.data.cleaning import Cleaning
from gnmt.data.corpora import FilesCorpus
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.store import Store, StoreWriter, encoded_side
from gnmt.data.tokenizer import Tokenizer, TokenizerOptions, Tokenizers, train_tokenizer

_WORDS = {
    "the": "der", "small": "kleine", "green": "grüne", "house": "Haus", "bird": "Vogel", "sees": "sieht",
    "under": "unter", "bridge": "Brücke", "never": "niemals", "slowly": "langsam", "river": "Fluss", "and": "und",
    "answers": "antwortet", "eleven": "elf", "mountains": "Berge", "window": "Fenster", "sleeps": "schläft",
}  # fmt: skip


def make_pairs(number: int, seed: int = 0, longest: int = 14) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    pairs = []
    for _ in range(number):
        words = rng.choices(list(_WORDS), k=rng.randint(1, longest))
        pairs.append((" ".join(words) + ".", " ".join(_WORDS[word] for word in words) + "."))
    return pairs


@pytest.fixture(scope="session")
def toy_pairs() -> Callable[..., list[tuple[str, str]]]:
    """Return random words in two languages, in pairs of many lengths: toy_pairs(number, seed=0, longest=14)."""
    return make_pairs


@pytest.fixture(scope="session")
def options() -> TokenizerOptions:
    """A vocabulary size for which the toy pairs have enough text."""
    return TokenizerOptions(vocab_size=380)


@pytest.fixture(scope="session")
def tokenizer(options: TokenizerOptions) -> Tokenizer:
    return train_tokenizer([side for pair in make_pairs(300) for side in pair], options)


@pytest.fixture(scope="session")
def tokenizers(tokenizer: Tokenizer) -> Tokenizers:
    return Tokenizers(tokenizer, tokenizer)


@pytest.fixture(scope="session")
def store(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 400 pairs."""
    folder = tmp_path_factory.mktemp("store")
    with StoreWriter(folder, 400, 400) as writer:
        for source, target in make_pairs(400, seed=3):
            writer.append(
                encoded_side([tokenizer.encode(source)], [source]), encoded_side([tokenizer.encode(target)], [target])
            )
    return Store(folder)


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., FilesCorpus]:
    """Write train and dev files, and return their corpus, which is preprocessed in tmp_path/preprocessed."""

    def make(train: list[tuple[str, str]] | None = None, cleaning: Cleaning | None = None) -> FilesCorpus:
        texts = {"train": make_pairs(300) if train is None else train, "dev": make_pairs(7, seed=1)}
        files = {}
        for name, pairs in texts.items():
            for side in (0, 1):
                text = "".join(pair[side] + "\n" for pair in pairs)
                (tmp_path / f"{name}.{side}").write_text(text, encoding="utf-8", newline="\n")
            files[name] = ParallelFiles(str(tmp_path / f"{name}.0"), str(tmp_path / f"{name}.1"))
        return FilesCorpus(**files, cleaning=cleaning or Cleaning(), preprocessed=str(tmp_path / "preprocessed"))

    return make
