"""A stub of Translator that reverses lines and can fail at a given line, and helpers of these tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gnmt.decoding.options import SearchOptions
from gnmt.decoding.segments import Translation
from gnmt.device import Precision
from gnmt.distributed import Ranks
from gnmt.translation.formats import OutputFormat
from gnmt.translation.jobs import Job
from gnmt.translation.translate_files import MadeFrom, translate_files


class StubTranslator:
    """The part of Translator's interface that translate_files uses. A translation holds the line's number and prefix.

    Args:
        chunk_lines: Largest number of lines of a chunk.
        chunk_characters: Length of the text at which a chunk ends.
        before: Called with each line's number before the line is translated.

    Attributes:
        calls: (first line, number of lines) of each call of `translate`.
        paths: The paths that `translate` was given.
    """

    tokenizers = None
    batch_size = 2
    max_source_tokens = 250

    def __init__(
        self,
        chunk_lines: int = 4,
        before: Callable[[int], None] = lambda line: None,
        chunk_characters: int = 10_000,
        **options: int,
    ) -> None:
        self.chunk_lines = chunk_lines
        self.chunk_characters = chunk_characters
        self.before = before
        self.options = SearchOptions(**options)
        self.precision = Precision("fp32", torch.device("cpu"))
        self.calls: list[tuple[int, int]] = []
        self.paths: set[str | None] = set()

    def translate(
        self,
        lines: Sequence[str],
        *,
        first_line: int = 1,
        path: str | None = None,
        prefixes: Sequence[str] | None = None,
        attention: bool = False,
        progress: Callable[[int], None],
    ) -> list[Translation]:
        assert len(lines) <= self.chunk_lines
        self.calls.append((first_line, len(lines)))
        self.paths.add(path)
        translations = []
        for index, line in enumerate(lines):
            number = first_line + index
            self.before(number)
            prefix = prefixes[index] if prefixes is not None else ""
            progress(1)
            translations.append(self.translation(f"{prefix}{number}:{line[::-1]}", number))
        return translations

    def translation(self, text: str, number: int) -> Translation:
        others = tuple(
            Translation(f"{text} {rank}", -rank - 0.5, (7, rank, 3), log_prob=-2.0 * rank, finished=True)
            for rank in range(1, self.options.n_best)
        )
        finished = number % 5 != 0
        return Translation(text, -0.25, (7, 3), log_prob=-1.0, finished=finished, alternatives=others)


NUM_LINES = 18  # five chunks of the stub's four lines, the last one of two


class Killed(BaseException):
    """Stands for SIGKILL in tests that run in one process."""


def translate(translator, *jobs, kind="text", ranks=None, **options):
    """Translate a.en to a.de, unless other jobs are given."""
    made_from = MadeFrom(["best.pt"], {"ensemble": "log_probs"})
    jobs, ranks = jobs or [Job("a.en", "a.de")], ranks or Ranks()
    translate_files(translator, jobs, OutputFormat(kind), made_from=made_from, ranks=ranks, **options)


def expected(num_lines=NUM_LINES):
    """Return the stub's translation of the lines in `home`."""
    return "".join(f"{n}:{f'line {n}'[::-1]}\n" for n in range(1, num_lines + 1))


def kill_at(line, error=Killed, **settings):
    """Return a translator that raises the error at that line."""

    def before(number):
        if number == line:
            raise error

    return StubTranslator(before=before, **settings)


def names(folder):
    return sorted(path.name for path in folder.iterdir())
