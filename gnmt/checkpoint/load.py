"""Loading: build the model that a checkpoint describes, and load its weights.

The config in a checkpoint is validated like any other config before anything is built, so that a foreign checkpoint
runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnmt.checkpoint.file import REQUIRED_ENTRIES, Weights, read_checkpoint
from gnmt.config.build import build
from gnmt.config.validate import check_component
from gnmt.data.tokenizer import Tokenizers
from gnmt.device import is_out_of_memory
from gnmt.errors import InputError, first_line
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.validate import check_shared_vocabulary


@dataclass(frozen=True)
class LoadedModel:
    """The model of a checkpoint, ready for inference.

    Args:
        model: The model on `device`, in eval mode.
        tokenizers: The tokenizers of both sides.
        config: The resolved config with which the model was trained.
        contents: All entries of the file.
        device: The device of the model.
    """

    model: Seq2Seq
    tokenizers: Tokenizers
    config: dict[str, Any]
    contents: dict[str, Any]
    device: torch.device


def load_model(
    path: str | Path,
    device: torch.device,
    trusted_packages: tuple[str, ...] = (),
    weights: Weights = "averaged",
) -> LoadedModel:
    """Validate the config of a checkpoint, build its model and load its weights.

    Args:
        path: The checkpoint.
        device: The device of the model.
        trusted_packages: Packages whose classes the config may name, besides gnmt and torch.optim.
        weights: "averaged" loads the averaged weights if the checkpoint has them; "raw" loads the optimizer's.

    Raises:
        InputError: The checkpoint is not usable, or weights is "raw" and the checkpoint has only averaged weights.
    """
    contents = read_checkpoint(path, REQUIRED_ENTRIES)
    config, tokenizers = read_description(contents, f"checkpoint {path}")
    model = build_model(config["model"], tokenizers, trusted_packages, str(path))
    if weights == "averaged":
        load_weights(model, contents, str(path))
    elif "average" not in contents and config["trainer"].get("ema_decay") is not None:
        raise InputError(
            f"weights=raw: checkpoint {path} has only averaged weights, as best.pt of a run with trainer.ema_decay: "
            "use a full checkpoint, such as last.pt of the same run"
        )
    else:
        load_weights(model, {**contents, "average": None}, str(path))
    return LoadedModel(model.to(device).eval(), tokenizers, config, contents, device)


def read_description(contents: Mapping[str, Any], origin: str) -> tuple[dict[str, Any], Tokenizers]:
    """Return the config and the tokenizers of a checkpoint. The config is certain to have a model node.

    origin: the name of the checkpoint in errors. Raises InputError if an entry is malformed.
    """
    try:
        config = json.loads(contents["config"])
        config["model"]
        return config, Tokenizers.from_checkpoint(contents["tokenizers"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{origin} has a malformed config or tokenizer entry: {first_line(error)}; use another checkpoint"
        ) from None


def build_model(
    node: Mapping[str, Any], tokenizers: Tokenizers, trusted_packages: tuple[str, ...], origin: str
) -> Seq2Seq:
    """Validate a model's config node and build the model with the vocabulary sizes of the tokenizers.

    Args:
        node: The config node.
        tokenizers: The tokenizers of both sides.
        trusted_packages: See `load_model`.
        origin: The name of the config in errors.

    Raises:
        InputError: The config is refused, or the model does not fit into memory.
    """
    sizes = {
        "source_vocabulary_size": tokenizers.source.vocabulary_size,
        "target_vocabulary_size": tokenizers.target.vocabulary_size,
    }
    errors = check_component(
        node, "model", trusted_packages=trusted_packages, supplied=tuple(sizes), expected=(Seq2Seq,)
    )
    if errors:
        raise InputError(f"{origin}: the model's config was refused, and nothing was built:\n  " + "\n  ".join(errors))
    try:
        check_shared_vocabulary(node, tokenizers.joint)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    try:
        model: Seq2Seq = build(node, **sizes)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{origin}: a model of this size does not fit into memory: {first_line(error)}") from None
    return model


@torch.no_grad()
def load_weights(model: Seq2Seq, contents: Mapping[str, Any], origin: str) -> None:
    """Load the weights for inference: the averaged ones if the checkpoint has them.

    In a full checkpoint, the entry `model` has the raw weights and `average` the averaged ones. In best.pt, `model` has
    the averaged ones. Raises InputError if names or shapes differ from those of the model.
    """
    mismatch = describe_weight_mismatch(model, contents["model"])
    if mismatch is not None:
        raise InputError(f"{origin}: its weights do not fit the model: {mismatch}")
    try:
        model.load_state_dict(contents["model"])
        for name, average in (contents.get("average") or {}).items():
            model.get_parameter(name).copy_(average)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{origin}: its weights do not fit the model: {first_line(error)}") from None


def describe_weight_mismatch(model: Seq2Seq, weights: object) -> str | None:
    """Return a line about the first weight whose name, shape or tie differs from the model's, or None if all fit."""
    if not isinstance(weights, Mapping) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        return "they are not tensors by name"
    expected = model.state_dict()
    other_shape = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    if other_shape:
        name = other_shape[0]
        shapes = f"{list(weights[name].shape)} in the checkpoint and {list(expected[name].shape)} in the model"
        return f"{name} is {shapes}{_and_more(other_shape)}"
    if missing:
        return f"the checkpoint lacks {missing[0]}{_and_more(missing)}"
    if unknown:
        return f"the checkpoint has {unknown[0]}, which the model does not have{_and_more(unknown)}"
    first_names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(parameter), name)
        if weights[first].data_ptr() != weights[name].data_ptr() and not torch.equal(weights[first], weights[name]):
            return f"{first} and {name} are one tensor in the model and differ in the checkpoint"
    return None


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def inference_weights(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's weights for inference by name, the averaged ones if it has them.

    A tied weight is listed under each of its names.
    """
    model: Mapping[str, Tensor] = contents["model"]
    averages: Mapping[str, Tensor] = contents.get("average") or {}
    by_memory = {model[name].data_ptr(): average for name, average in averages.items()}
    return {name: by_memory.get(weight.data_ptr(), weight) for name, weight in model.items()}
