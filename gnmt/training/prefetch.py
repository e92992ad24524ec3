"""Batches made ahead of time, so that the device never waits for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

from gnmt.data.batching import BatchStream, Position, Share
from gnmt.types import Batch, Tokens


class Made(NamedTuple):
    """This process's share of a global batch, and what its stream said right after it."""

    share: Share
    position: Position
    epochs: float
    length: int


class Prefetcher:
    """Iterates over a stream as the stream itself does; a thread makes up to num_batches batches ahead.

    num_batches: 0 makes each batch when it is asked for. pin: whether tensors go to page-locked memory, from which
    CUDA copies while it computes. `position`, `epochs` and `len` are those of consumed batches, so a checkpoint never
    skips what was only made. The thread draws from no global random state, so training is the same with it and without.
    It begins with the first batch. An error in it is raised where the batch would have come.
    """

    def __init__(self, stream: BatchStream, num_batches: int, pin: bool) -> None:
        self.position = stream.position
        """Batches that were handed out; what a checkpoint saves."""
        self._stream = stream
        self._num_batches = num_batches
        self._pin = pin
        self.epochs = stream.epochs
        """The same in epochs."""
        self._length = len(stream)
        self._made: queue.SimpleQueue[Made | BaseException] = queue.SimpleQueue()
        self._free_places = threading.Semaphore(num_batches)
        self._stopped = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Number of global batches in the epoch at hand."""
        return self._length

    def __iter__(self) -> Iterator[Share]:
        return self

    def __next__(self) -> Share:
        made = self._take() if self._num_batches else self._make()
        self.position, self.epochs, self._length = made.position, made.epochs, made.length
        return made.share

    def largest_microbatch(self) -> Batch:
        """That of the stream; to be asked before the first batch."""
        return self._stream.largest_microbatch()

    def pairs_at(self, position: Position) -> list[tuple[int, str, str]]:
        """Number, source and target text of each pair of the global batch that begins at that position."""
        return self._stream.pairs_at(position)

    def close(self) -> None:
        """Ends the thread; batches that were made and not taken are lost, and nothing can be taken any more."""
        self._stopped = True
        self._free_places.release()
        if self._thread is not None:
            self._thread.join()

    def _take(self) -> Made:
        assert not self._stopped
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="batch maker", daemon=True)
            self._thread.start()
        made = self._made.get()
        if isinstance(made, BaseException):
            self._made.put(made)  # whoever asks again hears it again
            raise made
        self._free_places.release()
        return made

    def _work(self) -> None:
        try:
            while True:
                self._free_places.acquire()
                if self._stopped:
                    return
                self._made.put(self._make())
        except BaseException as error:
            self._made.put(error)

    def _make(self) -> Made:
        share = next(self._stream)
        if self._pin:
            share = share.mapped(pinned)
        return Made(share, self._stream.position, self._stream.epochs, len(self._stream))


def pinned(batch: Batch) -> Batch:
    """The same batch in page-locked memory."""
    source, target = (Tokens(side.ids_BT.pin_memory(), side.lengths_B.pin_memory()) for side in batch[:2])
    return batch._replace(source=source, target=target)
