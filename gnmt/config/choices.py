"""The groups of a command's config and their choices, those of a user's own config folders among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException

from gnmt.config.values import nearest, shown

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"
# A choice of this group is a whole recipe. A train.yaml that takes its default from ${data} must call it optional, and
# Hydra then takes any name that does not exist for one that is left out, a misspelt one too.
RECIPES = "experiment"


def search_path(config_folder: str | None, overrides: Sequence[str]) -> list[str]:
    """Where configs are looked for besides our own: `--config-dir`, and what `hydra.searchpath=[...]` names."""
    places = [] if config_folder is None else [str(Path(config_folder).resolve())]
    for override in parsed(overrides):
        if override.get_key_element() == "hydra.searchpath" and isinstance(value := override.value(), list):
            places += [str(place) for place in value]
    return places


def parsed(overrides: Iterable[str]) -> Iterator[Override]:
    """Those that Hydra's grammar can read."""
    for text in overrides:
        try:
            yield OverridesParser.create().parse_override(text)
        except HydraException:
            continue


def groups_of(config_name: str, places: Sequence[str] = ()) -> dict[str, list[str]]:
    """The groups that a command's config is put together from, each with its choices; inside `initialize_config_dir`.

    places: see `search_path`. A choice in a sub-folder that is no group itself has the folder in its name.
    """
    chosen = compose(config_name, return_hydra_config=True).hydra.runtime.choices
    names = [group for group in chosen if not group.startswith("hydra/")]
    repository = repository_of(places)
    return {name: choices_of(name, repository, names) for name in names}


def repository_of(places: Sequence[str]) -> ConfigRepository:
    """What Hydra reads configs from."""
    Plugins.instance()  # which brings the kinds of places along
    everywhere = ConfigSearchPathImpl()
    for provider, place in (("main", str(CONFIG_FOLDER)), *(("command line", place) for place in places)):
        everywhere.append(provider, place)
    return ConfigRepository(everywhere)


def choices_of(group: str, repository: ConfigRepository, groups: Sequence[str] = ()) -> list[str]:
    """The names that may stand behind `group=`, those in sub-folders last."""
    names = list(repository.get_group_options(group, ObjectType.CONFIG))
    for folder in repository.get_group_options(group, ObjectType.GROUP):
        if f"{group}/{folder}" not in groups:
            names += [f"{folder}/{name}" for name in choices_of(f"{group}/{folder}", repository)]
    return sorted(names, key=lambda name: (name.count("/"), name))


def single_overrides(override: Override) -> list[str]:
    """An override, or those of the jobs that a sweep makes of it."""
    if override.is_discrete_sweep():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [str(override.input_line)]


def choice_problems(override: Override, groups: dict[str, list[str]]) -> list[str]:
    """Unknown groups and unknown choices."""
    group = override.key_or_group
    if group not in groups:
        known = ", ".join(groups) or "none"
        return [f"{group}: is no group of this command{nearest(group, list(groups))}; its groups: {known}"]
    if override.is_delete() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []  # chooses nothing, or takes what there is
    choices = groups[group]
    names = [text.partition("=")[2].strip("'\"") for text in single_overrides(override)]
    return [f"{group}: found {shown(name)}{allowed_choices(name, choices)}" for name in names if name not in choices]


def allowed_choices(name: str, choices: Sequence[str]) -> str:
    """What is allowed in place of a name, the nearest first; of folders that it does not lie in, only their size."""
    folder, slash, _ = name.partition("/")
    places = [choice.partition("/")[0] for choice in choices if "/" in choice]
    others = Counter(place for place in places if not slash or place != folder)
    listed = [choice for choice in choices if "/" not in choice or choice.partition("/")[0] not in others]
    listed += [f"{place}/ ({number} more)" for place, number in others.items()]
    allowed = f"allowed is one of {', '.join(listed)}"
    similar = nearest(name, choices)
    return f"{similar} ({allowed})" if similar else f", {allowed}"


def names_unknown_recipe(config_name: str, overrides: Sequence[str], places: Sequence[str]) -> bool:
    """Whether the command line names an experiment that does not exist, which Hydra would pass over."""
    typed = [item for item in parsed(overrides) if item.key_or_group == RECIPES]
    if not typed or config_name != "train":
        return False
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        groups = {RECIPES: choices_of(RECIPES, repository_of(places))}
    return any(choice_problems(override, groups) for override in typed)
