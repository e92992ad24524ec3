"""The folder of a training run: its name, its recorded overrides, the settings that must stay the same, its lock."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from gnmt.config.build import resolve
from gnmt.errors import InputError, describe_changes, flatten, format_value
from gnmt.fileio import folder_lock, parse_json, short_hash
from gnmt.logs import configure_logging

NEVER_NAMED = frozenset(
    {
        "name",
        "runs",
        "resume",
        "from_run",
        "trusted_packages",
        "data.folder",
        "data.preprocessed",
        "data.download_folder",
        "data.url",
        "data.mirror",
        "data.num_workers",
    }
)
"""Keys that are in no run's name: how a run is started and where files are. Jobs of a sweep that differ only in them
share a run."""

MAY_CHANGE = NEVER_NAMED | {
    "device",
    "deterministic",
    "onednn_cache_capacity",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.microbatch_tokens",
    "trainer.log_every_steps",
    "trainer.gradient_norms_every_steps",
    "trainer.evaluate_every_steps",
    "trainer.save_every_steps",
    "trainer.keep_checkpoints",
    "trainer.patience_evaluations",
    "trainer.max_nonfinite_updates",
    "trainer.num_sample_translations",
    "trainer.evaluation_batch_size",
    "trainer.prefetch_batches",
    "schedule.total_steps",
}
"""Keys that may change when a run is resumed: limits, intervals, devices and folders. They do not change what an update
computes, except schedule.total_steps, whose change is logged. The keys below `data.test` may change too, see
`may_change`."""

LIMITS = frozenset(
    {
        "trainer.max_steps",
        "trainer.max_epochs",
        "trainer.patience_evaluations",
        "trainer.evaluate_every_steps",
        "schedule.total_steps",
    }
)
"""The keys of MAY_CHANGE that decide how long a run trains."""

_CORPUS_OF_SEVERAL = re.compile(r"^data\.corpora\.[^.]+\.(?!text\.)")
INPUT_FILES = re.compile(r"data\.(train|dev|corpora\.[^.]+\.text)\.(source|target|pairs)")
"""Keys with paths of training and dev text. Their content is compared, so files may move before a run is resumed."""

FROM_RUN = "from_run"
NOT_REPEATED = frozenset({"name", "resume", "trusted_packages", FROM_RUN})
"""Keys that a run which repeats another one does not take over. Packages whose code may run are named by the command
line alone."""

GROUPS_IN_NAMES = ("experiment", "data")
"""The default name of a run begins with the choice of the first of these groups that the command line sets."""

PLAIN = re.compile(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*", re.ASCII)
MAX_NAME_LENGTH = 120

CONFIG, OVERRIDES, LOG, _LOCK = "config.json", "overrides.json", "train.log", ".lock"
"""Files of a run's folder."""


def current_run_folder(cfg: Any) -> Path:
    """Return the folder of the run that Hydra is executing; each job of a sweep has its own."""
    hydra = HydraConfig.get()
    shared = hydra.job.config.override_dirname.exclude_keys
    return run_folder(
        cfg, list(hydra.overrides.task), sweep=hydra.mode == RunMode.MULTIRUN, shared=frozenset(map(str, shared))
    )


def check_sweep_direction(best_metric: str) -> None:
    """Raise InputError if Hydra's sweeper optimizes in the wrong direction, or was chosen without -m."""
    direction = sweep_direction()
    if direction is None:
        return
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        raise InputError(
            f"hydra/sweeper is {HydraConfig.get().runtime.choices['hydra/sweeper']}, which searches only with -m: "
            "give -m, or leave out hydra/sweeper for a single run"
        )
    right = "minimize" if best_metric == "dev/loss" else "maximize"
    if direction != right:
        raise InputError(
            f"hydra.sweeper.direction is {direction}, but the result of a run is trainer.best_metric="
            f"{best_metric}: use hydra.sweeper.direction={right}"
        )


def sweep_direction() -> str | None:
    """Return whether Hydra's sweeper, such as optuna, means to `minimize` or to `maximize` the results of runs.

    Returns None for a sweeper that only lists values.
    """
    found = OmegaConf.select(HydraConfig.get().sweeper, "direction")
    return found.name if isinstance(found, Enum) else found  # Optuna's own default is a member of an enumeration


def run_folder(
    cfg: Any, overrides: Sequence[str], *, sweep: bool = False, shared: Collection[str] = frozenset()
) -> Path:
    """Return `<runs>/<name>`. The default name is the experiment (or the data) and a slug of the other overrides.

    In a sweep the values that differ between the jobs come first, so that they remain where a long name is cut, and a
    given `name` is followed by them alone. A name with rounded numbers, or one that is cut, ends in a hash of the exact
    and whole name.

    Raises InputError if `name` is not a plain folder name.

    Args:
        cfg: The composed config.
        overrides: As on the command line.
        sweep: Whether the run is a job of a sweep.
        shared: Keys, as `override_key` returns them, that have the same value in all jobs of the sweep.
    """
    if cfg.name is not None and not (PLAIN.fullmatch(cfg.name) and cfg.name.strip(".")):
        raise InputError(
            f"name: found {format_value(cfg.name)}, allowed are letters, digits, '-' and '.', "
            "with single '_' between them"
        )
    if cfg.name is not None and not sweep:
        return Path(cfg.runs) / str(cfg.name)
    values = _last_values(overrides)
    group = None if cfg.name else next((key for key in GROUPS_IN_NAMES if values.get(key) is not None), None)
    base = cfg.name or (str(values[group]) if group else "demo")
    named: dict[str, Any] = {}
    for key, value in sorted(values.items(), key=lambda item: (item[0] in shared, item[0])):
        # A single run is resumed with other limits. Jobs of a sweep that differ only in limits are different runs, and
        # so are runs with other schedules: only name= lengthens the schedule of an existing run.
        if sweep and key not in shared:
            unnamed = key in NEVER_NAMED
        else:
            unnamed = may_change(key) and key != "schedule.total_steps"
        if key != group and not unnamed and not (cfg.name is not None and key in shared):
            named[key] = value
    exact = "__".join([base, *(_slug(key, value) for key, value in named.items())])
    name = "__".join([base, *(_slug(key, _rounded(value)) for key, value in named.items())])
    if name != exact or len(name) > MAX_NAME_LENGTH:  # file systems limit the length of names
        name = f"{name[: MAX_NAME_LENGTH - 9]}-{short_hash(exact)}"
    return Path(cfg.runs) / name


def _last_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return each overridden key with its last value, parsed, so that 1e-3 and 0.001 give the same name."""
    values: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        values[override_key(override)] = override.value()
    return values


def override_key(override: Override) -> str:
    """Return the key of an override as names of runs show it."""
    return str(override.get_key_element()).lstrip("+").replace("/", ".")


def _rounded(value: Any) -> Any:
    """Return a number rounded to four digits: a search proposes numbers of 17 digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _slug(key: str, value: Any) -> str:
    """Return `key-value` in letters, digits, '.', '_' and '-', with a hash if other characters were replaced."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if PLAIN.fullmatch(text) and PLAIN.fullmatch(key):
        return f"{key}-{text}"
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{key}-{text}").strip("_")
    return f"{plain}-{short_hash(f'{key}={text}')}"


# Runs that repeat another one


def with_recorded_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a command line with those that from_run=FOLDER stands for in front of them.

    These are the overrides that started the other run, without the keys in NOT_REPEATED. An override of the command
    line replaces the recorded one with its key, and `~key` removes it. If the other run's folder is gone, they come
    from the record of the run that this command resumes. Raises InputError if neither folder has a usable record.
    """
    given = list(readable(overrides))
    chosen = next((one for one in reversed(given) if one.key_or_group == FROM_RUN), None)
    if chosen is None or chosen.is_delete() or (not chosen.is_sweep_override() and chosen.value() is None):
        return list(overrides)
    folder = _folder_to_repeat(chosen)
    try:
        return _merged(recorded_overrides(folder), given, overrides)
    except InputError:
        resumed = _merged_in_resumed_run(folder, given, overrides)
        if resumed is None:
            raise
        return resumed


def _folder_to_repeat(chosen: Override) -> str:
    """Return the value of from_run. Raises InputError for anything but one path."""
    if chosen.is_sweep_override():
        raise InputError(
            f"{chosen.input_line}: found several folders, allowed is one: its overrides are read before a sweep "
            "begins; give one command for each folder"
        )
    value = chosen.value()
    if value == "":
        raise InputError(f"{FROM_RUN}: is empty; give the folder of a run, as {FROM_RUN}=runs/demo")
    if isinstance(value, list | dict):
        raise InputError(f"{FROM_RUN}: found {format_value(value)}, allowed is the folder of one run, as runs/demo")
    return str(value)


def _merged(recorded: Sequence[str], given: Sequence[Override], overrides: Sequence[str]) -> list[str]:
    """Return the recorded overrides that are not given anew, then those of the command line.

    Args:
        recorded: The record of a run.
        given: The overrides of the command line that could be parsed.
        overrides: The overrides of the command line.
    """
    kept = []
    for override in readable(recorded):
        key, text = override.key_or_group, str(override.input_line)
        new = [one for one in given if one.key_or_group == key]
        if key in NOT_REPEATED:
            continue
        if not new:
            kept.append(text)
        elif any(one.is_delete() for one in new):
            if "." in key and not override.is_delete():
                # `~key` deletes a key that exists. A group that the command line chooses anew may lack it.
                kept.append(f"++{text.lstrip('+')}")
        elif _adds(override) and not any(map(_adds, new)):
            kept.append(text)  # `+key=1` must stay before `key=2`, which changes a key that exists
    return [*kept, *overrides]


def _adds(override: Override) -> bool:
    return bool(override.is_add() or override.is_force_add())


def _merged_in_resumed_run(folder: str, given: Sequence[Override], overrides: Sequence[str]) -> list[str] | None:
    """Return the merged overrides of the run that this command made from `folder` before; None if there is none.

    A job of a sweep is not found, because its name depends on values that are not known yet.
    """
    if any(one.is_sweep_override() for one in given):
        return None
    named = {one.key_or_group: str(one.value()) for one in given if one.key_or_group in ("name", "runs")}
    runs = Path(named.get("runs", "runs"))
    for path in sorted(runs.glob(f"*/{OVERRIDES}")):
        with suppress(InputError):
            recorded = recorded_overrides(str(path.parent))
            if not any(one.key_or_group == FROM_RUN and one.value() == folder for one in readable(recorded)):
                continue
            merged = _merged(recorded, given, overrides)
            if run_folder(SimpleNamespace(name=named.get("name"), runs=runs), merged) == path.parent:
                return merged
    return None


def with_addable_model_keys(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a command line; with initialize_from, each model.key=value becomes ++model.key=value.

    The model is then that of the checkpoint, which may have keys that the composed one lacks. Unknown keys are refused
    when the override is applied to it.
    """
    starts = [one for one in readable(overrides) if one.key_or_group == "initialize_from"]
    if not starts or starts[-1].is_delete() or (not starts[-1].is_sweep_override() and starts[-1].value() is None):
        return list(overrides)
    changing = {
        str(one.input_line)
        for one in readable(overrides)
        if one.key_or_group.startswith("model.") and one.type == OverrideType.CHANGE
    }
    return [f"++{text}" if text in changing else text for text in overrides]


def recorded_overrides(folder: str) -> list[str]:
    """Return the overrides that started the run in a folder.

    Raises InputError if the folder has no record, or if it holds something that train.py never records. An override of
    Hydra's own config could call any function, and a foreign folder must not run code.
    """
    path = Path(folder) / OVERRIDES
    if not path.parent.is_dir():
        raise InputError(f"from_run: found {format_value(folder)}, allowed is the folder of a run, as runs/demo")
    if not path.exists():
        raise InputError(f"from_run: {path.parent} holds no {OVERRIDES}, so it is no run of train.py")
    overrides = _read_record(path)
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise InputError(f"from_run: {path} must hold a list of overrides")
    allowed = {str(one.input_line) for one in readable(overrides) if not re.match(r"hydra\b", one.key_or_group)}
    if foreign := next((override for override in overrides if override not in allowed), None):
        raise InputError(
            f"from_run: {path} holds {format_value(foreign)}, which train.py never records; remove it from the file"
        )
    return overrides


def _read_record(path: Path) -> Any:
    """Return the contents of a JSON file of the run to repeat. Raises InputError if it cannot be read."""
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"from_run: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"from_run: {path} is not valid JSON: {error}") from None


def readable(overrides: Sequence[str]) -> Iterator[Override]:
    """Yield the overrides that Hydra's grammar can read."""
    for text in overrides:
        with suppress(HydraException):
            yield OverridesParser.create().parse_override(text)


def changes_from_run(cfg: Any, folder: Path) -> list[str] | None:
    """Return how a run's config differs from that of the run in cfg.from_run, without the keys of new overrides.

    Returns None if that run's config is gone. Raises InputError if the new run's folder is that run's own, or if its
    config is damaged.
    """
    old = Path(cfg.from_run)
    if folder.resolve() == old.resolve():
        raise InputError(f"from_run: the new run would be written to {folder} too: give it another name, name=...")
    if not (old / CONFIG).exists():
        return None
    recorded = _read_record(old / CONFIG)
    if not isinstance(recorded, dict):
        raise InputError(f"from_run: {old / CONFIG} must hold the config of a run")
    before = recorded_overrides(cfg.from_run)
    new = {override_key(one).lstrip("~") for one in readable(current_overrides()) if one.input_line not in before}
    config = resolve(cfg)
    if config["initialize_from"] is not None:  # the checkpoint brings them
        new |= {"model", "tokenizer"}
    return [
        line
        for line in describe_changes(recorded, config)
        if not any(f"{line.partition(':')[0]}.".startswith(f"{key}.") for key in (new | NOT_REPEATED))
    ]


def current_overrides() -> list[str]:
    """Return the overrides of the run that Hydra is executing."""
    return list(HydraConfig.get().overrides.task)


def may_change(key: str) -> bool:
    """Return whether a setting may change when a run is resumed. Training does not use the test sets.

    What may change of a corpus may change of one in data=multilingual.
    """
    key = _CORPUS_OF_SEVERAL.sub("data.", key)
    return key in MAY_CHANGE or key == "data.test" or key.startswith("data.test.")


def is_input_file(key: str) -> bool:
    """Return whether a key names training or dev text, see INPUT_FILES."""
    return INPUT_FILES.fullmatch(_CORPUS_OF_SEVERAL.sub("data.", key)) is not None


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key: old → new` for each setting of two resolved configs that differs and must not change in a run."""
    before, after = (
        {key: value for key, value in flatten(config).items() if not (may_change(key) or is_input_file(key))}
        for config in (old, new)
    )
    return describe_changes(before, after)


def compared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the result of a run, without its seed, as one flat dictionary.

    Two runs with equal settings are repetitions of each other. The config is resolved.
    """
    return {
        key: value for key, value in flatten(config).items() if key != "seed" and (key in LIMITS or not may_change(key))
    }


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a run and lock it for this process; inside, the log is written to its train.log too.

    Raises InputError if the folder cannot be made or another process trains in it. If an InputError ends the context
    before the training has written anything, a folder that this call made is removed again.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        shown = format_value(str(folder), quote=False)
        raise InputError(f"the run's folder {shown} cannot be made ({error.strerror}); see runs= and name=") from None
    in_use = f"{folder}: another process trains in it: wait until it ends, or give the new run another name: name=..."
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, _LOCK, in_use))
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        try:
            configure_logging(folder / LOG)
            yield
        except InputError:
            if made:
                _remove_unused(made)
            raise


def _remove_unused(made: list[Path]) -> None:
    """Remove the folders, innermost first, unless the run's folder holds more than its lock, log and config."""
    folder = made[0]
    if {path.name for path in folder.iterdir()} <= {_LOCK, LOG, CONFIG, OVERRIDES}:
        configure_logging()  # closes the log file
        for name in (_LOCK, LOG, CONFIG, OVERRIDES):
            (folder / name).unlink(missing_ok=True)
        for path in made:
            if not any(path.iterdir()):
                path.rmdir()
