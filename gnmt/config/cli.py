"""Hydra entry point of every script, and its error messages."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gnmt.config.build import resolve
from gnmt.config.schema import SCHEMAS
from gnmt.config.validate import check_config, config_errors, describe
from gnmt.errors import InputError, counted, flatten, nearest, shown
from gnmt.logs import configure_logging, note_in_run_file, own_rank
from gnmt.signals import exit_code_of, restore_ctrl_c

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"
# A choice of this group is a whole recipe. A train.yaml that takes its default from ${data} must call it optional, and
# Hydra then takes any name that does not exist for one that is left out, a misspelled one too.
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


def recipe(experiment: str) -> dict[str, Any]:
    """The config that `train.py experiment=<experiment>` would train, checked and resolved.

    Raises InputError where there is no such experiment or its config is wrong.
    """
    overrides = [f"{RECIPES}={experiment}"]
    with apart_from_the_command():
        if names_unknown_recipe("train", overrides, ()):
            raise InputError(explain(None, "train", overrides))
        try:
            with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
                cfg = compose("train", overrides)
        except COMPOSITION_ERRORS as error:
            raise InputError(explain(error, "train", overrides)) from None
    check_config(cfg)
    return resolve(cfg)


@contextmanager
def apart_from_the_command() -> Iterator[None]:
    """Sets aside the one Hydra of the process, which a command that is under way has taken."""
    of_command = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = of_command


EXIT_WRONG_INPUT = 2
WAIT_FOR_FIRST_SECONDS = 10.0
"""For the first process to say what is wrong, which it finds out at about the same time."""


def entry(config_name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Makes `main(cfg)` of a script its command: configs/<config_name>.yaml and the overrides of the command line.

    The config is checked before main sees it. A wrong override or an InputError prints one message to stderr and
    ends the process with exit code 2, Ctrl-C with 130, another signal with the code that `Interrupted` carries; bugs
    keep their traceback. In a sweep (-m) the jobs after a wrong one still run.
    `--help` prints the script's docstring and the groups of its config.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        failures: list[str] = []
        jobs: list[Any] = []
        broken_pipes: list[BrokenPipeError] = []

        @functools.wraps(main)
        def job(cfg: Any) -> None:
            jobs.append(cfg)
            configure_logging()  # the job before has left its run's file
            try:
                check_config(cfg)
            except InputError as error:
                failures.append(str(error))
                say_once(str(error))
                return
            try:
                main(cfg)
                sys.stdout.flush()
            except InputError as error:
                failures.append(str(error))
                print(f"error: {error}", file=sys.stderr)
                note_in_run_file(str(error), logging.ERROR)
            except BrokenPipeError as error:
                broken_pipes.append(error)  # raised here, Hydra would report it as an error of the job
            except KeyboardInterrupt as interruption:
                note_in_run_file(str(interruption) or "interrupted", logging.WARNING)
                raise

        @functools.wraps(main)
        def command() -> None:
            try:
                run_jobs()
                sys.stdout.flush()
                if broken_pipes:
                    raise broken_pipes[0]
            except BrokenPipeError:  # a reader such as `head` that has gone
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
                sys.exit(EXIT_WRONG_INPUT)

        def run_jobs() -> None:
            if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
                print(help_text(inspect.getmodule(main), config_name))
                return
            arguments, unknown_flags = get_args_parser().parse_known_args()
            if unknown_flags:
                say_once(flag_message(unknown_flags[0]))
                sys.exit(EXIT_WRONG_INPUT)
            configure_logging()
            for before in (failures, jobs, broken_pipes):
                before.clear()
            places = search_path(arguments.config_dir, arguments.overrides)

            def end_explaining(error: Exception | None) -> NoReturn:
                message = explain(error, config_name, arguments.overrides, sweep=arguments.multirun, places=places)
                say_once(message)
                sys.exit(EXIT_WRONG_INPUT)

            # Lets errors of composition reach us, where Hydra would print them its own way and exit.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                restore_ctrl_c()
                if names_unknown_recipe(config_name, arguments.overrides, places):
                    end_explaining(None)
                hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)(job)()
            except COMPOSITION_ERRORS as error:
                if jobs:
                    raise  # not of composition: a bug in main
                end_explaining(error)
            except KeyboardInterrupt as interruption:
                print(str(interruption) or "interrupted", file=sys.stderr)
                sys.exit(exit_code_of(interruption))
            if failures:
                sys.exit(EXIT_WRONG_INPUT)

        return command

    return decorate


def say_once(message: str) -> None:
    """Shows what is wrong with the command line, which is the same in all processes of torchrun: the first speaks.

    The others wait for it, since torchrun stops all as soon as one has ended, even before it has spoken.
    """
    if own_rank() == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        with suppress(KeyboardInterrupt):
            time.sleep(WAIT_FOR_FIRST_SECONDS)


def help_text(script: Any, config_name: str) -> str:
    """The script's docstring, and what every script understands."""
    return f"""{(script.__doc__ or "").strip()}

Groups (choose with group=choice):
{describe_groups(config_name)}

Every key can be overridden by its full name, as in optimizer.lr=0.001; null, true, false, numbers and [a,b] are YAML.
Values with '=', ',', spaces or letters outside ASCII need quotes inside quotes: 'key="a=b"'.
  --cfg job   show the whole config and stop; --resolve with it fills the ${{...}} in
  -m          sweep: key=a,b runs one job for each value
"""


def flag_message(flag: str) -> str:
    """For `--seed=3` and other flags that do not exist."""
    return (
        f"{flag}: is no flag of this command; overrides are written without dashes, as in seed=3. "
        "Its flags are --help, --cfg job, -m and those of --hydra-help"
    )
