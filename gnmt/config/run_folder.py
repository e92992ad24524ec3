"""The folder of a training run: its name, and the settings that must stay the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from gnmt.errors import InputError, describe_changes, flatten, shown
from gnmt.fileio import folder_lock
from gnmt.logs import configure_logging

# Limits, intervals, devices and places: they change how far or where a run goes, not what it computes.
MAY_CHANGE = frozenset(
    {
        "name",
        "runs",
        "device",
        "deterministic",
        "onednn_cache_capacity",
        "resume",
        "trusted_packages",
        "data.folder",
        "data.preprocessed",
        "data.download_folder",
        "data.url",
        "data.mirror",
        "data.num_workers",
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
    }
)
# The text in these files is compared itself, so a move of the files is no change.
INPUT_FILES = re.compile(r"data\.(train|dev|corpora\.[^.]+\.text)\.(source|target|pairs)")
# Places, and what says how to start: what jobs of a sweep may share without sharing a run.
NEVER_NAMED = frozenset(
    {
        *("name", "runs", "resume", "trusted_packages"),
        *("data.folder", "data.preprocessed", "data.download_folder", "data.url", "data.mirror", "data.num_workers"),
    }
)
# Of what may change, what still decides how far a run comes.
LIMITS = frozenset(
    {
        *("trainer.max_steps", "trainer.max_epochs", "trainer.patience_evaluations", "trainer.evaluate_every_steps"),
    }
)
GROUPS_THAT_NAME = ("experiment", "data")
PLAIN = re.compile(r"[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*", re.ASCII)
LONGEST_NAME = 120
ABSENT = object()


def current_run_folder(cfg: Any) -> Path:
    """The folder of the run that Hydra is executing now; every job of a sweep has its own."""
    hydra = HydraConfig.get()
    return run_folder(cfg, list(hydra.overrides.task), sweep=hydra.mode == RunMode.MULTIRUN)


def run_folder(cfg: Any, overrides: Sequence[str], *, sweep: bool = False) -> Path:
    """`<runs>/<name>`; without a name, the experiment (or the data) and a slug of the other overrides.

    overrides: as on the command line. In a sweep a given name gets the slug as well, or all jobs would share it.
    Raises InputError for a name that is no plain folder name.
    """
    chosen = effective_overrides(overrides)
    if cfg.name is not None and not (PLAIN.fullmatch(cfg.name) and cfg.name.strip(".")):
        raise InputError(
            f"name: found {shown(cfg.name)}, allowed are letters, digits, '-' and '.', with single '_' between them"
        )
    if cfg.name is not None and not sweep:
        return Path(cfg.runs) / str(cfg.name)
    group = None if cfg.name else next((key for key in GROUPS_THAT_NAME if chosen.get(key) is not None), None)
    base = cfg.name or (str(chosen[group]) if group else "demo")
    # Jobs of a sweep may differ in limits alone, which for one run that goes on make no difference.
    unnamed = NEVER_NAMED.__contains__ if sweep else may_change
    parts = [slug(key, value) for key, value in sorted(chosen.items()) if key != group and not unnamed(key)]
    return Path(cfg.runs) / shortened("__".join([base, *parts]))


def may_change(key: str) -> bool:
    """Whether a setting may differ between two sessions of the same run; test sets are no part of training."""
    return key in MAY_CHANGE or key == "data.test" or key.startswith("data.test.")


def effective_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Keys and their last values, parsed, so that 1e-3 and 0.001 are the same."""
    chosen: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        chosen[override.get_key_element().lstrip("+").replace("/", ".")] = override.value()
    return chosen


def slug(key: str, value: Any) -> str:
    """`key-value` in letters, digits, '.', '_' and '-'; a hash tells apart what that makes equal."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if PLAIN.fullmatch(text) and PLAIN.fullmatch(key):
        return f"{key}-{text}"
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{key}-{text}").strip("_")
    return f"{plain}-{short_hash(f'{key}={text}')}"


def shortened(name: str) -> str:
    """The name, or its start and a hash where a file system might refuse it."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """8 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old → new` for every setting of two resolved configs that must not change while a run goes on."""
    before, after = (
        {key: value for key, value in flatten(config).items() if not (may_change(key) or INPUT_FILES.fullmatch(key))}
        for config in (old, new)
    )
    return describe_changes(before, after)


def compared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's result, flat, without its seed: runs in which they are equal repeat one.

    config: resolved.
    """
    return {
        key: value for key, value in flatten(config).items() if key != "seed" and (key in LIMITS or not may_change(key))
    }


_LOCK, _LOG, CONFIG = ".lock", "train.log", "config.json"


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Makes the run's folder and keeps it for this process; inside, the log goes to its train.log as well.

    Raises InputError where it cannot be made, and where another process trains there. A folder that was not there
    before is removed again with InputErrors that come before anything of the training is in it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the run's folder {folder} cannot be made: {error.strerror}; see runs= and name=") from None
    in_use = f"{folder}: another process trains in it: wait until it ends, or give the new run another name: name=..."
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, _LOCK, in_use))
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        try:
            configure_logging(folder / _LOG)
            yield
        except InputError:
            if made:
                _remove_unused(made)
            raise


def _remove_unused(made: list[Path]) -> None:
    """Removes the folders, innermost first, unless something lies in them that is worth keeping."""
    folder = made[0]
    if {path.name for path in folder.iterdir()} <= {_LOCK, _LOG, CONFIG}:
        configure_logging()  # lets go of the log
        for name in (_LOCK, _LOG, CONFIG):
            (folder / name).unlink(missing_ok=True)
        for place in made:
            if not any(place.iterdir()):
                place.rmdir()
