"""What a run is refused for: found before any work is done, or when what it would go on from turns out to differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gnmt.checkpoint import misfit, read_parts
from gnmt.checkpoint_faults import first_line
from gnmt.config import build, changed_settings
from gnmt.data.prepared import Prepared
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.scoring import check_coverage
from gnmt.model.seq2seq import SIDES_SHARE, Seq2Seq
from gnmt.training.options import TrainerOptions
from gnmt.training.phases import MakeOptimizer
from gnmt.types import InputError

_STAND_IN_VOCABULARY = 1000


def try_optimizers(config: dict[str, Any], options: TrainerOptions) -> None:
    """Finds values that only the optimisers themselves can judge."""
    makers: dict[str, MakeOptimizer] = {"optimizer": partial(build, config["optimizer"])}
    for place, phase in enumerate(options.phases or ()):
        if phase.optimizer is not None:
            makers[f"trainer.phases.{place}.optimizer"] = phase.optimizer
    for key, make in makers.items():
        try:
            make(params=[torch.nn.Parameter(torch.zeros(1))])
        except (ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"{key}: {error}") from None


def try_model(config: Mapping[str, Any]) -> None:
    """Finds parts of a model that do not fit together, or not with the tokenizers or the search of its training."""
    tied = config["model"].get("tie_embeddings", "none")
    if tied in SIDES_SHARE and config["tokenizer"].get("joint") is False:
        raise InputError(
            f"model.tie_embeddings={tied} shares one table between the sides, but with tokenizer.joint=false they have "
            "different pieces: use tokenizer.joint=true, or model.tie_embeddings=none or target_output"
        )
    model = _without_weights(config["model"], _STAND_IN_VOCABULARY, _STAND_IN_VOCABULARY)
    if model is not None:
        check_coverage(build(config["decoding"]), model.decoder.has_attention)


def _without_weights(node: Mapping[str, Any], source_vocabulary_size: int, target_vocabulary_size: int) -> Any:
    """The model without memory for its weights. None where only a real device can build it, as may be somebody's own:
    the real building is still to come."""
    sizes = {"source_vocabulary_size": source_vocabulary_size, "target_vocabulary_size": target_vocabulary_size}
    try:
        with torch.device("meta"):
            return build(node, **sizes)
    except InputError:
        raise
    except Exception:
        return None


def read_start(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of the checkpoint of initialise_from, whose weights have the names and shapes of the run's model.

    Raises InputError where they have not, with the settings that differ. Whether it reads the same pieces, only the
    prepared data can tell.
    """
    try:
        contents = read_parts(path)
    except InputError as error:
        raise InputError(f"initialise_from: {error}") from None
    if not contents["prepared_folder"]:
        return contents  # imported: whether it has pieces that training can prepare, comes first
    try:
        recorded = {"model": json.loads(contents["config"])["model"]}
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"initialise_from={path} garbles a part of a checkpoint: {first_line(error)}") from None
    vocabulary_sizes = [side.vocabulary_size for side in (tokenizers.source, tokenizers.target)]
    try:
        model = _without_weights(config["model"], *vocabulary_sizes)
        wrong = None if model is None else misfit(model, contents["model"])
    except InputError as error:  # one table for its two vocabularies
        wrong = str(error)
    if wrong is None:
        return contents
    changes = changed_settings(recorded, {"model": config["model"]})
    if not changes:
        raise InputError(f"initialise_from={path}: its weights do not fit the model: {wrong}")
    raise InputError(
        f"initialise_from={path}: its weights do not fit the model, which is another one:\n  "
        + "\n  ".join(changes)
        + "\nSet what gives the weights their shapes to what it was there, or begin without initialise_from="
    )


def refuse_other_settings(folder: Path, saved: dict[str, Any], config: dict[str, Any]) -> None:
    """A run goes on with the model, the data and the recipe that it began with."""
    changes = changed_settings(json.loads(saved["config"]), config)
    if changes:
        raise InputError(
            f"{folder} holds a run with other settings:\n  " + "\n  ".join(changes) + "\n"
            "Set them back to continue it, or give the new run a name of its own: name=..."
        )


def refuse_other_data(folder: Path, saved: dict[str, Any], prepared: Prepared) -> None:
    """The same settings may meet other text: files change."""
    if saved["data_identity"] == prepared.identity:
        return
    what = "text"
    if Tokenizers.from_checkpoint(saved["tokenizers"]).digest != prepared.tokenizers.digest:
        what = "text and tokenizers"
    raise InputError(
        f"{folder} was trained on other {what} than {prepared.folder} holds: name the data that it began with "
        "(data.prepared=FOLDER), or give the new run a name of its own: name=..."
    )


def refuse_too_few_positions(model: Seq2Seq, prepared: Prepared) -> None:
    """A model with learned positions must have one for each token of the longest training pair.

    Subwords that are sampled may still come to more; see gnmt.model.positions.
    """
    for side, key, limit, lengths in (
        ("source", "model.encoder.learned_positions", model.encoder.max_tokens, prepared.store.source_lengths),
        ("target", "model.decoder.learned_positions", model.decoder.max_tokens, prepared.store.target_lengths),
    ):
        if limit is None:
            continue  # without a look at the lengths, of which there may be millions on the disk
        longest = int(lengths.max(initial=0)) + 1
        if longest > limit:
            raise InputError(
                f"{key} is {limit}, but the longest {side} of {prepared.folder} has {longest} tokens with EOS: use "
                f"{key}={longest} or more, or leave longer pairs out (data.cleaning.max_length_tokens={limit})"
            )
