"""The door of every script: composes its config with Hydra, checks it, and reports errors in one message."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser

from gnmt import early_interrupt
from gnmt.config.assembly import check_config
from gnmt.config.choices import CONFIG_FOLDER, names_unknown_recipe, search_path
from gnmt.config.diagnosis import COMPOSITION_ERRORS, describe_groups, explain
from gnmt.config.logs import configure_logging, note_in_run_file, own_rank
from gnmt.types import InputError, Interrupted

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
                early_interrupt.hand_over()
                if names_unknown_recipe(config_name, arguments.overrides, places):
                    end_explaining(None)
                hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)(job)()
            except COMPOSITION_ERRORS as error:
                if jobs:
                    raise  # not of composition: a bug in main
                end_explaining(error)
            except KeyboardInterrupt as interruption:
                print(str(interruption) or "interrupted", file=sys.stderr)
                sys.exit(
                    interruption.exit_code
                    if isinstance(interruption, Interrupted)
                    else early_interrupt.EXIT_CODES[signal.SIGINT]
                )
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
