"""Ctrl-C without loss."""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType
from typing import Self

log = logging.getLogger(__name__)


class Interruption:
    """Inside it, the first Ctrl-C only sets `requested`; the second one interrupts at once.

    The training loop looks at `requested` after every update, saves and raises KeyboardInterrupt itself.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _request(self, signal_number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("stopping: the state is saved after this update (Ctrl-C again stops at once, unsaved)")
