"""The model and the tokenizers of a run that starts from the checkpoint of another run.

initialize_from brings the architecture, the tokenizers and the weights from one file. `InitialCheckpoint` is that file,
checked like any foreign checkpoint; when the run resumes, it is the run's own newest checkpoint, so the other run may
be gone. `with_its_settings` puts the model and the tokenizers into the config of the run, and `check_overrides` refuses
overrides that contradict them. Both happen before any data is read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gnmt.checkpoint.file import REQUIRED_ENTRIES, read_checkpoint
from gnmt.checkpoint.load import build_model, describe_weight_mismatch, read_description
from gnmt.config.build import resolve
from gnmt.config.recorded_nodes import with_recorded_nodes
from gnmt.config.validate import check_component
from gnmt.data.pretokenized import PretokenizedTokenizer
from gnmt.data.tokenizer import CheckpointTokenizers, Tokenizers, TokenizerSource
from gnmt.errors import InputError, describe_changes, format_count
from gnmt.model.clipping import is_clipping_delta
from gnmt.model.seq2seq import Seq2Seq

log = logging.getLogger(__name__)

MODEL, TOKENIZER = "model", "tokenizer"
"""The nodes of the config that the checkpoint brings."""

_MAX_SHOWN = 3
"""Changes that a message lists. Two architectures may differ in all their keys."""

_UNNAMED_LANGUAGES = frozenset({"source", "target", "unknown"})
"""Values of data.source_language and data.target_language that name no language."""


@dataclass(frozen=True)
class InitialCheckpoint:
    """A checkpoint that brings the model and the tokenizers of a run.

    Args:
        origin: The name of the checkpoint in messages.
        contents: All entries of the file.
        config: The resolved config in it, whose nodes of model and tokenizer are checked.
        tokenizers: The tokenizers in it.
        trusted_packages: Packages whose classes the config may name, besides gnmt and torch.optim.
    """

    origin: str
    contents: Mapping[str, Any]
    config: dict[str, Any]
    tokenizers: Tokenizers
    trusted_packages: tuple[str, ...]

    @classmethod
    def of(cls, contents: Mapping[str, Any], origin: str, trusted_packages: Sequence[str]) -> InitialCheckpoint:
        """Check the contents of a checkpoint, without building anything.

        Raises InputError if an entry is malformed, a class of the config is not trusted, or preprocessing cannot
        produce the subwords.
        """
        trusted = tuple(trusted_packages)
        config, tokenizers = read_description(contents, origin)
        if tokenizers.source_bos or any(isinstance(side, PretokenizedTokenizer) for side in tokenizers[:2]):
            raise InputError(
                f"{origin} is an imported checkpoint, whose subwords preprocessing cannot produce: use a checkpoint "
                "that was trained here"
            )
        if errors := _errors_of_node(config, MODEL, trusted) + _errors_of_node(config, TOKENIZER, trusted):
            raise InputError(f"{origin}: its config was refused, and nothing was built:\n  " + "\n  ".join(errors))
        return cls(origin, contents, config, tokenizers, trusted)

    @property
    def tokenizer_source(self) -> TokenizerSource:
        """The tokenizers in the form that preprocessing takes."""
        return CheckpointTokenizers(self.tokenizers)

    def with_its_settings(self, cfg: Any, overrides: Sequence[str]) -> Any:
        """Return a copy of a composed config with this model and tokenizer, changed by the overrides of the user.

        Settings of a config file, such as an experiment, do not change them. A choice of a group, such as
        model=gnmt_small, takes the whole composed node, and `check_overrides` decides whether it fits.

        Raises InputError if the overrides make a node wrong, for example with an unknown key.
        """
        names = [name for name in (MODEL, TOKENIZER) if name in cfg]
        completed = with_recorded_nodes(cfg, {name: self.config[name] for name in names}, overrides)
        found = resolve(completed)
        if errors := [error for name in names for error in _errors_of_node(found, name, self.trusted_packages)]:
            raise InputError(f"{format_count(len(errors), 'error')} in the config:\n  " + "\n  ".join(errors))
        return completed

    def check_overrides(self, config: Mapping[str, Any]) -> None:
        """Raise InputError if the weights do not fit the checkpoint's own model, or overrides contradict it.

        An override of the model may change what has no weights, such as dropout: names and shapes of the weights
        must stay equal. The tokenizer's settings must be equal.

        Args:
            config: The resolved config that `with_its_settings` has completed.
        """
        self.check_tokenizer_overrides(config)
        weights = self.contents["model"]
        misfit = describe_weight_mismatch(self._model_without_memory(self.config[MODEL]), weights)
        if misfit is not None:
            raise InputError(f"{self.origin}: its weights do not fit the model: {misfit}; use another checkpoint")
        changes = self._changes(MODEL, config)
        if not changes:
            return
        try:
            misfit = describe_weight_mismatch(self._model_without_memory(config[MODEL]), weights)
        except InputError as error:  # its parts do not fit each other, or it is far larger than the checkpoint
            misfit = str(error)
        if misfit is not None:
            raise InputError(
                f"{self.origin} brings its model, which overrides contradict: {_some_of(changes)}. Leave them out; "
                "only settings that change no weights, such as dropout, may differ"
            )
        log.info("other than in the checkpoint: %s", ", ".join(changes))

    def check_tokenizer_overrides(self, config: Mapping[str, Any]) -> None:
        """Raise InputError if an override contradicts the tokenizers."""
        if changes := self._changes(TOKENIZER, config):
            raise InputError(
                f"{self.origin} brings its tokenizers, which overrides contradict: {_some_of(changes)}. Leave them out"
            )

    def warn_of_other_languages(self, config: Mapping[str, Any]) -> None:
        """Log a warning if the checkpoint was trained from or to another language than the data of the run."""
        (old_source, old_target), (source, target) = (
            (data.get("source_language"), data.get("target_language")) for data in (self.config["data"], config["data"])
        )
        if _is_other_language(old_source, source) or _is_other_language(old_target, target):
            log.warning(
                "%s was trained from %s to %s, and this run has data.source_language=%s data.target_language=%s",
                self.origin,
                old_source,
                old_target,
                source,
                target,
            )

    def _changes(self, name: str, config: Mapping[str, Any]) -> list[str]:
        return describe_changes({name: self.config[name]}, {name: config[name]})

    def _model_without_memory(self, node: Mapping[str, Any]) -> Seq2Seq:
        """Build a model on the meta device; on the CPU if a component from outside gnmt needs it."""
        arguments = (node, self.tokenizers, self.trusted_packages, self.origin, self.contents["model"])
        try:
            with torch.device("meta"):
                return build_model(*arguments)
        except InputError:
            raise
        except Exception:
            return build_model(*arguments)


def read_initial_checkpoint(path: str, trusted_packages: Sequence[str]) -> InitialCheckpoint:
    """Read the checkpoint of initialize_from.

    The bound of clipped activations falls from that of the checkpoint, which becomes model.clipping.start.

    Raises InputError if the checkpoint is not usable, see `InitialCheckpoint.of`.
    """
    try:
        contents = read_checkpoint(path, REQUIRED_ENTRIES)
    except InputError as error:
        raise InputError(f"initialize_from: {error}") from None
    initial = InitialCheckpoint.of(contents, f"initialize_from={path}", trusted_packages)
    clipping = initial.config[MODEL].get("clipping")
    deltas = [value for name, value in contents["model"].items() if is_clipping_delta(name)]
    if clipping is not None and deltas:
        clipping["start"] = float(deltas[0])  # all deltas are equal
    return initial


def _errors_of_node(config: Mapping[str, Any], name: str, trusted_packages: Sequence[str]) -> list[str]:
    """Return the errors of the node of model or tokenizer in a resolved config."""
    is_model = name == MODEL
    return check_component(
        config.get(name),
        name,
        trusted_packages=trusted_packages,
        supplied=("source_vocabulary_size", "target_vocabulary_size") if is_model else (),
        expected=(Seq2Seq if is_model else TokenizerSource,),
    )


def _is_other_language(old: object, new: object) -> bool:
    """Return whether two names of languages are known and differ."""
    return isinstance(old, str) and old != new and not {old, new} & _UNNAMED_LANGUAGES


def _some_of(changes: Sequence[str]) -> str:
    """Return the first changes on one line, with the number of the others."""
    rest = f" and {len(changes) - _MAX_SHOWN} more" if len(changes) > _MAX_SHOWN else ""
    return ", ".join(changes[:_MAX_SHOWN]) + rest
