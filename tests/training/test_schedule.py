"""Exact factors at chosen updates, counted from 0."""

from __future__ import annotations

import math

import pytest

from gnmt.training.schedule import Constant, Cosine, InverseSquareRoot, Plateau, WarmupStepDecay

STEP_DECAY = {"decay_start_step": 20, "decay_interval_steps": 10}
TABLE = [
    (Constant(), {0: 1, 7: 1}),
    (Constant(warmup_steps=4), {0: 0.25, 1: 0.5, 3: 1, 4: 1, 100: 1}),
    (Cosine(total_steps=100), {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0, 500: 0}),
    (
        Cosine(total_steps=110, warmup_steps=10, final_fraction=0.2),
        {0: 0.1, 9: 1, 10: 1, 60: 0.6, 110: 0.2, 111: 0.2},
    ),
    (Cosine(total_steps=10, warmup_steps=10), {0: 0.1, 9: 1, 10: 1, 11: 0}),
    (InverseSquareRoot(warmup_steps=4), {0: 0.25, 1: 0.5, 3: 1, 15: 0.5, 399: 0.1}),
    (WarmupStepDecay(**STEP_DECAY), {0: 1, 19: 1, 20: 0.5, 29: 0.5, 30: 0.25, 50: 0.0625, 60: 0.0625, 999: 0.0625}),
    (WarmupStepDecay(**STEP_DECAY, warmup_steps=10), {0: 0.01, 5: 0.1, 10: 1, 19: 1, 20: 0.5}),
    (WarmupStepDecay(**STEP_DECAY, decay_factor=0.8, num_decays=1), {19: 1, 20: 0.8, 40: 0.8}),
    (WarmupStepDecay(**STEP_DECAY, num_decays=0), {20: 1, 999: 1}),
    (Plateau(patience_evaluations=1, warmup_steps=4), {0: 0.25, 3: 1, 100: 1}),
    # The first decay is during the warm-up: both factors apply.
    (WarmupStepDecay(decay_start_step=5, decay_interval_steps=10, warmup_steps=10), {5: 0.05}),
]


@pytest.mark.parametrize(("schedule", "expected"), TABLE, ids=lambda value: repr(value)[:60])
def test_factors(schedule, expected):
    assert {step: schedule.factor(step) for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in TABLE], ids=repr)
def test_no_update_is_wasted_and_none_exceeds_the_learning_rate(schedule):
    factors = [schedule.factor(step) for step in range(100)]
    assert max(factors) <= 1
    assert factors[0] > 0


@pytest.mark.parametrize(
    ("bleus", "expected"),
    [
        ([], 1),
        ([3, 4, 5], 1),
        ([3, 2], 1),
        ([3, 2, 3], 0.5),  # equal is not better
        ([3, 2, 4, 1], 1),
        ([3, 2, 1, 2.5, 2.9], 0.25),  # counting begins again after a decay; the best is that of all evaluations
        ([3, 2, 1, 3.5, 2.9], 0.5),
        ([3, *[0] * 6], 0.125),
        ([3, *[0] * 60], 0.125),
    ],
)
def test_the_plateau_schedule_decays_when_bleu_stops_rising(bleus, expected):
    plateau = Plateau(patience_evaluations=2, num_decays=3)
    assert plateau.plateau_factor([(bleu, -1.0) for bleu in bleus]) == expected
    assert plateau.factor(7) == 1


def test_the_plateau_schedule_does_not_decay_while_the_dev_loss_falls_and_bleu_stays_0():
    plateau = Plateau(patience_evaluations=1)
    assert plateau.plateau_factor([(0.0, -9.0), (0.0, -8.0), (0.0, -7.5)]) == 1
    assert plateau.plateau_factor([(0.0, -9.0), (0.0, -8.0), (0.0, -8.5)]) == 0.5


def test_other_schedules_do_not_depend_on_dev_evaluations():
    assert Constant().plateau_factor([(3, -1), (2, -1), (1, -1), (0, -1)]) == 1
