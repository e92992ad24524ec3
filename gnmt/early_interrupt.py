"""Signals while a script loads its libraries, which takes seconds: one line and an exit code, no traceback.

Each script imports this before all else; it has an effect only where one of scripts/ is the program. Ctrl-C is
`gnmt.config.entry`'s from then on. A training is stopped by SIGTERM and SIGUSR1 too, which
`gnmt.training.interruption` takes over where it begins; before, and between the jobs of a sweep, nothing is lost.
"""

import os
import signal
import sys
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 75}
"""How a stopped command ends. 128 + N as shells have it, but for SIGUSR1, with which Slurm announces the end of a job's
time: 75 is EX_TEMPFAIL of sysexits.h, "try again", which no other way to end gives."""

_TRAINING = "train.py"
_NOT_TRAINING = "stopped where nothing was being trained: the same command goes on"


def hand_over() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    received = signal.Signals(number)
    said = "interrupted before it began" if received == signal.SIGINT else f"{received.name}: {_NOT_TRAINING}"
    os.write(2, f"{said}\n".encode())
    os._exit(EXIT_CODES[received])  # raised, it might be caught, or reported, by whatever is being imported


def _script() -> str | None:
    """The name of the program where it is one of scripts/."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    scripts = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
    inside = program is not None and os.path.dirname(os.path.abspath(program)) == scripts
    return os.path.basename(program) if program is not None and inside else None


if _script() is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
for _number in (signal.SIGTERM, signal.SIGUSR1) if _script() == _TRAINING else ():
    if signal.getsignal(_number) is signal.SIG_DFL:
        signal.signal(_number, _leave)
