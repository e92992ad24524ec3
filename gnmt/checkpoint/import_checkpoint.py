"""Models of others as checkpoints of ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gnmt.checkpoint.export import read_folder
from gnmt.checkpoint.file import write_checkpoint
from gnmt.checkpoint.import_nvidia import read_nvidia_gnmt
from gnmt.checkpoint.load import build_model, load_weights
from gnmt.config.build import build
from gnmt.config.validate import check_component
from gnmt.data.tokenizer import Tokenizers
from gnmt.decoding.options import SearchOptions
from gnmt.device import PRECISIONS
from gnmt.errors import InputError, first_line
from gnmt.model.seq2seq import Seq2Seq


def check_fields(contents: Mapping[str, Any], config: Mapping[str, Any], num_target_pieces: int, origin: str) -> None:
    """Raises InputError for the first field whose value no checkpoint of ours would hold, by its name.

    contents: as they are to be written. config: what their config says.
    """
    for name, (is_right, allowed) in _FIELDS.items():
        if name in contents and not is_right(contents[name]):
            raise InputError(f"{origin}: {name} is {shortened(contents[name])}, allowed is {allowed}")
    for id in contents.get("unused_target_ids", []):
        if not _is_count(id) or id >= num_target_pieces:
            raise InputError(
                f"{origin}: unused_target_ids holds {shortened(id)}, allowed are ids of 0 to {num_target_pieces - 1}"
            )
    check_config_parts(config, origin)


def check_config_parts(config: Mapping[str, Any], origin: str) -> None:
    """The parts of the config that translating and evaluating read; the model's was checked when it was built."""
    for part in ("decoding", "trainer", "data"):
        if not isinstance(config.get(part), Mapping):
            raise InputError(f"{origin}: config.{part} is {shortened(config.get(part))}, allowed is an object")
    errors = check_component(config["decoding"], "config.decoding", expected=(SearchOptions,))
    if errors:
        raise InputError(f"{origin}: the search options are wrong:\n  " + "\n  ".join(errors))
    build(config["decoding"])
    size, tokenize = config["trainer"].get("evaluation_batch_size"), config["data"].get("bleu_tokenize")
    if not _is_count(size) or size == 0:
        raise InputError(
            f"{origin}: config.trainer.evaluation_batch_size is {shortened(size)}, allowed is a whole number of at "
            "least 1"
        )
    if not isinstance(tokenize, str):
        raise InputError(
            f"{origin}: config.data.bleu_tokenize is {shortened(tokenize)}, allowed is text, such as '13a'"
        )


def shortened(value: object) -> str:
    """The value as Python writes it, its start where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object_of(is_right: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(_is_text, value)) and all(map(is_right, value.values()))


def _is_list_of(is_right: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


_TRAINED_IN = tuple(name for name in PRECISIONS if name != "auto")
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("step", "best_step"), (_is_count, "a whole number of at least 0")),
    "best": (
        _is_object_of(lambda figure: isinstance(figure, int | float) and not isinstance(figure, bool)),
        "an object of numbers",
    ),
    **dict.fromkeys(("data_fingerprint", "preprocessed_folder", "torch_version"), (_is_text, "text")),
    "precision": (lambda value: value in _TRAINED_IN, f"one of {', '.join(_TRAINED_IN)}"),
    "git_revision": (lambda value: value is None or _is_text(value), "text or null"),
    "unused_target_ids": (_is_list_of(lambda id: True), "a list of ids"),
    "versions": (_is_object_of(_is_text), "an object of texts"),
    "imported_from": (_is_object_of(_is_text), "an object of texts"),
    "average_of": (_is_list_of(_is_object_of(_is_text)), "a list of objects of texts"),
}


log = logging.getLogger(__name__)

READERS: Mapping[str, Callable[[str | Path], dict[str, Any]]] = {
    "nvidia_gnmt": read_nvidia_gnmt,
    "safetensors": read_folder,
}
"""What reads each source: from a path to the contents of a checkpoint."""


def import_checkpoint(
    source: str, checkpoint: str | Path, output: Path, trusted_packages: tuple[str, ...] = ()
) -> Seq2Seq:
    """Writes what lies at `checkpoint` as a checkpoint of weights, and gives the model, which was built to try it.

    source: one of READERS. Raises InputError where something cannot be represented, and for an output that exists.
    """
    if output.exists():
        raise InputError(f"output={output} exists already: choose another name, or remove it")
    contents = READERS[source](checkpoint)
    try:
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
        config = json.loads(contents["config"])
        node = config["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{checkpoint} has a malformed config or tokenizer entry: {first_line(error)}") from None
    model = build_model(node, tokenizers, trusted_packages, str(checkpoint))
    load_weights(model, contents, str(checkpoint))
    check_fields(contents, config, tokenizers.target.vocabulary_size, str(checkpoint))
    try:
        write_checkpoint(output, contents)
    except OSError as error:
        raise InputError(f"output={output} cannot be written ({error.strerror})") from None
    return model
