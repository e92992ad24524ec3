"""The active batch of a search, which sentences enter and leave: CompactBatch on a CPU, ResidentBatch on CUDA.

Both give the same results. On a CPU, every row takes time, so a CompactBatch holds active sentences only: those that
enter are joined with the others, and those that stay are moved together. On CUDA, launching kernels takes more time
than needless rows, and a graph of a step works on fixed memory and shapes only. A ResidentBatch therefore has tensors
of fixed shapes. A sentence enters by being written into a free row, and flags of finished sentences are read while
further steps run. `ResidentMemory` keeps these tensors and the graphs for later searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gnmt.decoding.beam import ActiveBatch, Hypotheses, Sentences, compact_order
from gnmt.decoding.engine.cuda_graphs import CudaRecorder, Repeated, Work
from gnmt.device import copied_to
from gnmt.model.interfaces import DecoderState, Memory

# Shapes whose memory and graphs a translator keeps. Sentences of one file need fewer.
LARGEST_NUMBER_OF_SHAPES = 16

# Steps of a resident batch between two checks for finished sentences. With few rows, it checks after each step, because
# needless steps then cost more.
STEPS_BETWEEN_CHECKS = 4
FEW_ROWS = 8

LengthLimit = Callable[[int], int]


class Step(Protocol):
    """One search step of the active batch; see gnmt.decoding.beam.advance for the flags."""

    def __call__(self, batch: ActiveBatch, *, some_forced: bool, some_at_limit: bool) -> ActiveBatch: ...


class Shape(NamedTuple):
    """Sizes of an active batch.

    Attributes:
        rows: Number of sentences.
        source: Number of source positions.
        target: Columns of T, one more than the largest length limit.
        prefix: Largest number of prefix tokens.
    """

    rows: int
    source: int
    target: int
    prefix: int

    def fits(self, wanted: Shape) -> bool:
        """Return whether memory of this shape can hold the wanted one, with less than four times its rows and twice its
        source positions."""
        is_large_enough = all(size <= own for size, own in zip(wanted, self, strict=True))
        return is_large_enough and wanted.rows * 4 > self.rows and wanted.source * 2 > self.source


class SearchBatch(Protocol):
    """The active batch of one search. A sentence is identified by its index."""

    @property
    def steps_between_checks(self) -> int:
        """Number of steps to take before the next look at finished sentences."""

    def enter(self, indices: Sequence[int], entering: ActiveBatch, needed: Shape) -> None:
        """Add sentences. needed: the smallest shape in which all of them fit, with those that are there."""

    def step(self, *, some_forced: bool, some_at_limit: bool) -> None:
        """Extend all active hypotheses by one token."""

    def finished(self) -> list[int]:
        """Return the sentences whose search is known to be over. On CUDA, those of the latest steps are not known."""

    def leave(self, indices: Sequence[int], needed: Shape, num_steps: int) -> Callable[[], ActiveBatch]:
        """Remove finished sentences, and return a function that waits for their results.

        Args:
            indices: The sentences.
            needed: The smallest shape in which the others fit.
            num_steps: The largest number of decoder steps that one of the others has taken.
        """

    def close(self) -> None:
        """Make the memory available to later searches. The batch is not used any more."""


class CompactBatch:
    """An active batch without free rows; see SearchBatch."""

    steps_between_checks = 1

    def __init__(self, take_step: Step) -> None:
        self.take_step = take_step
        self.indices: list[int] = []  # the sentence in each row
        self.batch: ActiveBatch | None = None  # None when it is empty

    def enter(self, indices: Sequence[int], entering: ActiveBatch, needed: Shape) -> None:
        self.batch = entering if self.batch is None else ActiveBatch.join(self.batch, entering)
        self.indices += indices

    def step(self, *, some_forced: bool, some_at_limit: bool) -> None:
        assert self.batch is not None
        self.batch = self.take_step(self.batch, some_forced=some_forced, some_at_limit=some_at_limit)

    def finished(self) -> list[int]:
        assert self.batch is not None
        done = self.batch.sentences.done_B.tolist()
        return [index for index, is_done in zip(self.indices, done, strict=True) if is_done]

    def leave(self, indices: Sequence[int], needed: Shape, num_steps: int) -> Callable[[], ActiveBatch]:
        assert self.batch is not None
        rows = {index: row for row, index in enumerate(self.indices)}
        leaving = [rows.pop(index) for index in indices]
        result = self.batch.extract(torch.tensor(leaving, device=self.batch.sentences.done_B.device))
        staying = compact_order(list(rows.values()))
        self.indices = [self.indices[row] for row in staying]
        self.batch = self.batch.compact(staying, needed.target, needed.source, num_steps) if staying else None
        return lambda: result

    def close(self) -> None:
        self.batch = None


class ResidentBatch:
    """An active batch in resident memory, some of whose rows may be free; see SearchBatch.

    Args:
        memory: The memory of this and earlier searches.
        take_step: The step.
        kind: What `take_step` depends on, such as the search options. Searches of one kind may share recorded steps.
        length_limit: Returns the length limit for a number of source tokens.
    """

    def __init__(self, memory: ResidentMemory, take_step: Step, kind: Hashable, length_limit: LengthLimit) -> None:
        self.memory = memory
        self.take_step = take_step
        self.kind = kind
        self.length_limit = length_limit
        self.rows: dict[int, int] = {}  # the row of each sentence
        self.buffers: StaticBuffers | None = None
        # The rows, done_B and its arrival on the CPU, as of the latest check.
        self.flags: tuple[dict[int, int], Tensor, Callable[[], None]] | None = None

    @property
    def steps_between_checks(self) -> int:
        return 1 if self.buffers is not None and self.buffers.shape.rows <= FEW_ROWS else STEPS_BETWEEN_CHECKS

    def enter(self, indices: Sequence[int], entering: ActiveBatch, needed: Shape) -> None:
        self._move_if_needed(needed, entering)
        assert self.buffers is not None
        occupied = set(self.rows.values())
        free = [row for row in range(self.buffers.shape.rows) if row not in occupied][: len(indices)]
        self.buffers.write(free, entering)
        self.rows.update(zip(indices, free, strict=True))

    def step(self, *, some_forced: bool, some_at_limit: bool) -> None:
        assert self.buffers is not None
        self.buffers.step(some_forced, some_at_limit)

    def finished(self) -> list[int]:
        assert self.buffers is not None
        flags = dict(self.rows), host_copy(self.buffers.batch.sentences.done_B), arrival(self.buffers.device)
        earlier, self.flags = self.flags, flags
        if earlier is None:
            return []
        rows, done_B, arrived = earlier
        arrived()
        done = done_B.tolist()
        # The earlier flags include sentences that have left since.
        return [index for index, row in rows.items() if done[row] and index in self.rows]

    def leave(self, indices: Sequence[int], needed: Shape, num_steps: int) -> Callable[[], ActiveBatch]:
        assert self.buffers is not None
        leaving = self.buffers.results([self.rows.pop(index) for index in indices])
        results, arrived = leaving.mapped(host_copy), arrival(self.buffers.device)
        if self.rows:
            self._move_if_needed(needed, None)

        def read() -> ActiveBatch:
            arrived()
            return results

        return read

    def close(self) -> None:
        if self.buffers is not None:
            self.memory.give(self.kind, self.buffers)
            self.buffers = None

    def _move_if_needed(self, needed: Shape, entering: ActiveBatch | None) -> None:
        """Move to memory of another shape if the present one does not fit; see `Shape.fits`.

        entering: Sentences that will enter; required for the first memory of a search.
        """
        wanted = rounded(needed, self.length_limit)
        old = self.buffers
        if old is not None and old.shape.fits(wanted):
            return
        self.buffers = self.memory.take(self.kind, wanted)
        if self.buffers is None:
            if old is not None:
                example = old.batch
            else:  # a state before its first step may have other data types
                assert entering is not None
                example = self.take_step(entering, some_forced=False, some_at_limit=False)
            self.buffers = StaticBuffers(wanted, example, self.take_step, self.memory.record)
        if old is not None:
            if self.rows:
                moved = old.select(list(self.rows.values()))
                self.rows = {index: row for row, index in enumerate(self.rows)}
                self.buffers.write(list(self.rows.values()), moved)
            self.memory.give(self.kind, old)


class ResidentMemory:
    """The memory and the graphs of search steps that a translator keeps from one search to the next.

    It serves one model. `take` returns the same buffers only once, so searches that run at the same time do not share
    any.

    Args:
        record: Turns work into a function that repeats it; by default, a recorder of CUDA graphs.
    """

    def __init__(self, record: Callable[[Work], Work] | None = None) -> None:
        self.record = CudaRecorder() if record is None else record
        self.unused: dict[tuple[Hashable, Shape], StaticBuffers] = {}

    def __reduce__(self) -> tuple[type[ResidentMemory], tuple[()]]:
        """Let copies of a translator in other processes start without memory and graphs, which cannot be pickled."""
        return ResidentMemory, ()

    def take(self, kind: Hashable, shape: Shape) -> StaticBuffers | None:
        """Return buffers of this kind and shape without sentences, or None if there are none."""
        buffers = self.unused.pop((kind, shape), None)
        if buffers is not None:
            buffers.clear()
        return buffers

    def give(self, kind: Hashable, buffers: StaticBuffers) -> None:
        """Keep buffers for later searches. When there are too many shapes, the buffers given first are freed."""
        self.unused[kind, buffers.shape] = buffers
        if len(self.unused) > LARGEST_NUMBER_OF_SHAPES:
            del self.unused[next(iter(self.unused))]

    def free(self) -> None:
        """Free the memory that no search uses."""
        self.unused.clear()


class StaticBuffers:
    """Tensors of an active batch of a fixed shape, which are never allocated again, and the recordings of its step.

    Rows without a sentence are marked as done. They are stepped too, which changes no other row.

    Args:
        shape: The shape.
        example: A batch with the data types and the other sizes of all tensors.
        take_step: The step.
        record: Turns work into a function that repeats it.
    """

    def __init__(self, shape: Shape, example: ActiveBatch, take_step: Step, record: Callable[[Work], Work]) -> None:
        self.shape = shape
        self.batch = allocated(example, shape)
        self.device = self.batch.memory.mask_BS.device
        self.take_step = take_step
        self.record = record
        self.steps: dict[tuple[bool, bool], Repeated] = {}
        self.clear()

    def clear(self) -> None:
        """Mark all rows as done."""
        self.batch.sentences.done_B.fill_(True)
        self.batch.active.log_prob_BK.fill_(-math.inf)
        self.batch.memory.mask_BS[:, 0] = True  # softmax over no position would be NaN

    def write(self, rows: Sequence[int], batch: ActiveBatch) -> None:
        """Write sentences into the given rows."""
        rows_N = copied_to(self.device, torch.tensor(rows))
        self.batch.mapped(lambda memory, tensor: memory.index_copy_(0, rows_N, fitted(tensor, memory)), batch)

    def select(self, rows: Sequence[int]) -> ActiveBatch:
        """Return a copy of the given rows."""
        rows_N = copied_to(self.device, torch.tensor(rows))
        return self.batch.mapped(lambda tensor: tensor.index_select(0, rows_N))

    def results(self, rows: Sequence[int]) -> ActiveBatch:
        """Return a copy of the given rows without encoder states and decoder state."""
        return self.batch.extract(copied_to(self.device, torch.tensor(rows)))

    def step(self, some_forced: bool, some_at_limit: bool) -> None:
        """Extend all active hypotheses by one token, in place."""
        flags = some_forced, some_at_limit
        if flags not in self.steps:
            self.steps[flags] = Repeated(partial(self._step, *flags), self.record)
        self.steps[flags]()

    def _step(self, some_forced: bool, some_at_limit: bool) -> None:
        """Take a step and copy its result into the batch's memory."""
        batch = self.batch
        after = self.take_step(batch, some_forced=some_forced, some_at_limit=some_at_limit)
        done_B1 = batch.sentences.done_B[:, None]
        old, new = list(batch.decoder.tensors.values()), list(after.decoder.tensors.values())
        # Positions of finished sentences stay, as they would run out of the memory.
        new = [
            two if two.is_floating_point() else torch.where(done_B1.view(-1, *[1] * (one.dim() - 1)), one, two)
            for one, two in zip(old, new, strict=True)
        ]
        for name, tensor in batch.decoder.by_step.items():
            old.append(tensor)
            new.append(after.decoder.by_step[name][:, :, : self.shape.target])
        old += [*batch.sentences, *batch.active, *batch.results]
        new += [*after.sentences, *after.active, *after.results]
        torch._foreach_copy_(old, new)


def allocated(example: ActiveBatch, shape: Shape) -> ActiveBatch:
    """Return a batch of zeros with the given shape, and with the data types and the other sizes of the example."""

    def zeros(tensor: Tensor, *axes: tuple[int, int]) -> Tensor:
        sizes = [shape.rows, *tensor.shape[1:]]
        for axis, size in axes:
            sizes[axis] = size
        return tensor.new_zeros(sizes)

    def if_any(tensor: Tensor, *axes: tuple[int, int]) -> Tensor:
        return zeros(tensor, *(axes if tensor.numel() else ()))

    def hypotheses(like: Hypotheses) -> Hypotheses:
        return Hypotheses(
            tokens_BKT=zeros(like.tokens_BKT, (2, shape.target)),
            length_BK=zeros(like.length_BK),
            log_prob_BK=zeros(like.log_prob_BK),
            score_BK=zeros(like.score_BK),
            coverage_BKS=if_any(like.coverage_BKS, (2, shape.source)),
            beam_index_BKT=if_any(like.beam_index_BKT, (2, shape.target)),
        )

    sentences = Sentences(*(zeros(tensor) for tensor in example.sentences))
    memory, decoder = example.memory, example.decoder
    return ActiveBatch(
        sentences=sentences._replace(prefix_BP=zeros(example.sentences.prefix_BP, (1, shape.prefix))),
        memory=Memory(
            zeros(memory.states_BSH, (1, shape.source)),
            zeros(memory.mask_BS, (1, shape.source)),
            {name: zeros(tensor, (1, shape.source)) for name, tensor in memory.extras.items()},
            {name: zeros(tensor) for name, tensor in memory.by_sentence.items()},
        ),
        decoder=DecoderState(
            {name: zeros(tensor) for name, tensor in decoder.tensors.items()},
            {name: zeros(tensor, (2, shape.target)) for name, tensor in decoder.by_step.items()},
        ),
        active=hypotheses(example.active),
        results=hypotheses(example.results),
        attention_BTKS=if_any(example.attention_BTKS, (1, shape.target), (3, shape.source)),
    )


def fitted(tensor: Tensor, memory: Tensor) -> Tensor:
    """Return the tensor with the type of `memory` and its sizes after the first axis: cut, or padded with zeros."""
    if tensor.shape[1:] != memory.shape[1:]:
        common = [slice(min(sizes)) for sizes in zip(tensor.shape[1:], memory.shape[1:], strict=True)]
        padded = memory.new_zeros(len(tensor), *memory.shape[1:])
        padded[(slice(None), *common)] = tensor[(slice(None), *common)]
        return padded
    return tensor.to(memory.dtype)


def rounded(needed: Shape, length_limit: LengthLimit) -> Shape:
    """Return the smallest shape of resident memory in which sentences fit.

    The number of rows is a power of two. Other sizes are 16, 24, 32, 48, 64, 96 and so on; that of the target follows
    from that of the source, unless a prefix needs a larger one.
    """
    source = rounded_size(needed.source)
    return Shape(
        rows=1 << (needed.rows - 1).bit_length(),
        source=source,
        target=rounded_size(max(needed.target, length_limit(source) + 1)),
        prefix=rounded_size(needed.prefix) if needed.prefix else 0,
    )


def rounded_size(size: int) -> int:
    """Return the smallest number that is at least `size` and a power of two from 16 up, or 1.5 times one."""
    power = 16
    while 3 * power // 2 < size:
        power *= 2
    return power if size <= power else 3 * power // 2


def host_copy(tensor: Tensor) -> Tensor:
    """Start to copy a tensor to the CPU. The copy is undefined before the `arrival`."""
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def arrival(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until the host copies that were started before are complete."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
