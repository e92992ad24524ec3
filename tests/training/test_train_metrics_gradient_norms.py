"""The gradient's norm in each layer: which layers there are, what is recorded of them, and what a stop leaves."""

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
    IntervalMetrics,
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
def test_the_layers_of_every_kind_of_model_in_the_order_of_the_data(name):
    model = model_of(name)
    layers = parameters_by_layer(model)
    assert list(layers) == LAYERS[name]
    assert sorted(id(weight) for weights in layers.values() for weight in weights) == sorted(
        map(id, model.parameters())
    ), "each parameter once"


def test_ten_layers_are_counted_as_numbers():
    model = model_of("gnmt_8", "model.encoder.num_layers=11")
    assert [name for name in parameters_by_layer(model) if name.startswith("decoder")] == [
        f"decoder.{n}" for n in range(1, 12)
    ]


def test_a_layer_has_both_its_directions_and_all_its_attention():
    layers = {
        name: {id(weight) for weight in weights} for name, weights in parameters_by_layer(model_of("gnmt_tiny")).items()
    }
    assert len(layers["encoder.1"]) == 2 * len(layers["encoder.2"]) == 8
    model = model_of("convolutional_small")
    second = {id(weight) for weight in model.decoder.attentions[1].parameters()}
    assert second <= {id(weight) for weight in parameters_by_layer(model)["decoder.2"]}


@pytest.mark.parametrize("microbatch_tokens", ["null", "60"])
def test_the_norms_are_those_before_clipping_and_together_the_whole(make_trainer, tmp_path, microbatch_tokens):
    trainer = make_trainer(f"{EVERY}=1", "trainer.clip_norm=0.001", f"trainer.microbatch_tokens={microbatch_tokens}")
    metrics = IntervalMetrics.begin(trainer.device)
    trainer.update(next(trainer.stream), metrics)
    assert not (tmp_path / GRADIENT_NORMS_FILE).exists(), "nothing is written before the log is"
    trainer.gradient_norms.write()
    [record] = records(tmp_path)
    assert record["update"] == 1
    assert list(record["norms"]) == LAYERS["gnmt_tiny"]
    assert math.hypot(*record["norms"].values()) == pytest.approx(metrics.sums().gradient_norm, rel=1e-5)
    assert min(record["norms"].values()) > 0


def test_the_scale_of_fp16_is_taken_out_first(make_trainer, tmp_path):
    norms = []
    for scale in (1.0, 1024.0):
        trainer = make_trainer(f"{EVERY}=1")
        trainer.staged_optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.update(next(trainer.stream), IntervalMetrics.begin(trainer.device))
        trainer.gradient_norms.write()
        norms.append(records(tmp_path)[-1]["norms"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_gradient_that_is_not_finite_is_null_in_the_file(make_trainer, tmp_path):
    trainer = make_trainer(f"{EVERY}=1")
    trainer.objective.model.output_layer.bias.register_hook(lambda gradient: gradient * torch.inf)
    trainer.update(next(trainer.stream), IntervalMetrics.begin(trainer.device))
    trainer.gradient_norms.write()
    [record] = records(tmp_path)
    assert record["norms"]["output"] is None
    assert record["norms"]["encoder.1"] > 0


def test_recording_changes_nothing_of_training_and_costs_nothing_when_off(make_trainer, tmp_path, monkeypatch):
    weights = []
    for every in ("null", "1"):
        trainer = make_trainer(f"{EVERY}={every}", "trainer.clip_norm=0.5")
        for _ in range(3):
            trainer.update(next(trainer.stream), IntervalMetrics.begin(trainer.device))
        weights.append([weight.detach().clone() for weight in trainer.objective.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    off = make_trainer()
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", None)  # nothing may ask for it
    off.update(next(off.stream), IntervalMetrics.begin(off.device))
    assert not off.gradient_norms._pending


@pytest.mark.parametrize(("killed_after", "written"), [(3, [1, 2, 3]), (5, [1, 2, 3, 4])])
def test_a_run_that_goes_on_has_each_record_once(run, tmp_path, monkeypatch, killed_after, written):
    """The log is written at 2 and 4, checkpoints at 3 and 6: what lies between is neither lost nor doubled."""
    command = (f"{EVERY}=1", "trainer.log_every_steps=2", "trainer.save_every_steps=3", "trainer.max_steps=7")
    run(tmp_path / "whole", *command)
    update = Trainer.update

    def crash_in_the_next(trainer, *arguments):
        if trainer.state.step == killed_after:
            raise RuntimeError("the power went")
        update(trainer, *arguments)

    monkeypatch.setattr(Trainer, "update", crash_in_the_next)
    with pytest.raises(RuntimeError, match="the power went"):
        run(tmp_path / "split", *command)
    assert [record["update"] for record in records(tmp_path / "split")] == written
    monkeypatch.undo()
    run(tmp_path / "split", *command)
    assert records(tmp_path / "split") == records(tmp_path / "whole")
    assert [record["update"] for record in records(tmp_path / "whole")] == list(range(1, 8))
    curves = scalars(tmp_path / "split")
    assert [step for step, _ in curves[f"{GRADIENT_NORM_TAG}/decoder.2"]] == list(range(1, 8))
    assert curves == scalars(tmp_path / "whole")


def test_every_third_update_and_the_interval_may_change_on_the_way(run, tmp_path):
    run(tmp_path, f"{EVERY}=3", "trainer.max_steps=7")
    run(tmp_path, f"{EVERY}=null", "trainer.max_steps=9")
    run(tmp_path, f"{EVERY}=2", "trainer.max_steps=12")
    assert [record["update"] for record in records(tmp_path)] == [3, 6, 10, 12]


def test_what_a_kill_cut_off_is_dropped(tmp_path):
    lines = [json.dumps({"update": update, "norms": {"output": 1.0}}) + "\n" for update in (1, 2, 3)]
    (tmp_path / GRADIENT_NORMS_FILE).write_text("".join(lines)[:-5], encoding="utf-8")
    with Reporter(tmp_path) as reporter:
        GradientNorms(torch.nn.Linear(1, 1), 1, tmp_path, reporter).start_after(5)
        assert [record["update"] for record in records(tmp_path)] == [1, 2]
        GradientNorms(torch.nn.Linear(1, 1), None, tmp_path, reporter).start_after(1)
    assert [record["update"] for record in records(tmp_path)] == [1]


def test_a_full_disk_costs_the_record_and_not_the_run(make_trainer, tmp_path, caplog):
    trainer = make_trainer(f"{EVERY}=1")
    trainer.gradient_norms.path = tmp_path / "gone" / GRADIENT_NORMS_FILE
    for _ in range(2):
        trainer.update(next(trainer.stream), IntervalMetrics.begin(trainer.device))
        trainer.gradient_norms.write()
    assert caplog.text.count("no more gradient norms are recorded") == 1


def test_going_on_with_a_full_disk_costs_the_record_and_not_the_run(tmp_path, monkeypatch, caplog):
    """The run ended with a traceback where the records after its checkpoint had to be taken out."""

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
