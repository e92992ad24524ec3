"""Several languages in one model: directions, tags, weights, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID
from gnmt.data.batching import SubwordSampling, block_pairs
from gnmt.data.corpora import Corpus, Direction, FilesCorpus, Mixture, WeightedText
from gnmt.data.multilingual import Multilingual
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.preprocess import check_tags, preprocess, preprocessed_folder
from gnmt.data.store import PreprocessedData
from gnmt.data.tokenizer import CheckpointTokenizers, TokenizerOptions, Tokenizers, train_tokenizers
from gnmt.decoding.alignment import words_of_source
from gnmt.decoding.segments import cut_line
from gnmt.errors import InputError

WORDS = {
    "en": ["the", "small", "bird", "sees", "river"],
    "de": ["der", "kleine", "Vogel", "sieht", "Fluss"],
    "fr": ["le", "petit", "oiseau", "voit", "fleuve"],
}
SIZES = {"en_de": 60, "en_fr": 20, "de_fr": 20}
MakeCorpora = Callable[..., dict[str, Corpus]]


def sentence(language: str, number: int) -> str:
    """Return one of many sentences; equal numbers are translations of each other."""
    words = WORDS[language]
    return " ".join(words[number // 5**place % 5] for place in range(1 + number % 4)) + f" {number}."


@pytest.fixture
def make_corpora(tmp_path: Path) -> MakeCorpora:
    """Write files of three pairs of languages, and return their corpora, or some of them."""

    def make(*names: str) -> dict[str, Corpus]:
        corpora: dict[str, Corpus] = {}
        for name in names or SIZES:
            languages = name.split("_")
            texts = {}
            for split, numbers in (("train", range(SIZES[name])), ("dev", range(200, 205)), ("test", range(300, 303))):
                paths = [tmp_path / f"{split}.{name}.{language}" for language in languages]
                for path, language in zip(paths, languages, strict=True):
                    path.write_text("".join(sentence(language, number) + "\n" for number in numbers))
                texts[split] = ParallelFiles(str(paths[0]), str(paths[1]))
            corpora[name] = FilesCorpus(
                source_language=languages[0],
                target_language=languages[1],
                train=texts["train"],
                dev=texts["dev"],
                test={"news": texts["test"]},
            )
        return corpora

    return make


@pytest.fixture
def make(make_corpora: MakeCorpora, tmp_path: Path) -> Callable[..., Multilingual]:
    def multilingual(*names: str, **settings: Any) -> Multilingual:
        return Multilingual(**{"corpora": make_corpora(*names), "preprocessed": str(tmp_path / "pre"), **settings})

    return multilingual


@pytest.fixture
def options() -> TokenizerOptions:
    return TokenizerOptions(vocab_size=330)


def language_of(text: str) -> str:
    first = text.split()[0]
    return next(language for language, words in WORDS.items() if first in words)


def rows(data: PreprocessedData) -> list[tuple[str, str, str]]:
    """Return for each pair of the store the name of its tag, and the languages of source and target."""
    store, source = data.store, data.tokenizers.source
    return [
        (
            source.subword(int(store.source_ids([pair])[0][0])),
            language_of(store.source_text(pair)),
            language_of(store.target_text(pair)),
        )
        for pair in range(len(store))
    ]


def test_both_directions_of_every_corpus_are_trained(make: Callable[..., Multilingual]) -> None:
    corpus = make()
    assert list(corpus.training_texts()) == [
        *("en_de.en-de", "en_de.de-en", "en_fr.en-fr", "en_fr.fr-en", "de_fr.de-fr", "de_fr.fr-de"),
    ]
    assert corpus.target_languages == ("de", "en", "fr")
    assert [one.name for one in corpus.directions()] == ["en-de", "de-en", "en-fr", "fr-en", "de-fr", "fr-de"]
    assert {one.num_dev_pairs for one in corpus.directions()} == {5}
    assert list(corpus.test_texts()) == [f"news.{one.name}" for one in corpus.directions()]
    assert next(iter(corpus.test_texts()["news.fr-en"].iterate())) == (sentence("fr", 300), sentence("en", 300))


def test_zero_shot_directions_are_evaluated_but_not_trained(make: Callable[..., Multilingual]) -> None:
    corpus = make(zero_shot=["de-fr", "fr-de"])
    assert list(corpus.training_texts()) == ["en_de.en-de", "en_de.de-en", "en_fr.en-fr", "en_fr.fr-en"]
    assert corpus.directions()[-1] == Direction("fr-de", "de", is_zero_shot=True, num_dev_pairs=5)
    assert [one.is_zero_shot for one in corpus.directions()] == [False] * 4 + [True] * 2
    some = make(trained_directions=["en-de", "en-fr"], zero_shot=["de-fr"])
    assert [one.name for one in some.directions()] == ["en-de", "en-fr", "de-fr"]
    assert some.target_languages == ("de", "fr")


def test_the_tag_before_a_source_names_the_language_of_its_target(
    make: Callable[..., Multilingual], options: TokenizerOptions
) -> None:
    data = preprocess(make(), options)
    found = rows(data)
    assert len(found) == 2 * sum(SIZES.values())
    assert {(tag, source, target) for tag, source, target in found} == {
        (f"<2{target}>", source, target) for source in WORDS for target in WORDS if source != target
    }
    tags = set(data.tokenizers.tags.values())
    assert all(not tags & set(data.store.target_ids([pair])[0].tolist()) for pair in range(len(found)))
    assert all(len(tags & set(data.store.source_ids([pair])[0].tolist())) == 1 for pair in range(len(found)))
    assert tags <= set(data.tokenizers.target.never_produced)
    assert [one.num_pairs for one in data.corpus_spans] == [60, 60, 20, 20, 20, 20]
    assert data.directions == make().directions()
    assert data.dev[5:10] == [(sentence("de", number), sentence("en", number)) for number in range(200, 205)]
    assert not any(lines.causes["unknown"] for lines in data.changed_lines.values())


@pytest.mark.parametrize(("kind", "size"), [("bpe", 360), ("unigram", 300), ("word_character", 360)])
def test_no_text_is_encoded_as_a_tag(kind: Any, size: int) -> None:
    lines = [sentence(language, number) for language in WORDS for number in range(40)]
    options = TokenizerOptions(kind=kind, vocab_size=size, target_normalization="nmt_nfkc")
    tokenizers = train_tokenizers(lines, lines, options, ["de", "fr"])
    assert tokenizers.tags == {"de": 4, "fr": 5}
    ids = tokenizers.source.encode("<2de> the <2fr>")
    assert not {4, 5} & set(ids)
    assert tokenizers.source.decode([4, *ids]) == "<2de> the <2fr>"
    assert not {4, 5} & set(tokenizers.source.encode_sampled("<2de> the", 0.5, 1))
    assert {PAD_ID, BOS_ID, 4, 5} <= set(tokenizers.target.never_produced)
    read = Tokenizers.from_checkpoint(tokenizers.to_checkpoint())
    assert (read.tags, read.digest) == (tokenizers.tags, tokenizers.digest)


def test_the_tag_is_part_of_the_framing() -> None:
    lines = [sentence("en", number) for number in range(60)]
    tokenizers = train_tokenizers(lines, lines, TokenizerOptions(vocab_size=330), ["de", "fr"])
    into = tokenizers.into("fr")
    ids = tokenizers.source.encode("the bird sees.")
    assert into.framed(ids) == [5, *ids, EOS_ID]
    assert into.num_framing_ids == 2
    line = " ".join(lines[:12])
    segments = cut_line(into, line, 12)
    assert len(segments) > 3
    assert all(segment[0] == 5 and segment[-1] == EOS_ID and len(segment) <= 12 for segment in segments)
    words = words_of_source(
        tokenizers.source, "the bird  sees.", into.framed(tokenizers.source.encode("the bird sees."))
    )
    assert words.texts == ["the", "bird", "sees."]
    assert words.of_token[0] is words.of_token[-1] is None
    with pytest.raises(InputError, match="target_language is missing: this model translates into de, fr"):
        tokenizers.into(None)
    with pytest.raises(InputError, match="target_language is 'es', allowed for this model is one of de, fr"):
        tokenizers.into("es")
    plain = train_tokenizers(lines, lines, TokenizerOptions(vocab_size=330))
    assert plain.into(None) == plain
    with pytest.raises(InputError, match="is 'de', allowed for this model is none, because it has one target language"):
        plain.into("de")


def test_sampled_subwords_keep_the_tag(make: Callable[..., Multilingual], options: TokenizerOptions) -> None:
    data = preprocess(make(), options)
    sampling = SubwordSampling(data.tokenizers, 0.5, share=1.0, seed=1, epoch=0)
    for pair in (0, 70, 130):
        source, _ = sampling.encode(data.store, pair)
        assert source[0] == data.store.source_ids([pair])[0][0]
        assert data.tokenizers.source.decode(source) == data.store.source_text(pair)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_directions_are_sampled_by_temperature(make: Callable[..., Multilingual], temperature: float) -> None:
    """p = n^(1/T) / sum of n^(1/T), Arivazhagan et al. 2019 (arXiv 1907.05019)."""
    corpus = make("en_de", "en_fr", temperature=temperature)
    sizes = [1000, 1000, 100, 100]
    expected = np.array([size ** (1 / temperature) for size in sizes])
    weights = np.array(corpus.weights(sizes))
    assert weights / weights.sum() == pytest.approx(expected / expected.sum())


def test_two_corpora_of_a_direction_share_its_weight(make_corpora: MakeCorpora) -> None:
    first, second = make_corpora("en_de"), make_corpora("en_fr")
    corpora = {"a": first["en_de"], "b": replace(first["en_de"], test={}), "c": second["en_fr"]}
    corpus = Multilingual(corpora=corpora, trained_directions=["en-de", "en-fr"], temperature=2)
    weights = corpus.weights([300, 100, 100])
    assert weights == pytest.approx([0.75 * 20, 0.25 * 20, 10])
    assert [one.name for one in corpus.directions()] == ["en-de", "en-de", "en-fr"]


def test_the_weights_reach_the_batches(make: Callable[..., Multilingual], options: TokenizerOptions) -> None:
    data = preprocess(make("en_de", "en_fr", temperature=100), options)
    drawn = np.concatenate([block_pairs(data.corpus_spans, 1, epoch, 0) for epoch in range(5)])
    counts = np.histogram(drawn, [0, 60, 120, 140, 160])[0]
    assert counts.max() <= 1.03 * counts.min()
    even = preprocess(make("en_de", "en_fr"), options)  # the temperature needs no new preprocessing
    assert np.array_equal(block_pairs(even.corpus_spans, 1, 0, 0), np.arange(160))


def test_settings_depend_on_languages_and_directions_but_not_on_paths(make: Callable[..., Multilingual]) -> None:
    corpus, options = make(), TokenizerOptions()
    assert "train.en_de" not in str(corpus.settings())
    for other in (make(zero_shot=["de-fr"]), make("en_de"), make(max_pairs=5)):
        assert other.settings() != corpus.settings()
    assert make(temperature=3).settings() == corpus.settings()
    renamed = dict(corpus.corpora, en_de=replace(corpus.corpora["en_de"], target_language="nl"))
    assert replace_corpora(corpus, renamed).settings() != corpus.settings()
    default = replace_corpora(corpus, corpus.corpora, preprocessed=None)
    assert preprocessed_folder(default, options).name.startswith("multilingual-")


def replace_corpora(corpus: Multilingual, corpora: dict[str, Corpus], **settings: Any) -> Multilingual:
    return Multilingual(**{"corpora": corpora, "preprocessed": corpus.preprocessed, **settings})


def test_existing_tokenizers_need_the_tags_of_the_data(
    make: Callable[..., Multilingual], options: TokenizerOptions, make_corpora: MakeCorpora, tmp_path: Path
) -> None:
    tokenizers = preprocess(make("en_de"), options).tokenizers
    fewer = make("en_de", trained_directions=["en-de"], preprocessed=str(tmp_path / "fewer"))
    assert preprocess(fewer, CheckpointTokenizers(tokenizers)).tokenizers.tags == tokenizers.tags
    more = make("en_fr", preprocessed=str(tmp_path / "more"))
    with pytest.raises(InputError, match="have only tags for de, en, and the data translates into fr too"):
        preprocess(more, CheckpointTokenizers(tokenizers))
    with pytest.raises(InputError, match=r"have tags of target languages \(de, en\).*use data=multilingual"):
        check_tags(tokenizers, ())
    lines = [sentence("en", number) for number in range(60)]
    with pytest.raises(InputError, match="have no tags of target languages"):
        check_tags(train_tokenizers(lines, lines, options), ["de"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpora": {}}, r"data\.corpora names no corpus: add one with \+data@data\.corpora\.NAME=files"),
        ({"zero_shot": ["de-es"]}, r"data\.zero_shot: 'de-es' is not a direction of data\.corpora, which have en-de, "),
        ({"trained_directions": ["x"]}, r"data\.trained_directions: 'x' is not a direction"),
        ({"trained_directions": ["en-de"], "zero_shot": ["en-de"]}, "en-de is in data.trained_directions too"),
        ({"trained_directions": []}, "no direction is left to train"),
    ],
)
def test_wrong_directions_are_refused(
    make: Callable[..., Multilingual], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_language": "source"}, r"data\.corpora\.en_de\.source_language is 'source', allowed is the name of"),
        ({"target_language": "d e"}, "target_language is 'd e', allowed"),
        ({"target_language": "en"}, "source_language and target_language are both en"),
        ({"max_pairs": 3}, r"data\.corpora\.en_de\.max_pairs has no effect: .* use data\.max_pairs"),
        ({"preprocessed": "x"}, r"preprocessed has no effect"),
        ({"bleu_tokenize": "intl"}, r"bleu_tokenize has no effect"),
    ],
)
def test_corpora_that_do_not_fit_are_refused(make_corpora: MakeCorpora, changes: dict[str, Any], message: str) -> None:
    corpora = make_corpora("en_de")
    with pytest.raises(InputError, match=message):
        Multilingual(corpora={"en_de": replace(corpora["en_de"], **changes)})


def test_combinations_and_equal_test_sets_are_refused(make_corpora: MakeCorpora) -> None:
    corpora = make_corpora("en_de")
    files = corpora["en_de"]
    assert isinstance(files, FilesCorpus)
    mixture = Mixture(
        source_language="en", target_language="de", corpora={"a": WeightedText(files.train)}, dev=files.dev
    )
    with pytest.raises(InputError, match=r"data\.corpora\.m is itself a combination of corpora"):
        Multilingual(corpora={"m": mixture})
    with pytest.raises(InputError, match="b and another corpus have the test set news for en-de"):
        Multilingual(corpora={"a": files, "b": files}).test_texts()


def test_references_of_another_script_need_the_name_of_their_language(
    make_corpora: MakeCorpora, tmp_path: Path
) -> None:
    corpora = make_corpora("en_de")
    han = tmp_path / "dev.han"
    han.write_text("猫在桥下。\n" * 5, encoding="utf-8")
    files = corpora["en_de"]
    assert isinstance(files, FilesCorpus)
    other = replace(files, dev=replace(files.dev, target=str(han)))
    with pytest.raises(InputError, match=r"data\.corpora\.x: most letters of the dev references in de are Han"):
        Multilingual(corpora={"x": other}).check_references(())
    Multilingual(corpora={"x": replace(other, target_language="zh")}).check_references(())
    Multilingual(corpora={"x": other}, bleu_tokenize="char").check_references(())


def test_preprocessing_in_processes_gives_the_same_store(
    make: Callable[..., Multilingual], options: TokenizerOptions, tmp_path: Path
) -> None:
    one = preprocess(make(), options)
    several: Sequence[Any] = rows(preprocess(make(num_workers=2, preprocessed=str(tmp_path / "two")), options))
    assert several == rows(one)
