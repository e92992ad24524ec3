"""Loading: build the model that a checkpoint describes, and load its weights.

The config in a checkpoint is validated like any other config before anything is built, so that a foreign checkpoint
runs no code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gnmt.checkpoint.file import REQUIRED_ENTRIES, Weights, read_checkpoint
from gnmt.config.build import build
from gnmt.config.validate import check_component
from gnmt.data.tokenizer import Tokenizers
from gnmt.device import PRECISIONS, is_out_of_memory
from gnmt.errors import InputError, first_line, format_count, format_value
from gnmt.fileio import parse_json
from gnmt.model.seq2seq import Seq2Seq
from gnmt.model.validate import check_shared_vocabulary

_MAX_EXCESS = 10  # registered parameters for each weight of the file, see `_bounded`


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
    model = build_model(config["model"], tokenizers, trusted_packages, str(path), contents["model"])
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
    """Check all entries of a checkpoint but the weights, and return its config and its tokenizers.

    origin: the name of the checkpoint in errors. Raises InputError if an entry is malformed.
    """
    check_entries(contents, origin)
    for name, weight in (contents.get("average") or {}).items():
        if name not in contents["model"] or contents["model"][name].shape != weight.shape:
            raise InputError(f"{origin}: average.{name} has no weight of its shape in model; use another checkpoint")
    try:
        config = parse_json(contents["config"])
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
    except ValueError as error:
        raise InputError(
            f"{origin} has a malformed config or tokenizer entry: {first_line(error)}; use another checkpoint"
        ) from None
    _check_config(config, origin)
    for id in contents["unused_target_ids"]:
        if not _is_count(id) or id >= tokenizers.target.vocabulary_size:
            raise InputError(
                f"{origin}: unused_target_ids holds {format_value(id)}, allowed are ids of 0 to "
                f"{tokenizers.target.vocabulary_size - 1}"
            )
    return config, tokenizers


def check_entries(contents: Mapping[str, Any], origin: str) -> None:
    """Raise InputError if an entry of a checkpoint has another type. origin: the name of the checkpoint in errors."""
    for entry, (is_valid, allowed) in _ENTRIES.items():
        if entry in contents and not is_valid(contents[entry]):
            raise InputError(f"{origin}: {entry} is {format_value(contents[entry])}, allowed is {allowed}")


def _check_config(config: Any, origin: str) -> None:
    """Raise InputError if a part of the config is missing, or a setting is wrong that every translation reads.

    The node of the model is checked when the model is built, search options when they are used.
    """
    if not isinstance(config, dict):
        raise InputError(f"{origin}: config is {format_value(config)}, allowed is an object")
    for part in ("model", "decoding", "trainer", "data"):
        if not isinstance(config.get(part), dict):
            raise InputError(f"{origin}: config.{part} is {format_value(config.get(part))}, allowed is an object")
    size = config["trainer"].get("evaluation_batch_size")
    if not _is_count(size) or size == 0:
        raise InputError(
            f"{origin}: config.trainer.evaluation_batch_size is {format_value(size)}, allowed is a whole number of at "
            "least 1"
        )
    texts = {"target_language": "unknown", **config["data"]}  # an imported model has no corpus
    for key, example in (("bleu_tokenize", "13a"), ("target_language", "de")):
        if not isinstance(value := texts.get(key), str):
            raise InputError(
                f"{origin}: config.data.{key} is {format_value(value)}, allowed is text, such as {example}"
            )


def build_model(
    node: Mapping[str, Any],
    tokenizers: Tokenizers,
    trusted_packages: tuple[str, ...],
    origin: str,
    weights: Mapping[str, Tensor] | None = None,
) -> Seq2Seq:
    """Validate a model's config node and build the model with the vocabulary sizes of the tokenizers.

    Word dropout never drops the tag that names the target language of a multilingual model.

    Args:
        node: The config node.
        tokenizers: The tokenizers of both sides.
        trusted_packages: See `load_model`.
        origin: The name of the config in errors.
        weights: The weights that the model will get. A config that asks for many more is refused before they are made.

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
        with _bounded(node, weights, origin):
            model: Seq2Seq = build(node, **sizes)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{origin}: a model of this size does not fit into memory: {first_line(error)}") from None
    model.kept_source_ids = tuple(tokenizers.tags.values())
    return model


@contextmanager
def _bounded(node: Mapping[str, Any], weights: Mapping[str, Tensor] | None, origin: str) -> Iterator[None]:
    """Stop the building of a model from `node` in the block when it has far more parameters than `weights`.

    Otherwise a small file could keep the process busy with billions of layers. Whether the weights really fit is
    checked when they are loaded: a tied parameter is registered several times, and a module may replace others.
    """
    if weights is None:
        yield
        return
    thread, num_held = threading.get_ident(), sum(weight.numel() for weight in weights.values())
    held = f"the {format_count(len(weights), 'tensor')} with {num_held:,} numbers that it holds"
    for key, number in _integers(node, "config.model"):
        if number > num_held:
            raise InputError(f"{origin}: its weights do not fit the model: {key} is {number}, too large for {held}")
    num_parameters = num_values = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal num_parameters, num_values
        if parameter is None or threading.get_ident() != thread:
            return
        num_parameters += 1
        num_values += parameter.numel()
        if num_parameters > _MAX_EXCESS * len(weights) or num_values > _MAX_EXCESS * num_held:
            raise InputError(
                f"{origin}: its weights do not fit the model: its config asks for more than {_MAX_EXCESS} times {held}"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _integers(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, int]]:
    """Yield the integers of a config node, which are sizes and numbers of layers, except those of other packages."""
    if not node.get("_target_", "").startswith("gnmt."):
        return
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _integers(value, f"{path}.{key}")
        elif isinstance(value, int):
            yield f"{path}.{key}", value


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


# Types of entries


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_object_of(is_valid: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(is_valid, value.values()))


def _is_list_of(is_valid: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


_TRAINING_PRECISIONS = tuple(name for name in PRECISIONS if name != "auto")
# For each entry, the check of its value and the description of allowed values in the error message.
_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "config": (_is_text, "JSON text"),
    "model": (_is_object_of(_is_weight), "an object of tensors of floating-point numbers"),
    "average": (lambda value: value is None or _is_object_of(_is_weight)(value), "null or as model"),
    "step": (_is_count, "a whole number of at least 0"),
    "best_step": (_is_count, "a whole number of at least 0"),
    "best": (_is_object_of(_is_number), "an object of numbers"),
    "data_fingerprint": (_is_text, "text"),
    "preprocessed_folder": (_is_text, "text"),
    "torch_version": (_is_text, "text"),
    "precision": (lambda value: value in _TRAINING_PRECISIONS, f"one of {', '.join(_TRAINING_PRECISIONS)}"),
    "git_revision": (lambda value: value is None or _is_text(value), "text or null"),
    "unused_target_ids": (lambda value: isinstance(value, list), "a list of ids"),
    "versions": (_is_object_of(_is_text), "an object of texts"),
    "imported_from": (_is_object_of(_is_text), "an object of texts"),
    "average_of": (_is_list_of(_is_object_of(_is_text)), "a list of objects of texts"),
}
