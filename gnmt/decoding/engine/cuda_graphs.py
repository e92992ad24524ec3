"""Search steps on CUDA, recorded as CUDA graphs and replayed.

A search step launches about two hundred small kernels, and the host needs longer to launch them than the device to run
them. Replaying a graph is a single launch. Between two checks for finished sentences, no sentence enters or leaves the
active batch, so all steps have the same shapes. The first step runs without a graph, the second is recorded, and the
recording is replayed for the second and all later steps. A graph computes exactly what the recorded step computes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from gnmt.decoding.beam import ActiveBatch, Hypotheses, Sentences
from gnmt.device import is_out_of_memory
from gnmt.model.interfaces import DecoderState

log = logging.getLogger(__name__)

Work = Callable[[], None]
"""A function that computes with fixed shapes in fixed memory and returns nothing."""


class Step(Protocol):
    """One search step of the active batch; see gnmt.decoding.beam.advance for the flags."""

    def __call__(self, batch: ActiveBatch, *, some_forced: bool, some_at_limit: bool) -> ActiveBatch: ...


@contextmanager
def replayed(step: Step, device: torch.device) -> Iterator[Step]:
    """Yield a step with the same results. On CUDA it is recorded and replayed, on a stream of its own."""
    if device.type != "cuda":
        yield step
        return
    outside, inside = torch.cuda.current_stream(device), _stream(device)
    inside.wait_stream(outside)
    try:
        with torch.cuda.stream(inside):
            yield ReplayedStep(step, CudaRecorder())
    finally:
        outside.wait_stream(inside)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all searches on a device. There is only one because cuBLAS allocates memory per stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaRecorder:
    """Record work as CUDA graphs.

    All graphs use the same memory for intermediate results, so only the last one may be replayed.
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
        finally:
            graph.capture_end()
        self.last = graph
        return graph.replay


class ReplayedStep:
    """A Step that records itself and replays the recording while the shapes stay the same.

    Args:
        step: The step to run.
        record: Turns work into a function that repeats it, such as CudaRecorder.
    """

    def __init__(self, step: Step, record: Callable[[Work], Work]) -> None:
        self.step = step
        self.record = record
        self.batch: ActiveBatch | None = None  # result of the last step
        self.flags: dict[str, bool] = {}  # flags of the last step
        self.repeat: Work | None = None  # runs the next step in self.batch's memory; None until one is recorded
        self.can_record = True

    def __call__(self, batch: ActiveBatch, *, some_forced: bool, some_at_limit: bool) -> ActiveBatch:
        flags = {"some_forced": some_forced, "some_at_limit": some_at_limit}
        is_same = batch is self.batch and flags == self.flags
        # A state that grows with each step (by_step) has other shapes in each, so it cannot be recorded.
        if is_same and self.repeat is None and self.can_record and not batch.decoder.by_step:
            batch = self._recorded(batch, flags)
        elif not is_same:
            self.repeat = None
        if self.repeat is None:
            batch = self.step(batch, **flags)
        else:
            self.repeat()
        self.batch, self.flags = batch, flags
        return batch

    def _recorded(self, batch: ActiveBatch, flags: dict[str, bool]) -> ActiveBatch:
        """Record the next step and return the batch in the memory that the recording reads and writes.

        If the model does something that cannot be recorded, such as copying a number to the host, no further step is
        recorded and the batch is returned unchanged.
        """
        own = with_own_memory(batch)
        try:
            self.repeat = self.record(lambda: self._step_in_place(own, flags))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            log.debug("search steps are not replayed as CUDA graphs: %s", error)
            self.can_record = False
            return batch
        return own

    def _step_in_place(self, batch: ActiveBatch, flags: dict[str, bool]) -> None:
        """Run a step and copy its result into the batch's own memory."""
        after = self.step(batch, **flags)
        for old, new in zip(changing(batch), changing(after), strict=True):
            if new is not old:
                old.copy_(new)


def changing(batch: ActiveBatch) -> list[Tensor]:
    """Return all tensors of an active batch that a step may change."""
    return [
        *batch.sentences,
        *batch.active,
        *batch.results,
        *batch.decoder.tensors.values(),
        batch.attention_BTKS,
    ]


def with_own_memory(batch: ActiveBatch) -> ActiveBatch:
    """Return the batch with copies of its tensors, so that they share no memory and may be overwritten.

    `memory` is not copied, because no step changes it, nor attention_BTKS, because steps change it in place anyway.
    """

    def own(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        return (tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)

    decoder = batch.decoder.tensors
    return batch._replace(
        sentences=Sentences(*own(batch.sentences)),
        active=Hypotheses(*own(batch.active)),
        results=Hypotheses(*own(batch.results)),
        decoder=DecoderState(dict(zip(decoder, own(decoder.values()), strict=True))),
    )
