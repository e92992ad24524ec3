"""A checkpoint file: written so that it is whole or absent, read so that it cannot run code."""

from __future__ import annotations

import importlib.metadata
import io
import json
import pickle
import platform
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import torch
from torch import Tensor

from gnmt.checkpoint_faults import (
    UnreadableCheckpointError,
    first_line,
    is_for_want_of_memory,
    nearby_checkpoints,
    what_is_wrong,
    why_unreadable,
)
from gnmt.config import build, check_component
from gnmt.data.tokenizer import Tokenizers
from gnmt.files import replacing
from gnmt.model.outdated import without_idle_parts
from gnmt.model.seq2seq import SIDES_SHARE, Seq2Seq
from gnmt.types import InputError

FORMAT_VERSION = 1
# What every checkpoint says, besides what only continuing a run needs.
PARTS = ("config", "tokenizers", "model", "step", "best", "best_step", "data_identity", "prepared_folder", "precision")

Weights = Literal["averaged", "raw"]


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


def write_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Writes contents under that name, or leaves what was there untouched.

    contents: nested dictionaries, lists, tuples, tensors and plain Python values; TypeError for anything else, such
    as a NumPy scalar, which could be written but not read. Raises OSError where the disk is full or not writable.
    """
    sealed = {**contents, "format_version": FORMAT_VERSION, "checksum": checksum(contents)}
    with replacing(path) as file:
        output = _Output(file)
        try:
            # Straight to the file: a copy in memory would be as large as the checkpoint.
            torch.save(sealed, cast(BinaryIO, output))
        except RuntimeError:  # what torch makes of a full disk
            if output.error is None:
                raise
            raise output.error from None


class _Output(io.RawIOBase):
    """A file to write, which remembers the error that it failed with."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors on the CPU; nothing in the file is run.

    Raises InputError for a file that is missing, damaged, foreign or of another format version, and of that the
    UnreadableCheckpointError where the file is not to blame.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file{nearby_checkpoints(path)}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        intact = isinstance(contents, dict) and contents.get("checksum") == checksum(contents)
    except pickle.UnpicklingError:  # whose text recommends to load the file without protection
        raise InputError(
            f"checkpoint {path} was refused, and nothing in it ran: it is damaged, or holds objects that only running "
            "its code could rebuild, where checkpoints of this project hold plain values and tensors alone"
        ) from None
    except Exception as error:  # damaged bytes lead torch's reader to errors of every kind, in words of its own parts
        if reason := why_unreadable(path, error):
            raise UnreadableCheckpointError(f"checkpoint {path} cannot be read: {reason}") from None
        raise InputError(f"checkpoint {path} {what_is_wrong(path)}: use another one of its folder") from None
    if not isinstance(contents, dict) or "format_version" not in contents:
        raise InputError(f"{path} is a torch file, but no checkpoint of this project: it has no format_version")
    if contents["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"checkpoint {path} has format version {contents['format_version']}, this code reads {FORMAT_VERSION}: "
            "use the version of gnmt that wrote it"
        )
    if not intact:
        raise InputError(f"checkpoint {path} is damaged: its checksum differs; use another one of its folder")
    return contents


def read_parts(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint that has every part that using it needs."""
    contents = read_checkpoint(path)
    missing = [part for part in PARTS if part not in contents]
    if missing:
        raise InputError(f"checkpoint {path} lacks a part of a checkpoint: {', '.join(missing)}")
    return contents


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
    contents = read_parts(path)
    try:
        config = json.loads(contents["config"])
        tokenizers = Tokenizers.from_checkpoint(contents["tokenizers"])
        model_node = config["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path} garbles a part of a checkpoint: {first_line(error)}") from None
    model_node, contents = without_idle_parts(model_node, contents)
    model = build_model(model_node, tokenizers, trusted_packages, str(path))
    if weights == "averaged":
        take_weights(model, contents, str(path))
    elif "average" not in contents and config["trainer"].get("ema_decay") is not None:
        raise InputError(
            f"weights=raw: checkpoint {path} holds nothing but averaged weights, as best.pt of a run with "
            "trainer.ema_decay does: give a whole one, such as last.pt of its run"
        )
    else:
        take_weights(model, {**contents, "average": None}, str(path))
    return LoadedModel(model.to(device).eval(), tokenizers, config, contents, device)


@torch.no_grad()
def take_weights(model: Seq2Seq, contents: Mapping[str, Any], origin: str) -> None:
    """Gives the model the weights of a checkpoint that are meant for use: the averaged ones where it has them.

    best.pt holds just these; a whole checkpoint holds the training's own weights, and the average beside them.
    """
    wrong = misfit(model, contents["model"])
    if wrong is not None:
        raise InputError(f"{origin}: its weights do not fit the model: {wrong}")
    try:
        model.load_state_dict(contents["model"])
        for name, average in (contents.get("average") or {}).items():
            model.get_parameter(name).copy_(average)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{origin}: its weights do not fit the model: {first_line(error)}") from None


def misfit(model: Seq2Seq, weights: object) -> str | None:
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


def weights_for_use(contents: Mapping[str, Any]) -> dict[str, Tensor]:
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
    if node.get("tie_embeddings", "none") in SIDES_SHARE and not tokenizers.joint:
        raise InputError(
            f"{origin}: model.tie_embeddings={node['tie_embeddings']} shares one table between the sides, but they "
            "have different pieces: use tokenizer.joint=true, or model.tie_embeddings=none or target_output"
        )
    try:
        model: Seq2Seq = build(node, **sizes)
    except RuntimeError as error:
        if not is_for_want_of_memory(error):
            raise
        raise InputError(f"{origin}: a model of these widths does not fit into memory: {first_line(error)}") from None
    return model


def checksum(contents: Mapping[str, Any]) -> int:
    """CRC-32 of all values but the seal itself, in the dictionary's order."""
    value = 0
    for piece in _bytes_of({key: contents[key] for key in contents if key not in ("format_version", "checksum")}):
        value = zlib.crc32(piece, value)
    return value


def _bytes_of(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield repr(key).encode()
            yield from _bytes_of(item)
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__}{len(value)}".encode()
        for item in value:
            yield from _bytes_of(item)
    elif value is None or type(value) in (bool, int, float, str, bytes):
        yield repr(value).encode()
    else:
        raise TypeError(f"a checkpoint holds tensors and plain values, and no {type(value).__name__}")


def software_versions() -> dict[str, str]:
    """What a checkpoint is made with, besides torch."""
    packages = {name: importlib.metadata.version(name) for name in ("gnmt", "sentencepiece")}
    return {**packages, "python": platform.python_version()}


def git_revision() -> str | None:
    """The commit of this source tree, with "-dirty" where it has changes; None outside its own git repository.

    An installed gnmt may lie in the repository of another project, whose commit says nothing of it: there git ignores
    it or does not know it.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        _said_by([*git, "ls-files", "--error-unmatch", Path(__file__).name])
        return _said_by([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    except (OSError, subprocess.SubprocessError):
        return None


def _said_by(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
