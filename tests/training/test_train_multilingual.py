"""A multilingual model is trained, evaluated by direction, and asked for one language."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from run_outcome import scalars

from gnmt.batch import Tokens
from gnmt.checkpoint.file import read_checkpoint
from gnmt.checkpoint.load import load_model, read_description
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.decoding.translator import Translator, load_translator
from gnmt.errors import InputError
from gnmt.evaluation.evaluate import TrainingData
from gnmt.evaluation.metrics import score_translations
from gnmt.model.layers import WordDropout
from gnmt.training.train import train

WORDS = {
    "en": ["a", "red", "house", "tree"],
    "de": ["ein", "rotes", "Haus", "Baum"],
    "fr": ["une", "rouge", "maison", "arbre"],
}
PAIRS = [("en", "de"), ("en", "fr"), ("de", "fr")]
SETTINGS = (
    "data=multilingual",
    "tokenizer.vocab_size=300",
    "model.embedding_size=8",
    "schedule=constant",
    "decoding=greedy",
    "trainer.batch_tokens=250",
    "trainer.max_steps=3",
    "device=cpu",
    "precision=fp32",
)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The overrides of a model of six directions, two of which are not trained."""
    folder = tmp_path_factory.mktemp("multilingual")
    rng = random.Random(1)
    for split, number in (("train", 30), ("dev", 3), ("test", 3)):
        rows = [[rng.randrange(4) for _ in range(rng.randint(1, 6))] for _ in range(number)]
        for language, words in WORDS.items():
            text = "".join(" ".join(words[index] for index in row) + ".\n" for row in rows)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    found = ["data.zero_shot=[de-fr,fr-de]", f"data.preprocessed={folder}/preprocessed", "data.temperature=5"]
    for source, target in PAIRS:
        corpus = f"data.corpora.{source}_{target}"
        found += [f"+data@{corpus}=files", f"{corpus}.source_language={source}", f"{corpus}.target_language={target}"]
        for split, key in (("train", "train"), ("dev", "dev"), ("test", "test.test")):
            found += [
                f"{corpus}.{key}.source={folder}/{split}.{source}",
                f"{corpus}.{key}.target={folder}/{split}.{target}",
            ]
    return (*SETTINGS, *found)


@pytest.fixture(scope="module")
def checkpoint(overrides: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        train(compose("train", list(overrides)), folder, None)
    return folder / "best.pt"


def test_dev_scores_by_direction_are_in_tensorboard(checkpoint: Path) -> None:
    found = scalars(checkpoint.parent)
    bleu = {tag: values[-1] for tag, values in found.items() if tag.startswith("dev/") and tag.endswith("/bleu")}
    assert list(bleu) == [
        "dev/bleu",
        *("dev/en-de/bleu", "dev/de-en/bleu", "dev/en-fr/bleu", "dev/fr-en/bleu"),
        *("dev/de-fr.zero_shot/bleu", "dev/fr-de.zero_shot/bleu"),
    ]
    log = (checkpoint.parent / "train.log").read_text()
    assert "BLEU by direction: en-de " in log
    assert "de-fr (zero-shot) " in log


def test_dev_scores_are_those_of_the_translator(checkpoint: Path, overrides: tuple[str, ...]) -> None:
    folder = next(one.partition("=")[2] for one in overrides if one.startswith("data.preprocessed="))
    translator = Translator.load(checkpoint)
    found_chrf = {}
    for source, target in (*PAIRS, *(pair[::-1] for pair in PAIRS)):
        lines, references = (
            (Path(folder).parent / f"dev.{language}").read_text(encoding="utf-8").splitlines()
            for language in (source, target)
        )
        texts = [one.text for one in translator.translate(lines, target_languages=[target] * len(lines))]
        assert texts == [one.text for one in translator.into(target).translate(lines)]
        found_chrf[f"{source}-{target}"] = score_translations(texts, references).chrf
    found = scalars(checkpoint.parent)
    for direction, chrf in found_chrf.items():
        tag = f"{direction}.zero_shot" if direction in ("de-fr", "fr-de") else direction
        assert found[f"dev/{tag}/chrf"][-1][1] == pytest.approx(chrf, abs=1e-3)
    trained = [chrf for direction, chrf in found_chrf.items() if direction not in ("de-fr", "fr-de")]
    assert found["dev/chrf"][-1][1] == pytest.approx(sum(trained) / 4, abs=1e-3)


def test_a_language_must_be_named(checkpoint: Path) -> None:
    translator = Translator.load(checkpoint)
    with pytest.raises(InputError, match="target_language is missing: this model translates into de, en, fr"):
        translator.translate(["a house."])
    with pytest.raises(InputError, match="target_language is missing"):
        translator.score([("a house.", "ein Haus.")])
    with pytest.raises(InputError, match="target_language is 'es', allowed for this model is one of de, en, fr"):
        Translator.load(checkpoint, target_language="es")
    with pytest.raises(InputError, match="fewer target_languages than lines"):
        translator.translate(["a house.", "a tree."], target_languages=["de"])
    with pytest.raises(InputError, match="it must be 3 or more"):
        Translator.load(checkpoint, max_source_tokens=2)
    german = Translator.load(checkpoint, target_language="de")
    [translation] = german.translate(["a house."])
    assert translation.source_tokens[0] == german.tokenizers.tags["de"]
    [score] = german.score([("a house.", translation)])
    assert score.score == pytest.approx(translation.score, abs=1e-4)


def test_word_dropout_keeps_the_tag_of_the_target_language(checkpoint: Path) -> None:
    """Once, it dropped the tag of every tenth training sentence, which then had no language to be translated to."""
    model = load_model(checkpoint, torch.device("cpu")).model.train()
    tags = Translator.load(checkpoint).tokenizers.tags
    assert set(model.kept_source_ids) == set(tags.values())
    model.word_dropout = WordDropout(1.0)
    embedded: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, given: embedded.append(given[0]))
    source = Tokens(torch.tensor([[tags["de"], 9, 3], [tags["fr"], 8, 3]]), torch.tensor([3, 3]))
    model.encode(source)
    assert torch.equal(embedded[0][:, 0], model.source_embedding(source.ids_BT[:, 0]))
    assert not embedded[0][:, 1:].any()


def test_the_languages_that_were_trained_into_the_target_language_are_logged(checkpoint: Path, caplog) -> None:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("translate", [f"checkpoint={checkpoint}", "target_language=de", "device=cpu"])
    with caplog.at_level("INFO"):
        load_translator(cfg).log_trained_directions()
    assert "the model was last trained into de from en" in caplog.text


def test_test_sets_have_directions(checkpoint: Path) -> None:
    translator = Translator.load(checkpoint)
    contents = read_checkpoint(checkpoint)
    config, _ = read_description(contents, "x")
    data = TrainingData(config["data"], contents["preprocessed_folder"], contents["data_fingerprint"], ())
    tests = data.test_sets(None, None)
    assert [text.name for text in tests] == [
        *("test.en-de", "test.de-en", "test.en-fr", "test.fr-en", "test.de-fr", "test.fr-de"),
    ]
    assert [text.direction.is_zero_shot for text in tests if text.direction] == [False] * 4 + [True] * 2
    assert [text.name for text in data.test_sets("test.fr-en", None)] == ["test.fr-en"]
    assert len(data.test_sets("dev", None)) == 6
    [dev] = data.test_sets("dev.fr-de", None)
    assert dev.direction is not None
    assert dev.direction.target_language == "de"
    assert len(dev.rows) == 3
    with pytest.raises(InputError, match=r"test_set=news is not in the training data, which has dev\.en-de"):
        data.test_sets("news", None)
    gone = TrainingData(config["data"], "gone", contents["data_fingerprint"], ())
    assert [(text.name, text.rows, text.direction) for text in gone.test_sets(None, None)] == [
        (text.name, text.rows, text.direction) for text in tests
    ]
    assert translator.tokenizers.tags.keys() == {"de", "en", "fr"}
