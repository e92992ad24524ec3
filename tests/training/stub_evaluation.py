"""Stand-ins for `DevEvaluator` with given scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat

from gnmt.data.store import PreprocessedData
from gnmt.decoding.segments import Translation
from gnmt.evaluation.metrics import Scores
from gnmt.training.dev_evaluation import DevResult


def results(
    bleus: Iterable[float], preprocessed: PreprocessedData, losses: Iterable[float] = repeat(1.0)
) -> Callable[..., DevResult]:
    """Return a function that gives dev results with these BLEU scores and losses, one per call."""
    scores = zip(bleus, losses, strict=False)

    def evaluate(*_) -> DevResult:
        bleu, loss = next(scores)
        score = Scores(bleu, chrf=0.0, chrfpp=0.0, ter=None, gleu=0.0, signatures={}, num_sentences=1)
        return DevResult(loss, score, ["a"], ["b"], [Translation("c", 0.0, (4,))], preprocessed.tokenizers)

    return evaluate
