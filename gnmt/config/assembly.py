"""From a composed config to checked values, and from a node to the object that it describes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gnmt.config.check import check_component, constructor_hints, find_class
from gnmt.config.values import MISSING_VALUE, contains, deferred_component, describe_range, nearest, shown
from gnmt.types import InputError, counted


def resolve(cfg: Any) -> dict[str, Any]:
    """The config as plain dictionaries, lists and scalars, interpolations filled in: what a checkpoint keeps.

    Raises InputError for an interpolation that leads nowhere. Missing values stay "???".
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(interpolation_message(error)) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def check_config(cfg: Any) -> None:
    """Judges a whole composed config before any file or device is touched.

    Raises InputError with all errors at once: full key, what was found, what is allowed, the nearest valid name.
    """
    if errors := config_errors(cfg):
        raise InputError(f"{counted(len(errors), 'error')} in the config:\n  " + "\n  ".join(errors))


def config_errors(cfg: Any) -> list[str]:
    """All that is wrong with a composed config, each as "key: what was found, what is allowed"."""
    schema = OmegaConf.get_type(cfg)
    assert schema is not None, "the config has no schema: compose it from configs/"
    values = resolve(cfg)
    trusted = values["trusted_packages"]
    errors: list[str] = []
    for field in dataclasses.fields(schema):
        value = values[field.name]
        if value == MISSING_VALUE:
            errors.append(f"{field.name}: is missing; give it as {field.name}=...")
        elif "component" in field.metadata:
            errors += check_root_component(value, field, trusted)
        else:
            errors += check_root_value(value, field)
    return errors


def check_root_component(value: Any, field: dataclasses.Field[Any], trusted: list[str]) -> list[str]:
    """A component node at the root, or single options that replace recorded ones."""
    kind = field.metadata["component"]
    some = field.metadata["partial"] and isinstance(value, Mapping) and "_target_" not in value
    if some:
        value = {"_target_": kind, **{name: item for name, item in value.items() if item is not None}}
    return check_component(
        value,
        field.name,
        trusted_packages=trusted,
        supplied=field.metadata["supplied"],
        expected=(expected_class(kind),),
        whole=not some,
    )


def expected_class(kind: str) -> type:
    """The class that a schema names; these names are ours, so any package will do."""
    return find_class(kind, trusted_packages=(kind.split(".")[0],))


def check_root_value(value: Any, field: dataclasses.Field[Any]) -> list[str]:
    """A plain value at the root; its type was checked while composing."""
    found = f"{field.name}: found {shown(value)}"
    if "paths" in field.metadata and not is_paths(value):
        return [f"{found}, allowed is a path or a list of paths, [a,b]"]
    if "choices" in field.metadata and value not in field.metadata["choices"]:
        choices = field.metadata["choices"]
        return [f"{found}, allowed is one of {', '.join(choices)}{nearest(str(value), choices)}"]
    if "range" in field.metadata and not contains(field.metadata["range"], value):
        kind = "a whole number" if isinstance(value, int) else "a number"
        return [f"{found}, allowed is {kind} {describe_range(field.metadata['range'])}"]
    if "pattern" in field.metadata and not re.fullmatch(field.metadata["pattern"], value):
        return [f"{found}, allowed is {field.metadata['allowed']}"]
    return []


def is_paths(value: Any) -> bool:
    """Whether a value is a path, or a list of at least one."""
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(path, str) for path in value)
    )


def build(node: Any, **supplied: Any) -> Any:
    """The object that a checked node describes; `supplied` are the keywords that the program gives itself.

    Inner nodes are built first; those of `Deferred` keywords become functions that build them. Plain dictionaries are
    taken as they are (text stays text), DictConfigs are resolved. Done here and not by `hydra.utils.instantiate`, which
    copies what is supplied (an optimiser would step on copies of the parameters), interpolates text of foreign
    checkpoints and changes with Hydra 1.4.
    """
    if isinstance(node, DictConfig):
        node = resolve(node)
    # Which packages are trusted was decided by the check; here the target's own package is as good as any.
    component = find_class(node["_target_"], trusted_packages=(node["_target_"].split(".")[0],))
    hints = constructor_hints(component)
    values = {name: build_value(value, hints.get(name)) for name, value in node.items() if name != "_target_"}
    return component(**values, **supplied)


def build_value(value: Any, hint: Any = None) -> Any:
    """A keyword's value with the components in it built; hint: the keyword's annotation."""
    if deferred_component(hint) is not None:
        return None if value is None else functools.partial(build, value)
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: build_value(item) for key, item in value.items()}
    return [build_value(item) for item in value] if isinstance(value, list | tuple) else value


def decoding_node(recorded: Mapping[str, Any], asked: Any) -> dict[str, Any]:
    """The decoding that a command asked for over the one that its checkpoint recorded.

    A node with `_target_` (`decoding=paper`) is complete and replaces all; otherwise every value that is not
    null replaces that one option.
    """
    options = resolve(asked)
    if "_target_" in options:
        return options
    return {**recorded, **{name: value for name, value in options.items() if value is not None}}


def interpolation_message(error: OmegaConfBaseException) -> str:
    """OmegaConf's complaint about a `${...}`, on one line with the key that holds it."""
    key = error.full_key or "the config"
    return f"{key}: {str(error).splitlines()[0]}"
