"""How far a translation is: a bar at a terminal, else a log line now and then."""

from __future__ import annotations

import logging
import time

from tqdm import tqdm

from gnmt.types import counted

log = logging.getLogger(__name__)

_LOG_SECONDS = 60.0


class Progress:
    """Counts the lines of one input.

    total: lines in all, None where that cannot be known. done: lines that an earlier command did. shown: False leaves
    bar and log lines out.
    """

    def __init__(self, total: int | None, done: int, shown: bool) -> None:
        self._total = total
        self._at_start = self._done = done
        self._started = self._logged = time.monotonic()
        self._shown = shown
        disable = None if shown else True  # None: where stderr is no terminal
        self._bar = tqdm(total=total, initial=done, desc="translating", unit="line", disable=disable)

    def reach(self, done: int) -> None:
        """`done` lines are done in all."""
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._shown and self._bar.disable and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            log.info("%s", self.line())

    def advance(self, num_lines: int) -> None:
        self.reach(self._done + num_lines)

    def line(self) -> str:
        """Where it stands, how fast it goes and when it will end."""
        rate = self._rate()
        if self._total is None or rate == 0:
            return f"{counted(self._done, 'line', comma=True)} translated, {rate:.1f} lines/s"
        left = tqdm.format_interval((self._total - self._done) / rate)
        return f"{self._done:,} of {self._total:,} lines translated, {rate:.1f} lines/s, {left} left"

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    def summarise(self, output: str, num_unfinished: int) -> None:
        """One line of what was done, and a warning where translations were cut off."""
        if not self._shown:
            return
        earlier = f", after {self._at_start:,} that were done" if self._at_start else ""
        num_lines = self._done - self._at_start
        log.info(
            "%s: %s in %.1f s, %.1f lines per second%s",
            *(output, counted(num_lines, "line", comma=True), self._seconds(), self._rate(), earlier),
        )
        if num_unfinished:
            log.warning("%d of %d translations were cut off by the length limit", num_unfinished, self._done)

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-3)

    def _rate(self) -> float:
        return (self._done - self._at_start) / self._seconds()
