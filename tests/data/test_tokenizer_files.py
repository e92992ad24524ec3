"""Tokenizers that exist already."""

from pathlib import Path

import pytest

from gnmt.data.corpora import DemoCorpus
from gnmt.data.preprocess import preprocess, preprocessed_folder
from gnmt.data.tokenizer import TokenizerFiles, TokenizerOptions
from gnmt.errors import InputError


def test_other_data_preprocessed_with_the_tokenizers_of_a_preprocessed_folder(tmp_path: Path) -> None:
    sizes = {"num_train": 200, "num_dev": 5, "num_test": 5}
    first = preprocess(DemoCorpus(**sizes, preprocessed=str(tmp_path / "first")), TokenizerOptions(vocab_size=500))
    model = str(first.folder / "tokenizer" / "source.model")
    other = DemoCorpus(**sizes, seed=2, preprocessed=str(tmp_path / "second"))
    second = preprocess(other, TokenizerFiles(model, model))
    assert second.tokenizers.digest == first.tokenizers.digest
    assert second.tokenizers.joint
    assert second.fingerprint != first.fingerprint


def test_where_the_models_lie_does_not_matter_but_what_they_hold_does(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (TokenizerFiles(str(tmp_path / name), str(tmp_path / name)) for name in "abc")
    corpus = DemoCorpus()
    assert preprocessed_folder(corpus, a) == preprocessed_folder(corpus, b) != preprocessed_folder(corpus, c)


def test_wrong_models(tmp_path: Path) -> None:
    (tmp_path / "source.model").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"sourc\.model: no such file; did you mean .*source\.model"):
        TokenizerFiles(str(tmp_path / "sourc.model"), str(tmp_path / "source.model")).read()
    broken = str(tmp_path / "source.model")
    with pytest.raises(InputError, match=r"not a SentencePiece model"):
        TokenizerFiles(broken, broken).read()
