"""Target ids that no training sentence holds: counted while preparing, carried by the checkpoint, never produced."""

from __future__ import annotations

import dataclasses

import pytest

from gnmt.batch import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from gnmt.checkpoint.file import read_checkpoint
from gnmt.decoding.translator import Translator
from gnmt.training.train import unused_target_ids
from gnmt.training.trainer import TrainerOptions


@pytest.fixture
def options() -> TrainerOptions:
    return TrainerOptions(max_steps=1)


def test_they_are_what_the_store_does_not_hold(prepared):
    held = {int(id) for pair in range(len(prepared.store)) for id in prepared.store.target_ids(pair)}
    size = prepared.tokenizers.target.vocabulary_size
    assert prepared.unused_target_ids == sorted(set(range(size)) - held - {PAD_ID, UNK_ID, BOS_ID, EOS_ID})
    assert prepared.unused_target_ids


def test_a_checkpoint_carries_them_to_translation(run, prepared, tmp_path):
    run(tmp_path / "run", "trainer.max_steps=1")
    best = tmp_path / "run" / "best.pt"
    assert read_checkpoint(best)["unused_target_ids"] == prepared.unused_target_ids
    translator = Translator.load(best, device="cpu", precision="fp32")
    assert set(prepared.unused_target_ids) < set(translator.banned)
    ensemble = Translator.load([best, best], device="cpu", precision="fp32")
    assert ensemble.banned == translator.banned


def test_a_run_goes_on_as_it_began(prepared, options):
    """One from before they were counted has none, whatever its data holds now."""
    assert unused_target_ids(prepared, options, saved={}, start=None) == []
    assert unused_target_ids(prepared, options, saved={"unused_target_ids": [7]}, start=None) == [7]


def test_weights_of_another_run_know_what_that_run_has_seen(prepared, options):
    first, second = prepared.unused_target_ids[:2]
    start = {"unused_target_ids": [second, PAD_ID]}
    assert first != second
    assert unused_target_ids(prepared, options, saved=None, start=start) == [second]
    assert unused_target_ids(prepared, options, saved=None, start={}) == []


def test_sampled_subwords_may_hold_any_piece(prepared, options):
    sampling = dataclasses.replace(options, subword_sampling=0.1)
    assert unused_target_ids(prepared, sampling, saved=None, start=None) == []
    assert unused_target_ids(prepared, options, saved=None, start=None) == prepared.unused_target_ids


def test_a_folder_that_was_prepared_before_has_none(prepared):
    manifest = {key: value for key, value in prepared.manifest.items() if key != "unused_target_ids"}
    assert dataclasses.replace(prepared, manifest=manifest).unused_target_ids == []
