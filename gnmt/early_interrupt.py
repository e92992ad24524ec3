"""Ctrl-C while a script loads its libraries, which takes seconds: one line and exit code 130, no traceback.

Each script imports this before all else; it has an effect only where one of scripts/ is the program. From then on
`gnmt.config.entry` handles interruptions.
"""

import os
import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 130


def hand_over() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted before it began\n")
    os._exit(EXIT_INTERRUPTED)  # raised, it might be caught, or reported, by whatever is being imported


def _a_script_runs() -> bool:
    program = getattr(sys.modules["__main__"], "__file__", None)
    scripts = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
    return program is not None and os.path.dirname(os.path.abspath(program)) == scripts


if _a_script_runs() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
