"""Gradient norms of layers: names of layers, records in the file, and records of a resumed run."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from run_outcome import scalars

from gnmt.config.build import build
from gnmt.config.cli import CONFIG_FOLDER
from gnmt.reporting.tensorboard import Reporter
from gnmt.training.train_metrics import (
    GRADIENT_NORM_TAG,
    GRADIENT_NORMS_FILE,
    GradientNorms,
    TrainMetrics,
    parameters_by_layer,
    read_gradient_norms,
)
from gnmt.training.trainer import Trainer

EVERY = "trainer.gradient_norms_every_steps"
TWO = ["encoder.1", "encoder.2"]
LAYERS = {
    "gnmt_tiny": ["embeddings", *TWO, "attention", "decoder.1", "decoder.2", "output"],
    "gnmt": [
        *("embeddings", *TWO, "encoder.3", "encoder.4", "attention"),
        *("decoder.1", "decoder.2", "decoder.3", "decoder.4", "output"),
    ],
    "rnmt_plus_small": [
        *("embeddings", *TWO, "encoder.other", "attention", "decoder.1", "decoder.2", "decoder.3", "output"),
    ],
    "seq2seq": ["embeddings", *TWO, "decoder.1", "decoder.2", "output"],
    "attention": ["embeddings", "encoder.1", "attention", "decoder.1", "decoder.other", "output"],
    "transformer_tiny": [
        *("embeddings", *TWO, "encoder.3", "encoder.4", "encoder.other"),
        *("decoder.1", "decoder.2", "decoder.3", "decoder.4", "decoder.other", "output"),
    ],
    "convolutional_small": [
        *("embeddings", *TWO, "encoder.3", "encoder.4", "encoder.other"),
        *("decoder.1", "decoder.2", "decoder.3", "decoder.other", "output"),
    ],
    "hybrid": [
        *("embeddings", *TWO, "encoder.3", "encoder.4", "encoder.5", "encoder.6", "encoder.other", "attention"),
        *("decoder.1", "decoder.2", "decoder.3", "decoder.4", "output"),
    ],
}


def model_of(name, *overrides):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", [f"model={name}", *overrides])
    with torch.device("meta"):
        return build(cfg.model, source_vocabulary_size=20, target_vocabulary_size=20)


def records(folder: Path) -> list[dict]:
    problems: list[str] = []
    found = read_gradient_norms(folder, problems)
    assert not problems
    return [{"update": update, "norms": norms} for update, norms in found]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_every_architecture_are_in_the_order_of_the_data(name):
    model = model_of(name)
    layers = parameters_by_layer(model)
    assert list(layers) == LAYERS[name]
    assert sorted(id(weight) for weights in layers.values() for weight in weights) == sorted(
        map(id, model.parameters())
    ), "each parameter once"


def test_layer_10_comes_after_layer_9():
    model = model_of("gnmt_8", "model.encoder.num_layers=11")
    assert [name for name in parameters_by_layer(model) if name.startswith("decoder")] == [
        f"decoder.{n}" for n in range(1, 12)
    ]


def test_a_layer_includes_both_directions_and_its_attention():
    layers = {
        name: {id(weight) for weight in weights} for name, weights in parameters_by_layer(model_of("gnmt_tiny")).items()
    }
    assert len(layers["encoder.1"]) == 2 * len(layers["encoder.2"]) == 8
    model = model_of("convolutional_small")
    second = {id(weight) for weight in model.decoder.attentions[1].parameters()}
    assert second <= {id(weight) for weight in parameters_by_layer(model)["decoder.2"]}


@pytest.mark.parametrize("microbatch_tokens", ["null", "60"])
def test_norms_are_measured_before_clipping_and_sum_to_the_global_norm(make_trainer, tmp_path, microbatch_tokens):
    trainer = make_trainer(f"{EVERY}=1", "trainer.clip_norm=0.001", f"trainer.microbatch_tokens={microbatch_tokens}")
    metrics = TrainMetrics.begin(trainer.device)
    trainer.update(next(trainer.stream), metrics)
    assert not (tmp_path / GRADIENT_NORMS_FILE).exists(), "nothing is written before the log is"
    trainer.gradient_norms.write()
    [record] = records(tmp_path)
    assert record["update"] == 1
    assert list(record["norms"]) == LAYERS["gnmt_tiny"]
    assert math.hypot(*record["norms"].values()) == pytest.approx(metrics.sums().gradient_norm, rel=1e-5)
    assert min(record["norms"].values()) > 0


def test_norms_do_not_include_the_loss_scale_of_fp16(make_trainer, tmp_path):
    norms = []
    for scale in (1.0, 1024.0):
        trainer = make_trainer(f"{EVERY}=1")
        trainer.staged_optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
        trainer.gradient_norms.write()
        norms.append(records(tmp_path)[-1]["norms"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_norm_that_is_not_finite_is_null_in_the_file(make_trainer, tmp_path):
    trainer = make_trainer(f"{EVERY}=1")
    trainer.objective.model.output_layer.bias.register_hook(lambda gradient: gradient * torch.inf)
    trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
    trainer.gradient_norms.write()
    [record] = records(tmp_path)
    assert record["norms"]["output"] is None
    assert record["norms"]["encoder.1"] > 0


def test_recording_does_not_change_training_and_costs_nothing_when_off(make_trainer, tmp_path, monkeypatch):
    weights = []
    for every in ("null", "1"):
        trainer = make_trainer(f"{EVERY}={every}", "trainer.clip_norm=0.5")
        for _ in range(3):
            trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
        weights.append([weight.detach().clone() for weight in trainer.objective.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    off = make_trainer("trainer.log_every_steps=10")
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", None)  # a call would fail
    off.update(next(off.stream), TrainMetrics.begin(off.device))
    assert not off.gradient_norms._pending


@pytest.mark.parametrize(("killed_after", "written"), [(3, [1, 2, 3]), (5, [1, 2, 3, 4])])
def test_a_resumed_run_has_each_record_once(run, tmp_path, monkeypatch, killed_after, written):
    """With log lines at 2 and 4 and checkpoints at 3 and 6, no record between them is lost or duplicated."""
    command = (f"{EVERY}=1", "trainer.log_every_steps=2", "trainer.save_every_steps=3", "trainer.max_steps=7")
    run(tmp_path / "uninterrupted", *command)
    update = Trainer.update

    def crash_in_the_next(trainer, *arguments):
        if trainer.state.step == killed_after:
            raise RuntimeError("power failure")
        update(trainer, *arguments)

    monkeypatch.setattr(Trainer, "update", crash_in_the_next)
    with pytest.raises(RuntimeError, match="power failure"):
        run(tmp_path / "split", *command)
    assert [record["update"] for record in records(tmp_path / "split")] == written
    monkeypatch.undo()
    run(tmp_path / "split", *command)
    assert records(tmp_path / "split") == records(tmp_path / "uninterrupted")
    assert [record["update"] for record in records(tmp_path / "uninterrupted")] == list(range(1, 8))
    curves = scalars(tmp_path / "split")
    assert [step for step, _ in curves[f"{GRADIENT_NORM_TAG}/decoder.2"]] == list(range(1, 8))
    assert curves == scalars(tmp_path / "uninterrupted")


def test_the_interval_of_records_may_change_when_a_run_is_resumed(run, tmp_path):
    run(tmp_path, f"{EVERY}=3", "trainer.max_steps=7")
    run(tmp_path, f"{EVERY}=null", "trainer.max_steps=9")
    run(tmp_path, f"{EVERY}=2", "trainer.max_steps=12")
    assert [record["update"] for record in records(tmp_path)] == [3, 6, 10, 12]


def test_a_record_that_a_kill_has_cut_off_is_deleted(tmp_path):
    lines = [json.dumps({"update": update, "norms": {"output": 1.0}}) + "\n" for update in (1, 2, 3)]
    (tmp_path / GRADIENT_NORMS_FILE).write_text("".join(lines)[:-5], encoding="utf-8")
    with Reporter(tmp_path) as reporter:
        GradientNorms(torch.nn.Linear(1, 1), 1, tmp_path, reporter).start_after(5)
        assert [record["update"] for record in records(tmp_path)] == [1, 2]
        GradientNorms(torch.nn.Linear(1, 1), None, tmp_path, reporter).start_after(1)
    assert [record["update"] for record in records(tmp_path)] == [1]


def test_a_full_disk_ends_the_records_and_not_the_run(make_trainer, tmp_path, caplog):
    trainer = make_trainer(f"{EVERY}=1")
    trainer.gradient_norms.path = tmp_path / "gone" / GRADIENT_NORMS_FILE
    for _ in range(2):
        trainer.update(next(trainer.stream), TrainMetrics.begin(trainer.device))
        trainer.gradient_norms.write()
    assert caplog.text.count("no more gradient norms are recorded") == 1


def test_resuming_with_a_full_disk_ends_the_records_and_not_the_run(tmp_path, monkeypatch, caplog):
    """Once, the run ended with a traceback when it had to delete the records after its checkpoint."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gnmt.training.train_metrics.write_atomically", full)
    line = json.dumps({"update": 5, "norms": {"output": 1.0}}) + "\n"
    (tmp_path / GRADIENT_NORMS_FILE).write_text(line, encoding="utf-8")
    with Reporter(tmp_path) as reporter:
        norms = GradientNorms(torch.nn.Linear(1, 1), 1, tmp_path, reporter)
        norms.start_after(2)
        norms.record()
        norms.write()
    assert caplog.text.count("No space left on device): no more gradient norms are recorded") == 1
    assert (tmp_path / GRADIENT_NORMS_FILE).read_text(encoding="utf-8") == line
