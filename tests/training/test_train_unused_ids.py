"""Target ids that no training sentence holds are in the checkpoint, and search suppresses them."""

from __future__ import annotations

import dataclasses

import pytest

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.checkpoint.file import read_checkpoint
from gnmt.decoding.translator import Translator
from gnmt.training.train import choose_unused_target_ids
from gnmt.training.trainer import TrainerOptions


@pytest.fixture
def options() -> TrainerOptions:
    return TrainerOptions(max_steps=1)


def test_unused_ids_are_those_that_the_store_does_not_hold(preprocessed):
    held = {int(id) for pair in range(len(preprocessed.store)) for id in preprocessed.store.target_ids([pair])[0]}
    size = preprocessed.tokenizers.target.vocabulary_size
    assert preprocessed.unused_target_ids == sorted(set(range(size)) - held - {PAD_ID, UNK_ID, BOS_ID, EOS_ID})
    assert preprocessed.unused_target_ids


def test_a_translator_suppresses_the_unused_ids_of_its_checkpoint(run, preprocessed, tmp_path):
    run(tmp_path / "run", "trainer.max_steps=1")
    best = tmp_path / "run" / "best.pt"
    assert read_checkpoint(best)["unused_target_ids"] == preprocessed.unused_target_ids
    translator = Translator.load(best, device="cpu", precision="fp32")
    assert set(preprocessed.unused_target_ids) < set(translator.suppressed)
    ensemble = Translator.load([best, best], device="cpu", precision="fp32")
    assert ensemble.suppressed == translator.suppressed


def test_a_resumed_run_keeps_its_unused_ids(preprocessed, options):
    assert choose_unused_target_ids(preprocessed, options, saved={"unused_target_ids": [7]}, initial=None) == [7]


def test_ids_that_the_run_of_the_initial_weights_has_seen_are_not_unused(preprocessed, options):
    first, second = preprocessed.unused_target_ids[:2]
    initial = {"unused_target_ids": [second, PAD_ID]}
    assert first != second
    assert choose_unused_target_ids(preprocessed, options, saved=None, initial=initial) == [second]
    assert choose_unused_target_ids(preprocessed, options, saved=None, initial={"unused_target_ids": []}) == []


def test_with_subword_regularization_no_id_is_unused(preprocessed, options):
    sampling = dataclasses.replace(options, subword_regularization=0.1)
    assert choose_unused_target_ids(preprocessed, sampling, saved=None, initial=None) == []
    assert choose_unused_target_ids(preprocessed, options, saved=None, initial=None) == preprocessed.unused_target_ids
