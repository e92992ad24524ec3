"""Why Hydra could not compose a config, in terms of keys, choices and the nearest right ones.

Runs only after composition failed: it tries every override by itself, so that all errors come at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gnmt.config.assembly import config_errors
from gnmt.config.choices import CONFIG_FOLDER, choice_problems, groups_of, single_overrides
from gnmt.config.runs import flatten
from gnmt.config.schemas import SCHEMAS
from gnmt.config.values import describe, shown
from gnmt.types import InputError, counted

# What composing raises; a ValueError is Hydra's for a group that is given a number or null.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)


def explain(
    error: Exception | None,
    config_name: str,
    overrides: Sequence[str],
    *,
    sweep: bool = False,
    places: Sequence[str] = (),
) -> str:
    """All that is wrong with the overrides of a command line, or Hydra's own words where nothing is found.

    places: where configs are looked for besides our own.
    """
    problems: list[str] = []
    groups = [f"hydra.searchpath=[{','.join(json.dumps(place, ensure_ascii=False) for place in places)}]"]
    values: list[Override] = []
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        known_groups = groups_of(config_name, places)
        for text in overrides:
            if text.startswith("="):
                problems.append(f"{text}: found no key before '=', allowed is key=value without spaces around '='")
                continue
            try:
                override = OverridesParser.create().parse_override(text)
            except HydraException as syntax_error:
                problems.append(syntax_problem(text, syntax_error))
                continue
            if override.is_sweep_override() and not sweep:
                problems.append(several_values_problem(override))
            elif override.key_or_group in known_groups or "/" in override.key_or_group:
                group_problems = choice_problems(override, known_groups)
                problems += group_problems
                groups += [] if group_problems else single_overrides(override)[-1:]
            else:
                values.append(override)
        try:
            keys = list_keys(compose(config_name, groups))
        except COMPOSITION_ERRORS as group_error:
            return "\n  ".join(["wrong config:", *(problems or [str(group_error)])])
        composed: list[Override] = []
        for override in values:
            found = value_problems(override, config_name, groups, keys, known_groups)
            problems += found
            composed += [] if found else [override]
        if problems:
            problems += errors_of_values(composed, config_name, groups)
    if not problems:
        assert error is not None
        return "wrong config:\n  " + "\n  ".join(line for line in (str(error), str(error.__cause__ or "")) if line)
    return "\n  ".join([f"{counted(len(problems), 'error')} in the overrides:", *problems])


def errors_of_values(overrides: Sequence[Override], config_name: str, groups: list[str]) -> list[str]:
    """What the check of the config says of these values; of other keys nothing, for wrong overrides are left out."""
    try:
        errors = config_errors(compose(config_name, [*groups, *(single_overrides(one)[-1] for one in overrides)]))
    except (*COMPOSITION_ERRORS, InputError):  # of values that go together with what is left out
        return []
    given = [override.key_or_group for override in overrides]
    return [error for error in errors if any(error.startswith((f"{key}:", f"{key}.")) for key in given)]


def describe_groups(config_name: str) -> str:
    """A line for every group with its choices, for --help; the one that is chosen by default is marked."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        chosen = compose(config_name, return_hydra_config=True).hydra.runtime.choices
        groups = groups_of(config_name)
    if not groups:
        return "  (none)"
    return "\n".join(
        f"  {name}: " + ", ".join(f"[{choice}]" if choice == chosen[name] else choice for choice in choices)
        for name, choices in groups.items()
    )


def syntax_problem(text: str, error: HydraException) -> str:
    """What Hydra's grammar cannot read, and how to write it."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text}: found a word without '=', allowed are overrides of the form key=value"
    reason = str(error).splitlines()[0]
    return (
        f"{key}: cannot read {shown(value)} ({reason}); lists are [a,b] without spaces, and text with '=', ',', "
        f"brackets or letters outside ASCII needs quotes inside quotes: '{key}=\"{value}\"'"
    )


def several_values_problem(override: Override) -> str:
    """`key=a,b` without -m."""
    key, _, value = str(override.input_line).partition("=")
    return (
        f"{key}: found several values, {value}; add -m to run one job for each, write {key}=[{value}] for a list, "
        f"or '{key}=\"{value}\"' for text"
    )


def value_problems(
    override: Override, config_name: str, groups: list[str], keys: list[str], choices: dict[str, list[str]]
) -> list[str]:
    """What is wrong with one override of a value, tried by itself: its key, its type, or what Hydra says."""
    key = override.key_or_group
    hints = get_type_hints(SCHEMAS[config_name])
    problems = []
    for text in single_overrides(override):
        try:
            compose(config_name, [*groups, text])
        except COMPOSITION_ERRORS as error:
            if key in hints:
                problems.append(f"{key}: found {text.partition('=')[2]}, allowed is {describe(hints[key])}")
            elif key not in keys:
                advice = other_choice(key, config_name, groups, choices) or similar_key(key, [*keys, *choices])
                problems.append(f"{key}: is no key of this config{advice}")
            else:
                problems.append(f"{key}: {' '.join(str(error).split())}")
    return list(dict.fromkeys(problems))


def similar_key(key: str, keys: list[str]) -> str:
    """The nearest key: the same last name elsewhere, then a similar one; where there is none, the key's siblings."""
    parent, _, last = key.rpartition(".")
    place = parent
    while place and place not in keys:
        place = place.rpartition(".")[0]
    siblings = [known for known in dict.fromkeys(keys) if known.rpartition(".")[0] == place and "/" not in known]
    same_name = [known for known in keys if known.rpartition(".")[2] == last]
    elsewhere = [] if parent and parent == place else keys
    for candidates, cutoff in ((same_name, 0.0), (siblings, 0.7), (elsewhere, 0.7)):
        similar = difflib.get_close_matches(key, candidates, n=1, cutoff=cutoff)
        if similar:
            return f"; did you mean {similar[0]}?"
    return f"; the keys of {place or 'the config'} are {', '.join(name.rpartition('.')[2] for name in siblings)}"


def other_choice(key: str, config_name: str, groups: list[str], choices: dict[str, list[str]]) -> str:
    """Which other choice of the key's group has the key, such as data=files for data.train.source."""
    for group in sorted((name for name in choices if key.startswith(name.replace("/", ".") + ".")), key=len):
        having = [c for c in choices[group] if key in list_keys(compose(config_name, [*groups, f"{group}={c}"]))]
        if having:
            return f"; with {' or '.join(f'{group}={choice}' for choice in having)} it is one"
    return ""


def list_keys(cfg: Any) -> list[str]:
    """Every dotted key of a config, nodes included; items of a list by their number."""
    plain = _with_numbered_items(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(plain, dict)
    leaves = [key for key in flatten({str(name): value for name, value in plain.items()}) if "_target_" not in key]
    nodes = [leaf[:position] for leaf in leaves for position, sign in enumerate(leaf) if sign == "."]
    return list(dict.fromkeys([*nodes, *leaves]))


def _with_numbered_items(value: Any) -> Any:
    """Lists that hold components as dictionaries, as overrides name what is in them."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    return {key: _with_numbered_items(item) for key, item in value.items()} if isinstance(value, dict) else value
