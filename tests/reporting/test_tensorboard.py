"""Reports are read back as TensorBoard reads them, also after a resume."""

from __future__ import annotations

import html
import io
import threading

import matplotlib.image
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gnmt.reporting.figures import alignment_figure, pixels
from gnmt.reporting.tensorboard import Reporter, translations_table


def read(folder):
    """Read all events of the folder; size guidance 0 keeps every one."""
    kinds = ("scalars", "images", "tensors", "histograms", "compressedHistograms", "audio")
    events = EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0))
    events.Reload()
    return events


def points(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize("size", [10, 2000])
def test_a_full_disk_ends_the_reports_and_not_the_run(
    tmp_path, caplog, capfd, monkeypatch, size, file_size_limit
) -> None:
    """TensorBoard's own writer printed the traceback of its thread, beside the message."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: pytest.fail(f"in a thread: {arguments.exc_value}"))
    with file_size_limit(size):
        with Reporter(tmp_path) as reporter:
            for step in range(500):
                reporter.scalar("train/loss", 1.0, step)
            reporter.flush()
            reporter.scalar("train/loss", 1.0, 500)
        assert next(tmp_path.iterdir()).stat().st_size <= size
    assert caplog.text.count("TensorBoard's events cannot be written") == 1
    assert "Traceback" not in capfd.readouterr().err  # the warning may be there, by a handler of an earlier test
    if size > 10:  # what came before is there
        assert points(read(tmp_path), "train/loss")[:5] == [(step, 1.0) for step in range(5)]


def test_a_folder_that_cannot_be_made_ends_the_reports_and_not_the_run(tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    with Reporter(tmp_path / "file") as reporter:
        reporter.scalar("train/loss", 1.0, 1)
    assert caplog.text.count("TensorBoard's events cannot be written") == 1


def test_scalars_are_read_back_with_their_steps(tmp_path):
    with Reporter(tmp_path / "run") as reporter:
        for step in range(2000):
            reporter.scalar("train/loss", 0.5 * step, step)
        reporter.scalar("dev/bleu", 35.5, 1999)
    events = read(tmp_path / "run")
    assert points(events, "train/loss") == [(step, 0.5 * step) for step in range(2000)]
    assert points(events, "dev/bleu") == [(1999, 35.5)]


def test_flushed_events_are_readable_during_the_run(tmp_path):
    with Reporter(tmp_path) as reporter:
        reporter.scalar("train/loss", 1.0, 1)
        reporter.flush()
        assert points(read(tmp_path), "train/loss") == [(1, 1.0)]


def test_a_resumed_run_replaces_points_after_its_checkpoint(tmp_path):
    """Saved at step 20, interrupted at 30, resumed from 21: no gap, no duplicate point, steps in order."""
    with Reporter(tmp_path) as reporter:
        for step in (10, 20, 30):
            reporter.scalar("train/loss", 1.0, step)
    with Reporter(tmp_path, purge_step=21) as reporter:
        for step in (30, 40):
            reporter.scalar("train/loss", 2.0, step)
    assert points(read(tmp_path), "train/loss") == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]


def test_text_and_figures_are_read_back(tmp_path):
    figure = alignment_figure(["a", "b"], ["c"], torch.tensor([[0.2, 0.8]]))
    with Reporter(tmp_path) as reporter:
        reporter.text("samples/translations", "**hello**", 5)
        reporter.figure("samples/alignment", figure, 5)
    events = read(tmp_path)
    [text] = events.Tensors("samples/translations/text_summary")
    assert (text.step, text.tensor_proto.string_val[0]) == (5, b"**hello**")
    [image] = events.Images("samples/alignment")
    assert image.step == 5
    decoded = matplotlib.image.imread(io.BytesIO(image.encoded_image_string), format="png")
    assert (255 * decoded).round().astype("uint8").tolist() == pixels(figure).tolist()


def test_hyperparameters_and_final_metrics_are_in_the_same_event_file(tmp_path):
    """`add_hparams` makes a sub-run or, with run_name=".", a second file, which hides later events of the first."""
    settings = {
        "model": {"embedding_size": 256, "encoder": {"_target_": "a.b.C", "dropout": 0.3}},
        "name": "demo",
        "limit": None,
        "l": [1],
    }
    with Reporter(tmp_path) as reporter:
        reporter.scalar("dev/bleu", 20.0, 10)
        reporter.hyperparameters(settings, {"final/bleu": 35.0}, 20)
        reporter.scalar("dev/bleu", 30.0, 20)
    [file] = tmp_path.rglob("*")
    assert file.is_file()
    events = read(tmp_path)
    assert points(events, "final/bleu") == [(20, 35.0)]
    assert points(events, "dev/bleu") == [(10, 20.0), (20, 30.0)]
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    recorded = HParamsPluginData.FromString(start).session_start_info.hparams
    values = {
        name: value.WhichOneof("kind") and getattr(value, value.WhichOneof("kind")) for name, value in recorded.items()
    }
    assert values == {
        "model.embedding_size": 256.0,
        "model.encoder": "C",
        "model.encoder.dropout": 0.3,
        "name": "demo",
        "limit": "null",
        "l": "[1]",
    }


@pytest.mark.parametrize(
    "text", ["a | b", "<script>alert(1)</script>", "`code` *bold* $x$", "two\nlines", "# no title"]
)
def test_texts_do_not_act_as_markup_in_the_table(text):
    header, rule, row = translations_table([(text, "reference", "translation")]).split("\n")
    assert header.count("|") == rule.count("|") == row.count("|") == 4
    cell = row.split("|")[1].strip()
    assert not set(cell.replace("&#", "").replace(";", "")) & set("\\`*_{}[]()#+-.!|<>&~$\"'")
    assert html.unescape(cell) == text.replace("\n", " ")


def test_a_fact_is_written_when_it_changes(tmp_path):
    with Reporter(tmp_path) as reporter:
        for step, fact in ((1, "a"), (2, "a"), (3, "b")):
            reporter.fact("about/x", fact, step)
    assert [event.step for event in read(tmp_path).Tensors("about/x/text_summary")] == [1, 3]
