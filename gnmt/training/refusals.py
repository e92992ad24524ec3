"""What a run is refused for: found before any work is done, or when what it would go on from turns out to differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gnmt.config import build, changed_settings
from gnmt.data.prepared import Prepared
from gnmt.data.tokenizer import Tokenizers
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


def try_model(node: Mapping[str, Any]) -> None:
    """Finds parts of a model that do not fit together, by building it without memory for its weights."""
    size = _STAND_IN_VOCABULARY
    try:
        with torch.device("meta"):
            build(node, source_vocabulary_size=size, target_vocabulary_size=size)
    except InputError:
        raise
    except Exception:
        return  # a model of somebody's own may do what this device cannot; the real building is still to come


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
