"""Stand-ins for `DevEvaluator` with given scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gnmt.data.store import PreprocessedData
from gnmt.decoding.segments import Translation
from gnmt.evaluation.metrics import Scores
from gnmt.training.dev_evaluation import DevResult


def results(bleus: Iterable[float], preprocessed: PreprocessedData) -> Callable[..., DevResult]:
    """Return a function that gives dev results with these BLEU scores, one per call."""
    scores = iter(bleus)

    def evaluate(*_) -> DevResult:
        score = Scores(next(scores), chrf=0.0, ter=None, signatures={}, num_sentences=1)
        return DevResult(1.0, score, ["a"], ["b"], [Translation("c", 0.0, (4,))], preprocessed.tokenizers)

    return evaluate
