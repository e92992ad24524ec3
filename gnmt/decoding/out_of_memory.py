"""A batch that does not fit into memory is tried again at half its size, without what was done of it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from gnmt.types import InputError

log = logging.getLogger(__name__)


# Runs without a shortage after which twice the batch is tried again. A batch that does not fit costs the sentences that
# are in flight, so this is a small part of what lies between two attempts.
RUNS_UNTIL_LARGER = 8


class FittingBatches:
    """The size of batches that fits: halved where memory runs out, and raised again when others have left room."""

    def __init__(self) -> None:
        self._fitting: int | None = None  # None while the size that is asked for fits
        self._runs_without_shortage = 0

    def run(self, run: Callable[[int], object], batch_size: int, first_left: Callable[[], str]) -> None:
        """run(size) with a size of at most batch_size; see with_smaller_batches."""
        size = batch_size if self._fitting is None else min(batch_size, self._fitting)
        fitted = with_smaller_batches(run, size, first_left)
        if fitted < size:
            self._fitting, self._runs_without_shortage = fitted, 0
        elif self._fitting is not None:
            self._runs_without_shortage += 1
            if self._runs_without_shortage == RUNS_UNTIL_LARGER:
                self._fitting, self._runs_without_shortage = 2 * size, 0
                log.info("no shortage of memory since: going on with batch_size=%d", min(2 * size, batch_size))
            if self._fitting >= batch_size:
                self._fitting = None


def with_smaller_batches(run: Callable[[int], object], batch_size: int, first_left: Callable[[], str]) -> int:
    """run(batch_size), and where that runs out of memory, of half the size, and so on, with a warning each time.

    run: keeps what it has done when it fails, and does the rest when it is called again. first_left: names the line
    that was at work when a batch of one did not fit; InputError says it then. Other errors go through. Returns the size
    that fitted in the end.
    """
    while True:
        try:
            run(batch_size)
            return batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise InputError(
                    f"{first_left()} does not fit into memory, not even by itself: lower max_source_tokens, "
                    "decoding.beam_size or decoding.max_length_factor, or use another device"
                ) from None
        # Outside the handler: until it ends, the error's frames hold the tensors that did not fit.
        batch_size //= 2
        log.warning("out of memory: going on with batch_size=%d", batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# What torch and the libraries under it say, as a plain RuntimeError, of a shortage that torch did not see itself.
_SHORTAGES = (
    "not enough memory",
    "DefaultCPUAllocator",
    "out of memory",
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "std::bad_alloc",
    "could not create a memory object",  # oneDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or a library under it says that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(shortage in str(error) for shortage in _SHORTAGES)
