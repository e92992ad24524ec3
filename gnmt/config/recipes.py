"""A whole recipe by its name, for programs that are not train.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from gnmt.config.assembly import check_config, resolve
from gnmt.config.choices import CONFIG_FOLDER, RECIPES, names_unknown_recipe
from gnmt.config.diagnosis import COMPOSITION_ERRORS, explain
from gnmt.types import InputError


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
