"""The command line of every script: Hydra composes the config, `run_command` runs main on it and sets the exit code.

The second half of the module explains why Hydra could not compose a config. It finds all unknown keys and choices; for
other errors it shortens Hydra's message to one line.
"""

from __future__ import annotations

import atexit
import dataclasses
import errno
import functools
import inspect
import io
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import hydra
import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser  # Hydra has no public name for it
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from gnmt.config.build import resolve
from gnmt.config.run_folder import override_key, readable, with_addable_model_keys, with_recorded_overrides
from gnmt.config.schema import SCHEMAS
from gnmt.config.validate import (
    RENAMED,
    check_config,
    config_errors,
    describe,
    list_items,
    list_keys,
    renamed,
    unknown_key,
)
from gnmt.errors import InputError, did_you_mean, format_count, format_value
from gnmt.fileio import discard_stdout
from gnmt.logs import configure_logging, note_in_run_file, own_rank
from gnmt.signals import exit_code_of, interrupt_on_signals

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"
EXIT_WRONG_INPUT = 2
PLUGINS = {
    "hydra/launcher/joblib": "sweep",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/sweeper/optuna": "sweep",
}
"""Launchers and sweepers of Hydra that are packages of their own, with the extra of this project that installs them."""
RANK_0_SECONDS = 10.0
"""How long other ranks wait for rank 0 to print its message: torchrun stops all ranks as soon as one exits."""
HOME = re.compile(r"""(^|(?<=[=\[,:"']))~(?=/|$)""")
"""The `~` that begins a path, in an override or in a value. Hydra cannot read it, and a shell expands it only in some
positions."""
PRINTING_FLAGS = frozenset({"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"})
"""Flags with which a command prints something and does nothing else."""
EXPERIMENT = "experiment"
RAISED_BY_JOB = "raised_by_job"
"""Attribute of an exception that a job has raised. Unlike a local variable, it also comes back from other processes."""
SYSTEM_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""Numbers of system errors that are no bug of this package: they are reported without a traceback."""
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
"""The exceptions of composing: ValueError is for a group set to a number or to null, YAMLError for a file."""
QUOTING = (
    "Values with '=', ',', spaces, brackets or letters outside ASCII need quotes inside quotes: 'key=\"a=b\"'; "
    "lists are [a,b]; there are no spaces around '=' and ','"
)


def run_command(main: Callable[[Any], Any], config_name: str) -> None:
    """Run a script: compose configs/<config_name>.yaml with the command line's overrides, and run main on the result.

    In a sweep (-m) main runs once for each job, and the jobs after a failed one still run. `--help` prints the
    docstring of main's module and the config groups. Wrong input and system errors such as a full disk print one
    message to stderr and exit with code 2, Ctrl-C exits with 130, another signal with the code of `Interrupted`. Other
    exceptions keep their traceback.
    """
    prepare_streams()
    try:
        _run_with_hydra(main, config_name)
        print(end="", flush=True)
    except InputError:  # already reported
        sys.exit(EXIT_WRONG_INPUT)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has exited
        discard_stdout()
        sys.exit(EXIT_WRONG_INPUT)
    except OSError as error:  # of --help and --cfg job; `run_job` reports those of main
        print_error(describe_system_error(error))
        sys.exit(EXIT_WRONG_INPUT)
    except KeyboardInterrupt as interruption:
        print_error(str(interruption) or "interrupted", prefix="")
        sys.exit(exit_code_of(interruption))


def run_job(main: Callable[[Any], Any], cfg: Any, config_name: str) -> Any:
    """Check a composed config and return main's result.

    Raises InputError for a wrong config, for wrong input that main finds and for a system error, after printing it.
    """
    configure_logging()  # closes the log file of the previous job of a sweep
    try:
        if OmegaConf.get_type(cfg) is not SCHEMAS[config_name]:
            raise InputError(
                f"--config-name: found {HydraConfig.get().job.config_name}, which is no config of {config_name}.py; "
                f"allowed is one with `{config_name}` in its defaults"
            )
        expand_home(cfg)
        check_config(cfg)
    except InputError as error:
        print_once(str(error))
        raise
    try:
        try:
            with interrupt_on_signals():
                result = main(cfg)
            print(end="", flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError(describe_system_error(error)) from error
    except InputError as error:
        print_error(str(error))
        note_in_run_file(str(error), logging.ERROR)
        raise
    except KeyboardInterrupt as interruption:
        note_in_run_file(str(interruption) or "interrupted", logging.WARNING)
        raise
    return result


def expand_home(cfg: Any) -> None:
    """Replace the `~` that begins a path in a YAML file by the home folder."""
    for key, text in list_items(cfg):
        if isinstance(text, str) and HOME.match(text) and not key.startswith("tokenizer.user_symbols"):
            OmegaConf.update(cfg, key, os.path.expanduser(text))


def describe_system_error(error: OSError) -> str:
    """Return the message for an error that a correct program can meet, such as a full disk; raise any other again."""
    if error.filename is not None:
        file = format_value(os.fsdecode(error.filename), quote=False)
    else:
        try:
            print(end="", flush=True)
            file = "standard output or a file"
        except OSError:  # what could not be written is still in the buffer
            discard_stdout()
            return f"standard output cannot be written ({error.strerror})"
    if error.errno not in SYSTEM_ERRORS:
        raise error
    return f"{file} cannot be read or written ({error.strerror})"


def prepare_streams() -> None:
    """Make standard streams safe to use: closed ones, and those of a terminal that cannot show every character.

    Without this, the next file that is opened takes the number of a closed stream, and a library that prints to
    descriptor 1 or 2 writes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, and the lowest number that is free
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY), True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (print(file=None) would print to stdout)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr


def _run_with_hydra(main: Callable[[Any], Any], config_name: str) -> None:
    """Let Hydra compose the config and call `run_job`. Raises InputError after printing it."""
    if sys.stdout is None and PRINTING_FLAGS & {word.partition("=")[0] for word in sys.argv[1:]}:
        _refuse("the result is printed to standard output, which is closed: redirect it to a file")
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        print(help_text(inspect.getmodule(main), config_name))
        return
    sys.argv[1:] = [HOME.sub(lambda _: os.path.expanduser("~"), word) for word in sys.argv[1:]]
    arguments, unknown_flags = get_args_parser().parse_known_intermixed_args()
    if unknown_flags:
        _refuse(
            f"{unknown_flags[0]}: is no flag of this command; overrides are written without dashes, as in seed=3. "
            "Its flags are --help, --cfg job, -m and those of --hydra-help"
        )
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        _refuse(f"--config-dir: found {arguments.config_dir}, allowed is a folder that exists")
    # Hydra parses sys.argv again, and refuses overrides on both sides of a flag, as in `device=cpu -m seed=1,2`.
    flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
    typed = arguments.overrides
    if config_name == "train":
        try:
            arguments.overrides = with_addable_model_keys(with_recorded_overrides(arguments.overrides))
        except InputError as error:
            _refuse(str(error))
    search_path = search_path_override(arguments.config_dir, arguments.overrides)
    swept: list[Override] = []
    if arguments.multirun:
        swept = sweep_overrides(config_name, arguments.overrides, search_path)
        # A job of the sweep finds here which overrides are not swept, see `current_run_folder`.
        shared = [override_key(one) for one in swept if not one.is_sweep_override()]
        excluded = f"hydra.job.config.override_dirname.exclude_keys={json.dumps(shared, ensure_ascii=False)}"
        arguments.overrides = [*arguments.overrides, excluded]
        logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna imports it, and it logs each of its plugins
    sys.argv[1:] = [*arguments.overrides, *flags]
    configure_logging()
    explained = functools.partial(
        explain,
        config_name=config_name,
        overrides=arguments.overrides,
        search_path=search_path,
        recorded=[one for one in arguments.overrides if not {one, one.removeprefix("++")} & {*typed}],
    )
    command = os.getpid()
    errors: list[Exception] = []

    @functools.wraps(main)
    def job(cfg: Any) -> Any:
        try:
            return run_job(main, cfg, config_name)
        except Exception as error:
            if not arguments.multirun and isinstance(error, InputError | BrokenPipeError):
                errors.append(error)  # Hydra would add a line of its own to stderr
                return None
            vars(error)[RAISED_BY_JOB] = True
            if os.getpid() != command:
                _fail_worker(error)
            elif isinstance(error, InputError) and ends_search():
                sys.exit(EXIT_WRONG_INPUT)  # Optuna would repeat the message several times
            raise  # Hydra runs the other jobs of a sweep before it raises the first error

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors of composition instead of printing them
    try:
        if _unknown_experiments(config_name, arguments.overrides, search_path):
            _refuse(explained(None))
        if arguments.multirun and arguments.config_name is None:
            check_sweep(config_name, swept, search_path)
        hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)(job)()
    except Exception as error:
        if RAISED_BY_JOB in vars(error):
            if isinstance(error, InputError):  # after Hydra's line with the overrides of the failed job
                print_once(str(error))
            raise
        if type(error).__module__.split(".")[0] in ("joblib", "submitit"):
            _refuse(f"a job of the sweep ended without a result: {error}")
        if not isinstance(error, COMPOSITION_ERRORS) or isinstance(error, InputError):
            raise
        _refuse(explained(error))
    if errors:
        raise errors[0]


def sweep_overrides(config_name: str, overrides: Sequence[str], search_path: Sequence[str]) -> list[Override]:
    """Return the overrides of a sweep: hydra.sweeper.params, then the command line's, without those of Hydra's config.

    Of several overrides of a key, the last one counts. What cannot be read or composed is left to Hydra to report.
    """
    parsed = list(readable(overrides))
    of_hydra = [str(one.input_line) for one in parsed if one.key_or_group.startswith("hydra")]
    params = None
    with suppress(*COMPOSITION_ERRORS), _composer():
        hydra_config = compose(config_name, [*search_path, *of_hydra], return_hydra_config=True).hydra
        params = OmegaConf.select(hydra_config, "sweeper.params")
    listed = [] if params is None else list(readable([f"{key}={value}" for key, value in params.items()]))
    by_key = {override_key(one): one for one in [*listed, *parsed] if not one.key_or_group.startswith("hydra")}
    return list(by_key.values())


def check_sweep(config_name: str, overrides: Sequence[Override], search_path: Sequence[str]) -> None:
    """Check the configs of a sweep before its first job, which may have to wait for a machine.

    Each value of a choice occurs in one of the checked configs, and the ends of each range and interval; the other keys
    have their first values. Jobs with other combinations check their own configs.

    Raises InputError with all errors at once, after printing it, and the exceptions of composing.
    """
    values = [values for one in overrides if (values := _ends_of_range(one))]
    jobs = [[of_one[0] for of_one in values]]
    jobs += [[*jobs[0][:n], value, *jobs[0][n + 1 :]] for n, of_one in enumerate(values) for value in of_one[1:]]
    errors: dict[str, None] = {}
    with _composer():
        for job in jobs:
            errors |= dict.fromkeys(config_errors(compose(config_name, [*search_path, *job])))
    if errors:
        _refuse("\n  ".join([f"{format_count(len(errors), 'error')} in the config:", *errors]))


def _ends_of_range(override: Override) -> list[str]:
    """Return the override with each of its values; with the first and the last one only if it is a range or interval.

    A pattern of choices (`glob`) has no known values.
    """
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    values = _values_of(override)
    return [values[0], values[-1]] if override.is_range_sweep() else values


def ends_search() -> bool:
    """Return whether the failure of this job ends a search, such as Optuna's, which then launches no other job."""
    hydra_config = HydraConfig.get()
    # Sweepers that only list values have no such key: their other jobs run.
    return hydra_config.mode == RunMode.MULTIRUN and OmegaConf.select(hydra_config.sweeper, "max_failure_rate") == 0


def _fail_worker(error: Exception) -> None:
    """Make a failure visible in the process that a launcher has started for a job of a sweep.

    Hydra hands the exception to the command as the job's result, so the process itself would end without an error.
    """
    wrong_input = isinstance(error, InputError)
    if not wrong_input:  # the exception reaches the command without its traceback
        traceback.print_exception(error)
    if "SUBMITIT_EXECUTOR" in os.environ:  # each job is a process of its own, whose exit code Slurm shows
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it would log "Job completed successfully"
        atexit.register(_exit_at_once, EXIT_WRONG_INPUT if wrong_input else 1)


def _exit_at_once(code: int) -> None:
    sys.stdout.flush()
    os._exit(code)


def _refuse(message: str) -> NoReturn:
    print_once(message)
    raise InputError(message)


def print_error(message: str, prefix: str = "error: ") -> None:
    """Print a message to stderr if it can be written."""
    with suppress(OSError):
        print(f"{prefix}{message}", file=sys.stderr, flush=True)


def print_once(message: str) -> None:
    """Print an error of the command line, which all ranks of torchrun find, on rank 0 only."""
    if own_rank() == 0:
        print_error(message)
    else:
        with suppress(KeyboardInterrupt):
            time.sleep(RANK_0_SECONDS)


def help_text(script: Any, config_name: str) -> str:
    """Return the script's docstring, the groups of its config, and the syntax of overrides."""
    return f"""{(script.__doc__ or "").strip()}

Groups (choose with group=choice):
{_describe_groups(config_name)}

Every key can be overridden by its full name, as in optimizer.lr=0.001; null, true, false, numbers and [a,b] are YAML.
A comment explains each key: those of this command in configs/{config_name}.yaml, those of a group in its folder there.
{QUOTING}.
  --cfg job   print the whole config and exit; with --resolve, ${{...}} is filled in
  -m          sweep: key=a,b runs one job for each value
"""


def _describe_groups(config_name: str) -> str:
    """Return one line for each group with its choices; the default choice stands in brackets."""
    with _composer() as loader:
        chosen, _ = _compose_groups_and_keys(config_name)
        lines = []
        for group in chosen:
            choices = _choices(group, loader, chosen)
            lines.append(f"  {group}: " + ", ".join(f"[{name}]" if name == chosen[group] else name for name in choices))
    return "\n".join(lines) or "  (none)"


def recipe(experiment: str) -> dict[str, Any]:
    """Return the config that `train.py experiment=<experiment>` would train, checked and resolved.

    Raises InputError if there is no such experiment or its config is wrong.
    """
    overrides = [f"{EXPERIMENT}={experiment}"]
    of_command = GlobalHydra.instance().hydra  # the running command has initialized Hydra's singleton
    GlobalHydra.instance().clear()
    try:
        if _unknown_experiments("train", overrides, []):
            raise InputError(explain(None, "train", overrides))
        with _composer():
            cfg = compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, "train", overrides)) from None
    finally:
        GlobalHydra.instance().hydra = of_command
    check_config(cfg)
    return resolve(cfg)


# Errors of composition


def explain(
    error: Exception | None,
    config_name: str,
    overrides: Sequence[str],
    search_path: Sequence[str] = (),
    recorded: Collection[str] = (),
) -> str:
    """Return what is wrong with the overrides of a command line, one line for each error.

    All unknown keys and unknown choices are reported, and with them the values that the check of the config refuses.
    Of other errors of composition only the first is reported, with Hydra's message.

    Args:
        error: What Hydra raised; None if it has not composed the config yet.
        config_name: The command's.
        overrides: As on the command line.
        search_path: The result of `search_path_override`.
        recorded: Those of the overrides that come from the run of from_run.
    """
    problems: list[str] = []
    try:
        with _composer() as loader:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            parsed = [one for one in parsed if not one.key_or_group.startswith("hydra")]
            groups, keys = _compose_groups_and_keys(config_name, search_path)
            composed = list(search_path)
            for one in [one for one in parsed if one.key_or_group in groups]:
                wrong = _unknown_choices(one, _choices(one.key_or_group, loader, groups, search_path))
                problems += wrong
                composed += [] if wrong else _values_of(one)[:1]
            chosen = groups
            if composed != list(search_path):
                chosen, keys = _compose_groups_and_keys(config_name, composed)
            added = [one.key_or_group for one in parsed if one.is_add() or one.is_force_add()]
            known = []
            for one in [one for one in parsed if one.key_or_group not in groups]:
                key = one.key_or_group
                if key in keys or key in added:
                    known.append(one)
                else:
                    origin = f" (from_run sets it; '~{key}' removes it)" if one.input_line in recorded else ""
                    problems.append(f"{unknown_key(key, keys, chosen)}{origin}")
            if problems and known:
                cfg = compose(config_name, [*composed, *(_values_of(one)[0] for one in known)])
                problems += _errors_of_values(cfg, [one.key_or_group for one in known])
    except COMPOSITION_ERRORS as further:
        problems.append(_one_line(further))
    if not problems:
        assert error is not None
        problems.append(_one_line(error))
    problems = list(dict.fromkeys(problems))
    return "\n  ".join([f"{format_count(len(problems), 'error')} in the overrides:", *problems])


def search_path_override(config_dir: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the override by which `compose` finds configs of `--config-dir` and hydra.searchpath, if there are any."""
    folders = [] if config_dir is None else [str(Path(config_dir).resolve())]
    for override in readable(overrides):
        if override.key_or_group == "hydra.searchpath" and isinstance(value := override.value(), list):
            folders += [str(folder) for folder in value]
    quoted = ",".join(json.dumps(folder, ensure_ascii=False) for folder in folders)
    return [f"hydra.searchpath=[{quoted}]"] if folders else []


@contextmanager
def _composer() -> Iterator[ConfigLoader]:
    """Inside this context, `compose` reads configs/. Yields the loader that lists the choices of a group."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def _compose_groups_and_keys(config_name: str, overrides: Sequence[str] = ()) -> tuple[dict[str, str], list[str]]:
    """Return the groups of a command's config with the choice of each, and all keys of the config."""
    cfg = compose(config_name, list(overrides), return_hydra_config=True)
    chosen = cfg.hydra.runtime.choices
    groups = {str(group): choice for group, choice in chosen.items() if not str(group).startswith("hydra/")}
    return groups, [key for key in list_keys(cfg) if key.partition(".")[0] != "hydra"]


def _choices(
    group: str,
    loader: ConfigLoader,
    groups: Collection[str],
    search_path: Sequence[str] = (),
) -> list[str]:
    """Return the choices of a group; those in a subfolder that is no group itself as `folder/name`, last."""
    options = functools.partial(loader.get_group_options, overrides=list(search_path))
    names = sorted(options(group, ObjectType.CONFIG))
    for folder in sorted(options(group, ObjectType.GROUP)):
        if f"{group}/{folder}" not in groups:
            inner = _choices(f"{group}/{folder}", loader, groups, search_path)
            names += [f"{folder}/{name}" for name in inner]
    return names


def _values_of(override: Override) -> list[str]:
    """Return the override as text; one text for each value of a sweep over listed values, two for an interval."""
    if override.is_interval_sweep():
        interval = override.value()
        assert isinstance(interval, IntervalSweep)
        return [f"{override.get_key_element()}={end}" for end in (interval.start, interval.end)]
    if override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP:
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [str(override.input_line)]


def _unknown_experiments(config_name: str, overrides: Sequence[str], search_path: Sequence[str]) -> list[str]:
    """Return an error for each experiment of the command line that does not exist.

    train.yaml has `optional experiment: ${data}` in its defaults, so Hydra would leave out a misspelled name.
    """
    given = [one for one in readable(overrides) if one.key_or_group == EXPERIMENT]
    if not given or config_name != "train":
        return []
    with _composer() as loader:
        choices = _choices(EXPERIMENT, loader, (), search_path)
    return [problem for one in given for problem in _unknown_choices(one, choices)]


def _unknown_choices(override: Override, choices: Sequence[str]) -> list[str]:
    """Return an error for each choice of an override that its group does not have.

    The nearest choice stands first. Choices of a subfolder are listed only if the wrong name is in that folder.
    """
    if override.is_delete() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    group = override.key_or_group
    problems = []
    for name in [text.partition("=")[2].strip("'\"") for text in _values_of(override)]:
        if f"{group}={name}" in RENAMED:
            problems.append(renamed(f"{group}={name}"))
        elif name not in choices:
            folders = ("", name.rpartition("/")[0])
            listed = [one if one.rpartition("/")[0] in folders else one.partition("/")[0] + "/..." for one in choices]
            allowed = f"allowed is one of {', '.join(dict.fromkeys(listed))}"
            similar = did_you_mean(name, choices)
            advice = f"{similar} ({allowed})" if similar else f", {allowed}"
            problems.append(f"{group}: found {format_value(name)}{advice}")
    return problems


def _errors_of_values(cfg: Any, keys: Sequence[str]) -> list[str]:
    """Return the errors of a composed config at the given keys or below them."""
    return [error for error in config_errors(cfg) if any(error.startswith((f"{key}:", f"{key}.")) for key in keys)]


def _one_line(error: Exception) -> str:
    """Return the message of Hydra, OmegaConf or YAML on one line, with the override, key or file in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/"):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        extra = PLUGINS.get(f"{group}/{name}")
        if extra is not None:
            return f"{group}: {name} is not installed; install it with the extra `{extra}`: pip install '.[{extra}]'"
        return f"{group}: found {format_value(name)}, allowed is one of {', '.join(error.options or ())}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}:{error.problem_mark.line + 1}: is not valid YAML: {error.problem}"
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return f"{error.override}: found a word without '=', allowed are overrides of the form key=value"
        reason = "" if lines[0].startswith("LexerNoViableAlt") else f" ({lines[0]})"
        return f"{error.override}: cannot be read{reason}. {QUOTING}"
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException) and dataclasses.is_dataclass(cause.object_type):
        # Hydra's message names the file, OmegaConf's error the key: one at the root, which the schema describes.
        file = re.match("In '(.+?)'", lines[0])
        key = f"{file[1]}.yaml: {cause.key}" if file else str(cause.key)
        hints = get_type_hints(cause.object_type)
        if isinstance(cause, ConfigKeyError):
            advice = did_you_mean(str(cause.key), list(hints)) or "; its keys are " + ", ".join(hints)
            return renamed(str(cause.key)) if cause.key in RENAMED else f"{key}: is no key of this config{advice}"
        # Hydra reads a word with `=` or `*` only in quotes, which the shell must not remove.
        is_word = re.fullmatch(r"[\w./-]+", str(cause.value))
        listed = f"{key}=[{cause.value}]" if is_word else f"'{key}=[\"{cause.value}\"]'"
        is_list = hints[cause.key] in (list[str], list[str] | None)
        example = f", as in {listed}" if is_list else ""
        return f"{key}: found {format_value(cause.value)}, allowed is {describe(hints[cause.key])}{example}"
    return " ".join(lines)
