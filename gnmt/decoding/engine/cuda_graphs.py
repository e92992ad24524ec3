"""Work on CUDA that is recorded as CUDA graphs and replayed.

A search step of GNMT launches 34 kernels, and 204 without those of engine/kernels.py. The host needs longer to launch
them than the device to run them. Replaying a graph is a single launch. A graph computes exactly what the recorded work
computes, in the same memory, so the work must read and write tensors that stay where they are.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from gnmt.device import is_out_of_memory
from gnmt.errors import first_line

log = logging.getLogger(__name__)

Work = Callable[[], None]
"""A function that computes with fixed shapes in fixed memory and returns nothing."""


@contextmanager
def search_stream(device: torch.device) -> Iterator[None]:
    """Run the block on a stream for searches if the device is CUDA, because the default stream cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    outside, inside = torch.cuda.current_stream(device), _stream(device)
    inside.wait_stream(outside)
    try:
        with torch.cuda.stream(inside):
            yield
    finally:
        outside.wait_stream(inside)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all searches on a device. There is only one because cuBLAS allocates memory per stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaRecorder:
    """Record work as CUDA graphs.

    All graphs use the same memory for intermediate results, so they must be replayed one after another, and results
    must be copied into tensors that exist before the recording.
    """

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.last: torch.cuda.CUDAGraph | None = None  # keeps the pool alive

    def __call__(self, work: Work) -> Work:
        """Return a function that runs the work. Recording itself does not run it."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # after a failure, the end of the recording fails too
                graph.capture_end()
            raise
        graph.capture_end()
        self.last = graph
        return graph.replay


class Repeated:
    """Work that is recorded when it runs for the second time, and replayed from then on.

    If the work does something that cannot be recorded, such as copying a number to the host, it runs without a
    recording.

    Args:
        work: The work.
        record: Turns work into a function that repeats it, such as CudaRecorder.
    """

    def __init__(self, work: Work, record: Callable[[Work], Work]) -> None:
        self.work = work
        self.record = record
        self.has_run = False
        self.recorded: Work | None = None

    def __call__(self) -> None:
        if self.has_run and self.recorded is None:
            try:
                self.recorded = self.record(self.work)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                _warn_once(first_line(error))
                self.recorded = self.work
        (self.recorded or self.work)()
        self.has_run = True


@functools.cache
def _warn_once(reason: str) -> None:
    """Log why steps are not recorded, once for each reason."""
    log.warning("search runs more slowly, because its steps cannot be recorded as CUDA graphs: %s", reason)
