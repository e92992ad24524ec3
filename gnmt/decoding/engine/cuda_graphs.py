"""Steps of search on CUDA as graphs: replaying one costs the host a single call instead of some two hundred.

A step of search is about two hundred small kernels, and launching them takes the host longer than running them takes
the device. Between two looks at what is done nobody enters or leaves, so all steps have the same shapes: the first is
run as it is, the second is recorded, and it and those that follow are replayed. What a graph computes is what the steps
would compute one by one.
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
from gnmt.model.interfaces import DecoderState

log = logging.getLogger(__name__)

Work = Callable[[], None]
"""Work of fixed shapes in fixed memory, which gives no result but what it writes."""


class Step(Protocol):
    """One step of all sentences in flight; the flags are those of gnmt.decoding.beam.advance."""

    def __call__(self, flight: ActiveBatch, *, some_forced: bool, some_at_limit: bool) -> ActiveBatch: ...


@contextmanager
def replayed(step: Step, device: torch.device) -> Iterator[Step]:
    """The same step; on CUDA recorded and replayed, in a stream of its own until the block ends."""
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
    """One for all searches, since cuBLAS keeps memory for each stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaRecorder:
    """Makes graphs of work. They share their memory for intermediate results, so only the last one may be replayed."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.last: torch.cuda.CUDAGraph | None = None  # without a graph that lives, the pool is gone

    def __call__(self, work: Work) -> Work:
        """A function that does the work once more; the work itself has not been done yet."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
        self.last = graph
        return graph.replay


class ReplayedStep:
    """A Step that records and replays.

    record: makes work repeatable. flight, flags: the last step's result and flags. repeat: takes the next step in that
    flight's memory, or None where none is recorded since sentences entered or left.
    """

    def __init__(self, step: Step, record: Callable[[Work], Work]) -> None:
        self.step = step
        self.record = record
        self.flight: ActiveBatch | None = None
        self.flags: dict[str, bool] = {}
        self.repeat: Work | None = None
        self.can_record = True

    def __call__(self, flight: ActiveBatch, *, some_forced: bool, some_at_limit: bool) -> ActiveBatch:
        flags = {"some_forced": some_forced, "some_at_limit": some_at_limit}
        goes_on = flight is self.flight and flags == self.flags
        if goes_on and self.repeat is None and self._may_record(flight):
            flight = self._recorded(flight, flags)
        elif not goes_on:
            self.repeat = None
        if self.repeat is None:
            flight = self.step(flight, **flags)
        else:
            self.repeat()
        self.flight, self.flags = flight, flags
        return flight

    def _may_record(self, flight: ActiveBatch) -> bool:
        """Whether steps leave shapes as they are; those that remember one entry more after each do not."""
        return self.can_record and not flight.decoder.by_step

    def _recorded(self, flight: ActiveBatch, flags: dict[str, bool]) -> ActiveBatch:
        """The flight in memory of its own, in which the recorded step goes on; as it was where nothing is recorded,
        since the model does what no graph can hold, such as asking the device for a number.
        """
        own = with_own_memory(flight)
        try:
            self.repeat = self.record(lambda: self._take_in_place(own, flags))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.debug("steps of search are not replayed: %s", error)
            self.can_record = False
            return flight
        return own

    def _take_in_place(self, flight: ActiveBatch, flags: dict[str, bool]) -> None:
        after = self.step(flight, **flags)
        for old, new in zip(changing(flight), changing(after), strict=True):
            if new is not old:
                old.copy_(new)


def changing(flight: ActiveBatch) -> list[Tensor]:
    """All tensors of a flight that a step may change."""
    return [
        *flight.sentences,
        *flight.active,
        *flight.results,
        *flight.decoder.tensors.values(),
        flight.attention_BTKS,
    ]


def with_own_memory(flight: ActiveBatch) -> ActiveBatch:
    """The same, with tensors that share their memory with no other, so that a step can be written over them.

    But for what a step does not change (memory) and what it writes to in place anyway (attention_BTKS).
    """

    def own(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        return (tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)

    decoder = flight.decoder.tensors
    return flight._replace(
        sentences=Sentences(*own(flight.sentences)),
        active=Hypotheses(*own(flight.active)),
        results=Hypotheses(*own(flight.results)),
        decoder=DecoderState(dict(zip(decoder, own(decoder.values()), strict=True))),
    )
