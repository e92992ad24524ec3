"""The start of a run: from its own checkpoint or from scratch; and refusals."""

from __future__ import annotations

import json
import logging
import math
import re

import pytest
from run_outcome import scalars

from gnmt.checkpoint.file import read_checkpoint
from gnmt.errors import InputError

ONE_STEP = ("trainer.max_steps=1",)


def test_a_run_folder_holds_config_log_curves_and_checkpoints(run, tmp_path):
    result = run(tmp_path / "new", *ONE_STEP)
    names = {path.name for path in (tmp_path / "new").iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert names - events == {"config.json", "train.log", "checkpoints", "last.pt", "best.pt"}
    assert events
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == json.loads(
        read_checkpoint(tmp_path / "new" / "best.pt")["config"]
    )
    log = (tmp_path / "new" / "train.log").read_text()
    assert re.search(r"model: [\d,]+ parameters; memory: [\d,]+ MB for weights", log)
    assert "training: 1 update (" in log
    assert "on cpu in fp32" in log
    assert (result.steps, result.best_step) == (1, 1)
    metrics = ("loss", "perplexity", "bleu", "chrf", "chrfpp", "gleu", "attention_entropy")
    assert set(result.best) == {f"dev/{metric}" for metric in metrics}


def test_changed_settings_are_refused_with_a_diff(run, tmp_path):
    run(tmp_path, *ONE_STEP)
    before = read_checkpoint(tmp_path / "last.pt")
    with pytest.raises(InputError) as caught:
        run(tmp_path, *ONE_STEP, "optimizer.lr=0.02", "model.decoder.query=previous", "trainer.log_every_steps=7")
    assert str(caught.value).splitlines() == [
        f"{tmp_path} holds a run with other settings:",
        '  model.decoder.query: "current" → "previous"',
        "  optimizer.lr: 0.01 → 0.02",
        "Restore these settings to resume it, or start a new run under another name: name=...",
    ]
    assert read_checkpoint(tmp_path / "last.pt")["checksum"] == before["checksum"]


def test_changed_data_is_refused(run, tmp_path, corpus, other_corpus):
    """Other text with the same settings is refused. `data.preprocessed` may change, since folders can be moved."""
    run(tmp_path / "run", *ONE_STEP)
    with pytest.raises(
        InputError, match=r"was trained on other text and tokenizers than .* holds: set data.preprocessed=FOLDER"
    ):
        run(tmp_path / "run", *ONE_STEP, *other_corpus)
    other_dev = [override for override in other_corpus if override.startswith("data.dev.")]
    with pytest.raises(InputError, match="was trained on other text than"):
        run(tmp_path / "run", *ONE_STEP, *other_dev, f"data.preprocessed={tmp_path}/preprocessed")


def test_resume_never_refuses_a_folder_with_a_run(run, tmp_path):
    run(tmp_path, *ONE_STEP)
    with pytest.raises(InputError, match="already holds a run and resume=never: choose another name="):
        run(tmp_path, *ONE_STEP, "resume=never")
    run(tmp_path / "fresh", *ONE_STEP, "resume=never")
    assert (tmp_path / "fresh" / "best.pt").is_file()


def test_a_run_falls_back_from_a_damaged_newest_checkpoint(run, tmp_path, caplog):
    run(tmp_path, "trainer.max_steps=2", "trainer.save_every_steps=1")
    newest = tmp_path / "last.pt"
    expected = read_checkpoint(newest)["checksum"]
    newest.write_bytes(newest.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        run(tmp_path, "trainer.max_steps=2", "trainer.save_every_steps=1")
    assert "step_00000002.pt" in caplog.text
    assert "falling back to the previous checkpoint" in caplog.text
    assert read_checkpoint(newest)["checksum"] == expected


def test_a_run_killed_before_its_first_checkpoint_starts_from_scratch(run, tmp_path, caplog):
    """Once, best.pt of its first evaluation made the same command fail forever."""
    first = run(tmp_path, *ONE_STEP)
    for path in (*tmp_path.glob("checkpoints/*"), tmp_path / "last.pt"):
        path.unlink()
    again = run(tmp_path, *ONE_STEP)
    assert again == first
    assert "the run starts from scratch" in caplog.text
    for path in (*tmp_path.glob("checkpoints/*"), tmp_path / "last.pt"):
        path.unlink()
    with pytest.raises(InputError, match="of a run with other settings and no checkpoint"):
        run(tmp_path, *ONE_STEP, "seed=9")


# Settings that do not fit the run


@pytest.mark.parametrize(("num_long", "level"), [(2, "INFO"), (4, "WARNING")])
def test_dev_pairs_without_a_loss_are_counted_at_the_start(run, tmp_path, monkeypatch, caplog, num_long, level):
    """Once, a dev set of long pairs had "loss nan, perplexity inf" without a reason."""
    monkeypatch.setattr("gnmt.training.dev_evaluation.MAX_PAIR_TOKENS", 20)
    lines = {side: ["a", *["a house " * 20] * num_long][-4:] for side in ("source", "target")}
    for side, texts in lines.items():
        texts += ["a"] * (4 - len(texts))
        (tmp_path / side).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    dev = [f"data.dev.{side}={tmp_path / side}" for side in lines]
    command = (*ONE_STEP, *dev, f"data.preprocessed={tmp_path}/preprocessed")
    with caplog.at_level(logging.INFO):
        result = run(tmp_path / "run", *command)
    [record] = [record for record in caplog.records if "dev loss" in record.message]
    assert record.levelname == level
    assert f"{num_long} of 4 dev pairs cannot be measured, because a side is empty, has more than " in record.message
    assert math.isnan(result.best["dev/loss"]) == math.isnan(result.best["dev/perplexity"]) == (num_long == 4)
    if num_long == 4:
        with pytest.raises(
            InputError, match=r"trainer\.best_metric is dev/loss, but 4 of 4 dev pairs cannot be measured"
        ):
            run(tmp_path / "other", *command, "trainer.best_metric=dev/loss")


def test_a_warmup_that_is_longer_than_the_run_is_warned_about(run, tmp_path, caplog):
    """Once, such a run ended at 8% of the learning rate without a word."""
    run(tmp_path / "long", "trainer.max_steps=2", "schedule.warmup_steps=2")
    assert "warm-up" not in caplog.text
    run(tmp_path / "short", "trainer.max_steps=2", "schedule.warmup_steps=25")
    assert (
        "the warm-up of 25 updates is longer than the run of 2: the learning rate reaches only 8% of its value"
        in caplog.text
    )


def test_a_bound_that_will_not_have_fallen_at_the_end_is_warned_about(run, tmp_path, caplog):
    quantizable = ("model/clipping=annealed", "model.encoder.cell=quantizable_lstm")
    run(tmp_path / "short", *quantizable, "model.clipping.steps=2", "trainer.max_steps=2")
    assert (
        "activations are clipped to 4.5 at the end of the run and not yet to model.clipping.end=1, because "
        "model.clipping.steps=2 is not less than the run's 2 updates"
    ) in caplog.messages
    caplog.clear()
    run(tmp_path / "long", *quantizable, "model.clipping.steps=1", "trainer.max_steps=2")
    assert not [message for message in caplog.messages if "and not yet to" in message]
    assert dict(scalars(tmp_path / "short")["dev/clipping_delta"]) == {2: 4.5}
    assert "; activations clipped to 4.5" in (tmp_path / "short" / "train.log").read_text(encoding="utf-8")


def test_a_run_may_be_resumed_with_a_longer_schedule(run, tmp_path, caplog):
    """The config of the cosine schedule advises it. The learning rate follows the longer curve, and the log says so."""
    command = ("schedule=cosine", "schedule.warmup_steps=0", "schedule.final_fraction=0", "optimizer.lr=0.01")
    run(tmp_path, *command, "schedule.total_steps=2")
    caplog.clear()
    result = run(tmp_path, *command, "schedule.total_steps=8", "trainer.max_steps=4")
    assert (
        "schedule.total_steps was 2 and is 8: the learning rate of update 3 is 8.54e-03, that of update 2 was 5.00e-03"
        in caplog.text
    )
    assert result.steps == 4
    rates = dict(scalars(tmp_path)["train/learning_rate"])
    expected = [0.01 * (1 + math.cos(math.pi * step / 8)) / 2 for step in (2, 3)]
    assert [rates[3], rates[4]] == pytest.approx(expected)
    caplog.clear()
    run(tmp_path, *command, "schedule.total_steps=8", "trainer.max_steps=5")
    assert "total_steps" not in caplog.text
    with pytest.raises(InputError, match=r"schedule\.warmup_steps: 0 → 1"):
        run(tmp_path, *command, "schedule.total_steps=9", "schedule.warmup_steps=1")
