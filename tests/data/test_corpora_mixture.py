"""Mixtures: several corpora are preprocessed once, mixed exactly by weight, and resumed exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gnmt.data import batching
from gnmt.data.batching import BatchStream, LoaderState
from gnmt.data.cleaning import Cleaning
from gnmt.data.corpora import Mixture, WeightedText
from gnmt.data.parallel_text import ParallelFiles
from gnmt.data.preprocess import preprocess, preprocessed_folder
from gnmt.data.store import read_preprocessed
from gnmt.data.tokenizer import TokenizerOptions
from gnmt.errors import InputError

Pairs = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def mixture(toy_pairs: Pairs, tmp_path: Path) -> Mixture:
    """A mixture of 200 pairs with weight 1 and 90 pairs with weight 2, of which cleaning drops 10 as too long."""
    files = {}
    long = [(" ".join(["river"] * 40), " ".join(["Fluss"] * 40))] * 10
    for name, pairs in {
        "large": toy_pairs(200, seed=3), "small": toy_pairs(80, seed=4, longest=5) + long, "dev": toy_pairs(5, seed=5)
    }.items():  # fmt: skip
        for side in (0, 1):
            (tmp_path / f"{name}.{side}").write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
        files[name] = ParallelFiles(str(tmp_path / f"{name}.0"), str(tmp_path / f"{name}.1"))
    return Mixture(
        source_language="a",
        target_language="b",
        corpora={
            "large": WeightedText(files["large"]),
            "small": WeightedText(files["small"], Cleaning(max_length_tokens=30), weight=2.0),
            "absent": WeightedText(ParallelFiles()),
        },
        dev=files["dev"],
        preprocessed=str(tmp_path / "preprocessed"),
    )


def test_each_text_is_cleaned_by_its_own_rules_and_stored_after_the_previous_one(
    mixture: Mixture, options: TokenizerOptions, toy_pairs: Pairs
) -> None:
    preprocessed = preprocess(mixture, options)
    expected = [*toy_pairs(200, seed=3), *toy_pairs(80, seed=4, longest=5)]
    assert [preprocessed.store.source_text(pair) for pair in range(len(preprocessed.store))] == [
        pair[0] for pair in expected
    ]
    assert [(span.num_pairs, span.weight) for span in preprocessed.corpus_spans] == [(200, 1.0), (80, 2.0)]
    assert preprocessed.report.dropped["too_long"] == 10
    assert preprocessed.report.examples["too_long"][0]["pair"] == 81
    assert [span.num_pairs for span in read_preprocessed(preprocessed.folder).corpus_spans] == [200, 80]


def test_weights_may_change_without_preprocessing_and_text_may_not(
    mixture: Mixture, options: TokenizerOptions, tmp_path: Path
) -> None:
    first = preprocess(mixture, options)

    def changed(**changes: Any) -> Mixture:
        return replace_corpus(mixture, "small", replace(mixture.corpora["small"], **changes))

    again = preprocess(changed(weight=5.0), options)
    assert again.fingerprint == first.fingerprint
    assert [span.weight for span in again.corpus_spans] == [1.0, 5.0]
    default = replace(mixture, preprocessed=None)
    assert preprocessed_folder(default, options) == preprocessed_folder(
        replace(changed(weight=5.0), preprocessed=None), options
    )
    with pytest.raises(InputError, match=r"data\.corpora\.small\.cleaning\.max_length_tokens: 30 → 20"):
        preprocess(changed(cleaning=Cleaning(max_length_tokens=20)), options)
    (tmp_path / "small.1").write_text("x\n" * 90)
    with pytest.raises(InputError, match=r"data\.train\.small\.target: other content"):
        preprocess(mixture, options)
    with pytest.raises(InputError, match="preprocessed from other inputs"):
        preprocess(replace(mixture, corpora={"large": mixture.corpora["large"]}), options)


def replace_corpus(mixture: Mixture, name: str, corpus: WeightedText) -> Mixture:
    # dataclasses.replace refuses the field `cleaning`, which the constructor does not accept.
    given = {key: getattr(mixture, key) for key in ("source_language", "target_language", "dev", "preprocessed")}
    return Mixture(**given, corpora={**mixture.corpora, name: corpus})


def test_a_stream_mixes_by_weight_and_resumes_exactly(
    mixture: Mixture, options: TokenizerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "BLOCK_PAIRS", 40)
    monkeypatch.setattr(batching, "RUN_PAIRS", 4)
    preprocessed = preprocess(mixture, options)

    def stream(loader_state: LoaderState = LoaderState()) -> BatchStream:  # noqa: B008
        return BatchStream(
            preprocessed.store,
            batch_tokens=600,
            seed=1,
            corpus_spans=preprocessed.corpus_spans,
            loader_state=loader_state,
        )

    uninterrupted = stream()
    counts = np.zeros(280, dtype=int)
    loader_states, updates = [], []
    while uninterrupted.loader_state.epoch < 3:
        loader_states.append(uninterrupted.loader_state)
        updates.append(torch.cat([batch.pairs_B for batch in next(uninterrupted)]))
        counts += np.bincount(updates[-1].numpy(), minlength=280)
        if uninterrupted.loader_state.batches == 0:  # a block ends
            for own in (counts[:200], counts[200:]):
                assert own.max() - own.min() <= 1
    assert counts[:200].sum() == 280
    assert counts[200:].sum() == 560
    for start in range(0, len(loader_states), 5):
        resumed = stream(loader_states[start])
        for update in updates[start : start + 3]:
            assert torch.equal(torch.cat([batch.pairs_B for batch in next(resumed)]), update)
    both = sum(bool((update < 200).any() and (update >= 200).any()) for update in updates)
    assert both > 0.5 * len(updates)  # the longest pairs come from one of them alone


def test_a_mixture_without_training_or_dev_files_is_refused(mixture: Mixture) -> None:
    with pytest.raises(InputError, match=r"data\.corpora names no files"):
        Mixture(source_language="a", target_language="b", dev=mixture.dev)
    with pytest.raises(InputError, match=r"data\.dev names no files"):
        Mixture(source_language="a", target_language="b", corpora=mixture.corpora)
