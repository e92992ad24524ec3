"""Training stages: one optimizer and schedule after another, such as Adam and then SGD in Wu et al. 2016."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir

from gnmt.checkpoint.file import read_checkpoint
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.config.validate import check_config
from gnmt.errors import InputError
from gnmt.training.optimizer import StageOptions, build_stages, check_stages
from gnmt.training.schedule import Constant, WarmupStepDecay
from gnmt.training.train_metrics import TrainMetrics

SGD = "{_target_: torch.optim.SGD, lr: 0.5, momentum: 0.9, fused: true}"
HALVING = (
    "{_target_: gnmt.training.schedule.WarmupStepDecay, decay_start_step: 2, decay_interval_steps: 1, warmup_steps: 0, "
    "decay_factor: 0.5, num_decays: 2}"
)
STAGE = "_target_: gnmt.training.optimizer.StageOptions"
ADAM_THEN_SGD = (
    f"trainer.stages=[{{{STAGE}, until_step: 3, optimizer: null, schedule: null}},"
    f"{{{STAGE}, until_step: null, optimizer: {SGD}, schedule: {HALVING}}}]"
)
RECIPE = (ADAM_THEN_SGD, "optimizer.lr=0.01", "schedule.warmup_steps=2")


def rates_and_optimizers(trainer, updates):
    rows = []
    for _ in range(updates):
        trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
        optimizer = trainer.staged_optimizer.optimizer
        rows.append((type(optimizer).__name__, optimizer.param_groups[0]["lr"]))
    return rows


def test_each_stage_has_its_optimizer_and_its_schedule_counts_from_its_start(make_trainer):
    assert rates_and_optimizers(make_trainer(*RECIPE), 8) == [
        ("Adam", 0.005), ("Adam", 0.01), ("Adam", 0.01),
        ("SGD", 0.5), ("SGD", 0.5), ("SGD", 0.25), ("SGD", 0.125), ("SGD", 0.125),
    ]  # fmt: skip


@pytest.mark.parametrize("stop", [2, 3, 4, 6], ids=lambda step: f"after {step}")
def test_a_run_stopped_in_a_stage_or_between_two_resumes_bitwise(run, tmp_path, stop, tmp_path_factory):
    command = (*RECIPE, "trainer.save_every_steps=1", "trainer.keep_checkpoints=9", "trainer.ema_decay=0.9")
    run(tmp_path, *command, f"trainer.max_steps={stop}")
    run(tmp_path, *command, "trainer.max_steps=7")
    uninterrupted = tmp_path_factory.getbasetemp() / "stages"
    if not uninterrupted.exists():
        run(uninterrupted, *command, "trainer.max_steps=7")
    for step in range(stop + 1, 8):
        one, other = (
            read_checkpoint(folder / "checkpoints" / f"step_{step:08d}.pt") for folder in (tmp_path, uninterrupted)
        )
        for part in ("model", "average"):
            assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items()), step
        assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
        states = [contents["optimizer"]["state"] for contents in (one, other)]
        assert states[0].keys() == states[1].keys()
        for name in states[0]:
            assert all(torch.equal(states[0][name][key], states[1][name][key]) for key in states[0][name])
        assert ("momentum_buffer" in one["optimizer"]["state"][0]) is (step > 3)


def test_without_stages_the_root_keys_apply():
    made = object()
    [stage] = build_stages(None, lambda **_: made, Constant())
    assert (stage.start, stage.make_optimizer(params=[]), stage.schedule) == (0, made, Constant())
    first, second = build_stages(
        [StageOptions(5), StageOptions(None, schedule=Constant(3))], lambda **_: made, Constant()
    )
    assert (first.start, first.schedule, second.start, second.schedule) == (0, Constant(), 5, Constant(3))
    assert second.make_optimizer(params=[]) is made


@pytest.mark.parametrize("ends", [[], [5], [None, None], [5, 5, None], [7, 3, None], [None, 5]])
def test_stages_out_of_order_are_refused(ends):
    with pytest.raises(InputError, match=r"^trainer\.stages: found until_step \[.*\], allowed are rising"):
        check_stages([StageOptions(end) for end in ends])


def check_message(*overrides: str) -> str:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"), pytest.raises(InputError) as caught:
        check_config(compose("train", list(overrides)))
    return str(caught.value)


def test_a_root_key_without_effect_is_refused():
    """Otherwise optimizer.lr=... on the command line would be accepted and ignored."""
    stages = ADAM_THEN_SGD.replace("optimizer: null", f"optimizer: {SGD}")
    assert "every stage has its own optimizer, so the root key optimizer would have no effect" in check_message(stages)
    stages = ADAM_THEN_SGD.replace("schedule: null", f"schedule: {HALVING}")
    assert "every stage has its own schedule, so the root key schedule" in check_message(stages)


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("momentum: 0.9", "momentun: 0.9", "trainer.stages.1.optimizer.momentun: SGD takes no such key; did you mean"),
        ("lr: 0.5", "lr: fast", 'trainer.stages.1.optimizer.lr: found "fast", allowed is a number'),
        ("torch.optim.SGD", "os.system", "trainer.stages.1.optimizer._target_: found os.system, which lies outside"),
        ("torch.optim.SGD", "gnmt.batch.Batch", "trainer.stages.1.optimizer._target_: found gnmt.batch.Batch, allowed"),
        ("fused: true", "params: []", "trainer.stages.1.optimizer.params: is given by the program itself"),
        ("decay_factor: 0.5", "decay_factor: 2", "trainer.stages.1.schedule.decay_factor: found 2, allowed"),
        ("until_step: 3", "until_step: 0", "trainer.stages.0.until_step: found 0, allowed"),
        ("until_step: 3, ", "", "trainer.stages.0.until_step: is missing"),
        (f"optimizer: {SGD}", "optimizer: sgd", "trainer.stages.1.optimizer: found \"sgd\", allowed is a component"),
        (f"schedule: {HALVING}", f"schedule: {SGD}", "trainer.stages.1.schedule._target_: found torch.optim.SGD"),
    ],
)  # fmt: skip
def test_the_config_check_covers_stages(was, becomes, message):
    assert message in check_message(ADAM_THEN_SGD.replace(was, becomes))


def test_a_value_that_only_the_optimizer_refuses_is_named_with_its_stage(run, tmp_path):
    with pytest.raises(InputError, match=r"trainer\.stages\.1\.optimizer: Invalid momentum value: -0\.9"):
        run(tmp_path / "new", ADAM_THEN_SGD.replace("momentum: 0.9", "momentum: -0.9"), "trainer.max_steps=1")
    assert not (tmp_path / "new").exists()


def test_the_recipe_of_the_paper_composes_and_can_be_overridden():
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        overrides = ["optimizer.lr=0.0002", "schedule=constant", "trainer.stages.1.optimizer.lr=0.4"]
        cfg = compose("train", ["trainer=adam_then_sgd", *overrides])
    check_config(cfg)
    first, second = cfg.trainer.stages
    assert (first.until_step, first.optimizer, second.optimizer.lr) == (60_000, None, 0.4)
    halving = WarmupStepDecay(**{key: value for key, value in second.schedule.items() if key != "_target_"})
    absolute = {step: halving.factor(step - first.until_step) for step in (60_000, 1_199_999, 1_200_000, 1_400_000)}
    assert list(absolute.values()) == [1, 1, 0.5, 0.25], "Wu et al. 2016: halved every 200k steps from 1.2M"
