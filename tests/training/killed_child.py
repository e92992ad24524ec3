"""A training process that kills itself: python killed_child.py MARK FOLDER OVERRIDE...; see test_train_killed.py."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

import gnmt.checkpoint.file as checkpoint_module
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.training.dev_evaluation import DevEvaluator
from gnmt.training.objective import Objective
from gnmt.training.train import train
from gnmt.training.trainer import Trainer


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_calls(owner: Any, name: str, calls: int, when: Callable[..., bool] = lambda *_: True) -> None:
    """Kill this process at the end of call number `calls` of a method, counting calls for which `when` is true."""
    original, made = getattr(owner, name), []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        if when(*arguments):
            made.append(1)
            if len(made) == calls:
                kill()
        return result

    setattr(owner, name, counted)


def being_written(name: str) -> Callable[..., bool]:
    """Return a condition for `after_calls`: the file being written has `name` in its name."""
    return lambda output, *_: name in str(output._file.name)


MARKS: dict[str, Callable[[], None]] = {
    "inside an epoch": lambda: after_calls(Trainer, "update", 6),
    "inside accumulation": lambda: after_calls(Objective, "forward", 14, lambda objective, _: objective.training),
    "inside an evaluation": lambda: after_calls(DevEvaluator, "translations", 2),
    "inside the writing of a checkpoint": lambda: after_calls(
        checkpoint_module._Output, "write", 5, being_written("step_00000006.pt")
    ),
    "inside the writing of the first checkpoint": lambda: after_calls(
        checkpoint_module._Output, "write", 5, being_written("step_00000003.pt")
    ),
    "inside the writing of best.pt": lambda: after_calls(
        checkpoint_module._Output, "write", 5, being_written("best.pt")
    ),
}

if __name__ == "__main__":
    mark, folder, *overrides = sys.argv[1:]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides)
    MARKS[mark]()
    train(cfg, Path(folder))
