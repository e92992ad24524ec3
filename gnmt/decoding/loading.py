"""The translator that a command's config asks for: one place for translate.py, evaluate.py and score.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from gnmt.checkpoint import LoadedModel, Weights
from gnmt.config import decoding_node, resolve
from gnmt.decoding.ensemble import load_members
from gnmt.decoding.translator import ReplaceUnknown, Translator
from gnmt.runtime import choose_device


class LoadedTranslator(NamedTuple):
    """A translator and what its checkpoints hold, the first one's first."""

    translator: Translator
    members: tuple[LoadedModel, ...]


def load_translator(
    cfg: Any,
    device: str | None = None,
    replace_unknown: ReplaceUnknown = "none",
    weights: Weights = "averaged",
) -> LoadedTranslator:
    """Loads what the keys checkpoint, ensemble, batch_size, max_source_tokens, precision, decoding and
    trusted_packages of a checked config say.

    device: instead of the config's, for a process among several. precision "recorded" is that of the first
    checkpoint's training, and batch_size null that of its evaluations. weights: see gnmt.checkpoint.load_model.
    """
    values = resolve(cfg)
    device = values["device"] if device is None else device
    members = load_members(values["checkpoint"], choose_device(device), tuple(values["trusted_packages"]), weights)
    first = members[0]
    translator = Translator.of(
        members,
        first.contents["precision"] if values["precision"] == "recorded" else values["precision"],
        values["batch_size"] or first.config["trainer"]["evaluation_batch_size"],
        values["max_source_tokens"],
        ensemble=values["ensemble"],
        replace_unknown=replace_unknown,
        **decoding_node(first.config["decoding"], cfg.decoding),
    )
    return LoadedTranslator(translator, members)
