"""Models built from checkpoints."""

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
    """What a checkpoint holds for use: the model in eval mode on the device, and what belongs to it.

    config: the resolved training config. contents: the whole file's dictionary.
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
    """Builds the model that a checkpoint describes, after its description passed the check of any config.

    weights: `averaged` takes the averaged ones where the checkpoint has them, `raw` the training's own beside them, and
    raises InputError where only averaged ones were kept.
    """
    contents = read_checkpoint(path, REQUIRED_ENTRIES)
    try:
        config = json.loads(contents["config"])
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
        model_node = config["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path} has a malformed config or tokenizer entry: {first_line(error)}") from None
    model = build_model(model_node, tokenizers, trusted_packages, str(path))
    if weights == "averaged":
        load_weights(model, contents, str(path))
    elif "average" not in contents and config["trainer"].get("ema_decay") is not None:
        raise InputError(
            f"weights=raw: checkpoint {path} holds nothing but averaged weights, as best.pt of a run with "
            "trainer.ema_decay does: give a whole one, such as last.pt of its run"
        )
    else:
        load_weights(model, {**contents, "average": None}, str(path))
    return LoadedModel(model.to(device).eval(), tokenizers, config, contents, device)


@torch.no_grad()
def load_weights(model: Seq2Seq, contents: Mapping[str, Any], origin: str) -> None:
    """Gives the model the weights of a checkpoint that are meant for use: the averaged ones where it has them.

    best.pt holds just these; a whole checkpoint holds the training's own weights, and the average beside them.
    """
    wrong = describe_weight_mismatch(model, contents["model"])
    if wrong is not None:
        raise InputError(f"{origin}: its weights do not fit the model: {wrong}")
    try:
        model.load_state_dict(contents["model"])
        for name, average in (contents.get("average") or {}).items():
            model.get_parameter(name).copy_(average)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{origin}: its weights do not fit the model: {first_line(error)}") from None


def describe_weight_mismatch(model: Seq2Seq, weights: object) -> str | None:
    """In a line, the first tensor in which a model and a checkpoint's weights differ; None where they fit."""
    if not isinstance(weights, Mapping) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        return "they are no tensors by name"
    ours = model.state_dict()
    other_shapes = [name for name in ours if name in weights and weights[name].shape != ours[name].shape]
    missing, unknown = [name for name in ours if name not in weights], [name for name in weights if name not in ours]
    for names, says in (
        (other_shapes, "{} is {} in the checkpoint and {} in the model"),
        (missing, "the checkpoint lacks {}"),
        (unknown, "the checkpoint holds {}, which the model has not"),
    ):
        if names:
            name = names[0]
            shapes = [list(tensors[name].shape) for tensors in (weights, ours) if name in tensors]
            more = f" (and so with {len(names) - 1} more)" if len(names) > 1 else ""
            return says.format(name, *shapes) + more
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        one = first.setdefault(id(parameter), name)
        if weights[one].data_ptr() != weights[name].data_ptr() and not torch.equal(weights[one], weights[name]):
            return f"{one} and {name} are one tensor in the model and differ in the checkpoint"
    return None


def inference_weights(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's weights by name, tied ones under each of their names, averaged where it has averages."""
    model: Mapping[str, Tensor] = contents["model"]
    averages: Mapping[str, Tensor] = contents.get("average") or {}
    by_memory = {model[name].data_ptr(): average for name, average in averages.items()}
    return {name: by_memory.get(weight.data_ptr(), weight) for name, weight in model.items()}


def build_model(
    node: Mapping[str, Any], tokenizers: Tokenizers, trusted_packages: tuple[str, ...], origin: str
) -> Seq2Seq:
    """A Seq2Seq from its config node, with the vocabulary sizes of the tokenizers."""
    sizes = {
        "source_vocabulary_size": tokenizers.source.vocabulary_size,
        "target_vocabulary_size": tokenizers.target.vocabulary_size,
    }
    errors = check_component(
        node, "model", trusted_packages=trusted_packages, supplied=tuple(sizes), expected=(Seq2Seq,)
    )
    if errors:
        raise InputError(f"{origin}: the model's config was refused, nothing was built:\n  " + "\n  ".join(errors))
    try:
        check_shared_vocabulary(node.get("tie_embeddings", "none"), tokenizers.joint)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    try:
        model: Seq2Seq = build(node, **sizes)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{origin}: a model of these widths does not fit into memory: {first_line(error)}") from None
    return model
