"""Files of torch.save that hold other people's objects, read without running anything of theirs."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Self

import torch

from gnmt.checkpoint_faults import first_line, nearby_checkpoints
from gnmt.types import InputError


class Inert:
    """Stands in for an object of a foreign class: it takes what the file says of the object, and does nothing.

    state: the attributes, as a dictionary where the class had no state of its own kind.
    """

    state: Any = None

    def __new__(cls, *arguments: Any) -> Self:
        """Takes the arguments of the constructor that it replaces, and forgets them."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Namespace(Inert):
    """argparse.Namespace: the options of a command line."""


class BytePairEncoding(Inert):
    """subword_nmt.apply_bpe.BPE: merge operations."""


def whole_number(*arguments: Any) -> int:
    """The type int, which a file may name and not call."""
    raise InputError("it calls builtins.int, which is allowed only as the factory of a dictionary")


class ConstantOne(Inert):
    """functools.partial(int, 1), and no other partial."""

    def __new__(cls, *arguments: Any) -> Self:
        _allow_only_one(arguments[:1] == (whole_number,) and arguments[1:] in ((), (1,)))
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        function, arguments, keywords, _ = state
        _allow_only_one(function is whole_number and arguments == (1,) and not keywords)
        self.state = 1


def _allow_only_one(condition: bool) -> None:
    if not condition:
        raise InputError("it holds a functools.partial that is not functools.partial(int, 1)")


def plain_dictionary(*arguments: Any) -> dict[Any, Any]:
    """What a collections.defaultdict becomes: its entries, without the factory."""
    if not all(isinstance(argument, ConstantOne) for argument in arguments):
        raise InputError("it holds a collections.defaultdict whose factory is not functools.partial(int, 1)")
    return {}


STAND_INS = [
    (Namespace, "argparse.Namespace"),
    (BytePairEncoding, "subword_nmt.apply_bpe.BPE"),
    (whole_number, "builtins.int"),
    (ConstantOne, "functools.partial"),
    (plain_dictionary, "collections.defaultdict"),
]
"""What a file may hold beside tensors, dictionaries (OrderedDict too), lists, tuples, sets, numbers and text."""


def read_restricted(path: str | Path) -> Any:
    """What torch.save wrote, in its zip or its older format: tensors on the CPU, foreign objects as their STAND_INS.

    torch's own weights-only reader does the work, which knows only what is listed. Raises InputError for a file that
    is missing or damaged, and with the full name for one that names any other class or function.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file{nearby_checkpoints(path)}")
    try:
        with torch.serialization.safe_globals(list[Any](STAND_INS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"checkpoint {path} was refused, and nothing in it ran: {error}; {_allowed()}") from None
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} was refused, and nothing in it ran: {_reason(str(error))}; {_allowed()}"
        ) from None
    except Exception as error:  # damaged bytes lead torch's reader to errors of every kind
        raise InputError(
            f"checkpoint {path} is damaged or was not written by torch.save "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None


def _reason(message: str) -> str:
    """What torch's reader objects to, without its advice to load the file all the same."""
    if found := re.search(r"GLOBAL (\S+) (?:was|whose)", message):
        return f"it names {found[1]}"
    if found := re.search(r"WeightsUnpickler error: (.+)", message):
        return found[1]
    return "it is damaged, or holds what only running its code could rebuild"


def _allowed() -> str:
    return f"allowed are tensors, plain values and, as inert data, {', '.join(name for _, name in STAND_INS)}"
