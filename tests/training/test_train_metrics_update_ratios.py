"""Ratios of update and weights: their values, the updates in which they are measured, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from run_outcome import scalars

from gnmt.training.train_metrics import UPDATE_RATIO_TAG, TrainMetrics, parameters_by_layer


def weights_of(trainer) -> dict[str, torch.Tensor]:
    """Return all weights of each layer in one vector."""
    layers = parameters_by_layer(trainer.objective.model)
    return {name: torch.cat([one.detach().flatten() for one in weights]) for name, weights in layers.items()}


def update(trainer) -> None:
    trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_ratio_is_the_norm_of_the_change_over_the_norm_of_the_weights(make_trainer, optimizer):
    trainer = make_trainer(f"optimizer={optimizer}", "optimizer.lr=0.01", "trainer.clip_norm=0.5")
    before = weights_of(trainer)
    update(trainer)
    after, found = weights_of(trainer), trainer.update_ratios.scalars()
    expected = {name: ((after[name] - before[name]).norm() / before[name].norm()).item() for name in before}
    assert found == pytest.approx({f"{UPDATE_RATIO_TAG}/{name}": ratio for name, ratio in expected.items()}, rel=1e-4)
    assert all(ratio > 0 for ratio in found.values())
    assert trainer.update_ratios.scalars() == {}, "each measurement is reported once"


def test_only_updates_before_a_log_line_are_measured(make_trainer, monkeypatch):
    trainer = make_trainer("trainer.log_every_steps=3")
    measured = []
    original = trainer.update_ratios.measured
    monkeypatch.setattr(
        trainer.update_ratios, "measured", lambda: measured.append(trainer.state.step + 1) or original()
    )
    for _ in range(7):
        update(trainer)
    assert measured == [3, 6]


def test_a_skipped_update_has_the_ratio_0_and_zero_weights_have_none(make_trainer):
    trainer = make_trainer()
    trainer.objective.model.output_layer.bias.register_hook(lambda gradient: gradient * torch.inf)
    with torch.no_grad():
        for weight in trainer.update_ratios.layers["attention"]:
            weight.zero_()
    update(trainer)
    found = trainer.update_ratios.scalars()
    assert set(found.values()) == {0.0}
    assert f"{UPDATE_RATIO_TAG}/attention" not in found


def test_measuring_does_not_change_training(make_trainer):
    weights = []
    for every in (1, 100):
        trainer = make_trainer(f"trainer.log_every_steps={every}")
        for _ in range(3):
            update(trainer)
        weights.append(weights_of(trainer))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_ratios_are_logged_at_the_logging_interval(run, tmp_path):
    run(tmp_path, "trainer.log_every_steps=2", "trainer.max_steps=5")
    curve = scalars(tmp_path)[f"{UPDATE_RATIO_TAG}/decoder.1"]
    assert [step for step, _ in curve] == [2, 4]
