"""Values of data and tokenizer settings that validation refuses, by the annotations of the constructors."""

from __future__ import annotations

import re

import pytest
from hydra import compose, initialize_config_dir

from gnmt.config.cli import CONFIG_FOLDER
from gnmt.config.validate import check_config
from gnmt.errors import InputError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_dev=0"], "data.num_dev: found 0, allowed is a whole number of at least 1"),
        (["data.max_pairs=0"], "data.max_pairs: found 0, allowed is a whole number of at least 1 or null"),
        (["data.max_pairs=1e5"], "data.max_pairs: found 100000.0, allowed is a whole number of at least 1 or null"),
        (
            ["data=multi30k", "data.target_language=nl"],
            'data.target_language: found "nl", allowed is one of en, de, fr, cs',
        ),
        (
            ["data=koen", "data.folder=x", "data.target_language=fr"],
            'data.target_language: found "fr", allowed is one of ko, en',
        ),
        (
            ["data=mixture", "data.corpora.first.weight=0"],
            "data.corpora.first.weight: found 0, allowed is a number above 0",
        ),
        (
            ["data.cleaning.max_length_tokens=0"],
            "data.cleaning.max_length_tokens: found 0, allowed is a whole number of at least 1",
        ),
        (
            ["data.cleaning.max_length_ratio=0.5"],
            "data.cleaning.max_length_ratio: found 0.5, allowed is a number of at least 1",
        ),
        (
            ["data.cleaning.max_length_ratio=nan"],
            "data.cleaning.max_length_ratio: found NaN, allowed is a finite number of at least 1",
        ),
        (["tokenizer.kind=word"], 'tokenizer.kind: found "word", allowed is one of bpe, unigram'),
        (
            ["tokenizer.target_normalization=nfkc"],
            'tokenizer.target_normalization: found "nfkc", allowed is one of nmt_nfkc, identity',
        ),
        (["tokenizer.vocab_size=0"], "tokenizer.vocab_size: found 0, allowed is a whole number of at least 1"),
        (
            ["tokenizer.character_coverage=0.5"],
            "tokenizer.character_coverage: found 0.5, allowed is a number of at least 0.98 and at most 1",
        ),
        (["tokenizer.sample_lines=0"], "tokenizer.sample_lines: found 0, allowed is a whole number of at least 1"),
    ],
)
def test_values_out_of_range_are_refused_by_their_key(overrides: list[str], message: str) -> None:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", overrides)
    with pytest.raises(InputError, match=re.escape(message)):
        check_config(config)
