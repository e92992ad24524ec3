"""The folder of a run: one process trains in it, and a run that is refused leaves none behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gnmt.config import configure_logging
from gnmt.files import exclusive
from gnmt.types import InputError

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
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / _LOCK))
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process trains in it: wait for its end, or give the new run a name of its own: "
                "name=..."
            ) from None
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
