"""What a run tells of its gradients and of spikes in its loss."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gnmt.reporting.gradient_norms import GradientRecord


def mean_by_layer(records: Sequence[GradientRecord], num_updates: int) -> dict[str, float]:
    """The mean over the records of the first num_updates updates, by layer; what was not finite is left out."""
    norms: dict[str, list[float]] = {}
    for _, by_layer in (record for record in records if record[0] <= num_updates):
        for layer, norm in by_layer.items():
            if norm is not None:
                norms.setdefault(layer, []).append(norm)
    return {layer: statistics.fmean(values) for layer, values in norms.items()}


def largest_loss_rise(means: Sequence[tuple[int, float]], largest: Sequence[tuple[int, float]]) -> float | None:
    """By how much an update's loss lay at most above the lowest mean that the run had reached before, nats per token.

    means, largest: of each logging interval the mean loss and that of the worst update, by the interval's last step.
    Batches differ, so it is above 0 in calm training too. None before the second interval, and at least 0.
    """
    worst_at = dict(largest)
    lowest, rise = None, None
    for step, mean in means:
        if lowest is not None and step in worst_at:
            rise = max(0.0 if rise is None else rise, worst_at[step] - lowest)
        lowest = mean if lowest is None else min(lowest, mean)
    return rise
