"""Nodes of a recorded config in the config of a new run, with the overrides of the new run's command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from gnmt.config.build import resolve
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.config.run_folder import readable


def with_recorded_nodes(cfg: Any, recorded: Mapping[str, Any], overrides: Sequence[str]) -> Any:
    """Return a copy of a composed config in which nodes are recorded ones, changed by the overrides.

    A choice of the node's group, such as model=gnmt_small, takes the whole composed node instead. Other settings of the
    composed node, such as those of an experiment, have no effect. The result must be checked.

    Args:
        cfg: The config that Hydra has composed with the overrides.
        recorded: The resolved nodes by their names at the root.
        overrides: As on the command line.
    """
    completed, composed = copy.deepcopy(cfg), resolve(cfg)
    for name, node in recorded.items():
        completed[name] = OmegaConf.create(_as_literal(_overridden_node(name, node, composed[name], overrides)))
    return completed


def _overridden_node(name: str, recorded: Any, composed: Any, overrides: Sequence[str]) -> Any:
    """Return a recorded node of the config with the values that the user has overridden.

    Args:
        name: The name of the node.
        recorded: The node in the checkpoint.
        composed: The node in the config that Hydra has composed with the overrides.
        overrides: As on the command line.
    """
    keys = [override.key_or_group for override in readable(overrides)]
    if any(key == name or key.startswith(f"{name}/") for key in keys):
        return composed
    node = copy.deepcopy(recorded)
    keys = [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")]
    for key in keys:
        parents, _, last = key.rpartition(".")
        old, new = _at(composed, parents), _at(node, parents, create=True)
        if not isinstance(old, dict) or not isinstance(new, dict):  # the override changes an item of a list
            return composed
        if last in old:
            new[last] = old[last]
        else:  # the override has removed it
            new.pop(last, None)
    for key, followed in _followers(recorded):
        if followed in keys and key not in keys and _at(recorded, key) == _at(recorded, followed):
            parents, _, last = key.rpartition(".")
            _at(node, parents)[last] = _at(node, followed)
    return node


def _followers(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, other key) for each key of a model's decoder that follows the encoder's in the files of its group.

    A checkpoint holds values only. model.encoder.dropout is also the decoder's in these files, and stays so here.
    """
    for path in sorted((CONFIG_FOLDER / "model" / "decoder").glob("*.yaml")):
        values = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(values, dict) and values["_target_"] == _at(node, "decoder._target_"):
            for key, text in ((str(key), str(value)) for key, value in values.items()):
                if found := re.fullmatch(r"\$\{(?:oc\.select:)?model\.(encoder\.\w+)(?:,[\w.]+)?\}", text):
                    yield f"decoder.{key}", found[1]


def _at(node: Any, key: str, create: bool = False) -> Any:
    """Return the inner node with a dotted key, or None if there is none; `create` makes it."""
    for part in key.split(".") if key else ():
        if not isinstance(node, dict):
            return None
        if create:
            node.setdefault(part, {})
        node = node.get(part)
    return node


def _as_literal(value: Any) -> Any:
    """Return a plain value with every `${` escaped, so that text of a foreign checkpoint is no interpolation."""
    if isinstance(value, dict):
        return {key: _as_literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
