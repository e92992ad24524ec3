"""Plots of compare.py, and its values of gradients and loss spikes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gnmt.errors import InputError
from gnmt.evaluation.compare import compare, draw_gradient_norms, draw_over_updates, draw_plots, group_runs, labels_of
from gnmt.evaluation.run_records import EvaluationRecord, RunRecord, largest_loss_rise, mean_by_layer, read_run
from gnmt.training.train_metrics import GRADIENT_NORMS_FILE, layer_sort_key, read_gradient_norms


def run(name, seed=1, layers=("encoder.1", "decoder.1"), scale=1.0, **figures):
    settings = {"seed": seed, "model": {"what": name.partition("__seed")[0]}}
    scalars = {
        "dev/loss": [(100, 3.0 * scale), (200, 2.0 * scale)],
        "dev/bleu": [(100, 10.0), (200, 20.0)],
        "train/loss": [(50, 4.0), (100, 3.0)],
        "train/loss_max": [(50, 6.0), (100, 4.5 * scale)],
        "train/gradient_norm_max": [(50, 7.0), (100, 9.0 * scale)],
        "train/skipped_updates": [(50, 0.0), (100, 1.0)],
    }
    norms = [(update, dict.fromkeys(layers, scale * update)) for update in (1, 3, 300)]
    return RunRecord(Path("runs") / name, settings, scalars=scalars, gradient_norms=norms, **figures)


def points(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    [axes] = figure.axes
    lines = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    return {
        name: [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
        for name, line in lines.items()
    }


def test_a_scalar_over_updates_is_the_mean_over_seeds():
    runs = [run("a__seed-1"), run("a__seed-2", seed=2, scale=2.0), run("b__seed-1")]
    figure = draw_over_updates(runs, "dev/loss", "dev loss")
    assert points(figure) == {"a": [(100, 4.5), (200, 3.0)], "b": [(100, 3.0), (200, 2.0)]}
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("updates", "dev loss")


def test_runs_that_are_evaluated_at_different_updates_have_unbroken_lines():
    """The line of a run had a gap at each update at which only another run was evaluated, so it fell into dots."""
    other = replace(run("b"), scalars={"dev/loss": [(50, 3.5), (150, 2.5)]})
    figure = draw_over_updates([run("a"), other], "dev/loss", "dev loss")
    assert points(figure) == {"a": [(100, 3.0), (200, 2.0)], "b": [(50, 3.5), (150, 2.5)]}


def test_gradient_norms_are_means_of_the_first_updates_over_layers():
    runs = [run("a"), run("b", layers=("encoder.1", "encoder.2", "decoder.1"), scale=4.0), RunRecord(Path("c"), {})]
    figure = draw_gradient_norms(runs, 200)
    [axes] = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "gradient norm, mean over updates 1 to 3", "not to 200: no more are recorded"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["encoder.1", "encoder.2", "decoder.1"]
    found = points(figure)
    assert list(found) == ["a", "b"], "a run without records has no line"
    assert found["b"] == [(0, 8), (1, 8), (2, 8)]
    assert found["a"][0] == (0, 2)
    assert found["a"][2] == (2, 2)


def test_layers_are_sorted_in_the_order_of_the_data():
    layers = ["embeddings", "encoder.2", "encoder.10", "encoder.other", "attention", "decoder.1", "output", "mine"]
    assert sorted(set(layers), key=layer_sort_key) == layers


def groups_of(*runs):
    return group_runs([RunRecord(Path("runs") / name, settings) for name, settings in runs])


def test_labels_name_the_settings_that_differ():
    """Long folder names end in a hash, which says nothing in a legend."""
    long = "demo__" + "x" * 100
    groups = groups_of(
        (
            f"{long}-0a1b2c3d",
            {"model": {"encoder": {"dropout": 0.1}, "decoder": {"dropout": 0.1}}, "betas": [0.9, 0.98]},
        ),
        (
            f"{long}-4e5f6789",
            {"model": {"encoder": {"dropout": 0.3}, "decoder": {"dropout": 0.1}}, "betas": [0.9, 0.98]},
        ),
        (
            f"{long}-aabbccdd",
            {"model": {"encoder": {"dropout": 0.3}, "decoder": {"dropout": 0.2}}, "betas": [0.9, 0.98]},
        ),
    )
    assert labels_of(groups) == [
        f"model.encoder.dropout={encoder}, model.decoder.dropout={decoder}"
        for encoder, decoder in ((0.1, 0.1), (0.3, 0.1), (0.3, 0.2))
    ]
    assert labels_of(groups[:2]) == ["dropout=0.1", "dropout=0.3"]


def test_labels_are_folder_names_if_settings_are_too_long():
    assert labels_of(groups_of(("gnmt__seed-1", {"size": 1}), ("hybrid__seed-1", {"size": 2}))) == ["gnmt", "hybrid"]
    alike = groups_of(("a__x-1__seed-1", {"x": "u" * 70}), ("a__x-2__seed-1", {"x": "v" * 70}))
    assert labels_of(alike) == ["a__x-1", "a__x-2"]
    assert labels_of(groups_of(("a__seed-1", {"x": "u" * 70}), ("a__seed-2", {"x": "v" * 70}))) == [
        "1: a__seed-1",
        "2: a__seed-2",
    ]


def test_all_plots_are_written(tmp_path):
    by_length = [{"from_words": 1, "to_words": 5, "num_sentences": 7, "bleu": 40.0}]
    evaluations = {"test.best": EvaluationRecord({"bleu": 30.0, "chrf": 60.0}, {}, by_length, 9.0, Path("test.txt"))}
    paths = draw_plots([run("a", evaluations=evaluations), run("b")], tmp_path, 200)
    names = ["bleu_by_length.png", "dev_loss.png", "dev_bleu.png", "gradient_norm_by_layer.png"]
    assert [path.name for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    with pytest.raises(InputError, match="none of the runs has results to draw"):
        draw_plots([RunRecord(Path("c"), {})], tmp_path, 200)


def test_dollars_in_a_name_start_no_formula(tmp_path):
    draw_plots([run("a$b_{$", 1), run("c", 1)], tmp_path, gradient_updates=200)
    assert (tmp_path / "dev_loss.png").stat().st_size > 1000


def test_loss_spikes_have_columns():
    (table,) = compare([run("a"), run("b", scale=3.0)])
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["largest gradient norm"] for row in rows] == ["9.00", "27.00"]
    assert [row["largest loss rise"] for row in rows] == ["0.50", "9.50"], "above the mean of 4 before it"
    assert [row["skipped updates"] for row in rows] == ["1", "1"]
    (table,) = compare([run("a"), RunRecord(Path("c"), {})])
    assert dict(zip(table.header, table.rows[1], strict=True))["largest gradient norm"] == "–"


def test_loss_spikes_have_no_columns_if_no_run_logged_them():
    (table,) = compare([RunRecord(Path("c"), {}), RunRecord(Path("d"), {})])
    assert table.header[-2:] == ["tokens/s", "training minutes"]


@pytest.mark.parametrize(
    ("means", "largest", "rise"),
    [
        ([], [], None),
        ([(1, 5.0)], [(1, 9.0)], None),
        ([(1, 5.0), (2, 4.0)], [(1, 9.0), (2, 4.5)], 0.0),
        ([(1, 5.0), (2, 2.0), (3, 2.5), (4, 2.0)], [(2, 3.0), (3, 6.0), (4, 2.1)], 4.0),
        ([(1, 5.0), (2, 4.0)], [], None),
    ],
)
def test_the_largest_rise_is_above_the_lowest_mean_before_it(means, largest, rise):
    assert largest_loss_rise(means, largest) == rise


def test_norms_that_are_not_finite_are_left_out_of_the_mean():
    records = [(1, {"a": 1.0, "b": None}), (2, {"a": 3.0, "b": None}), (3, {"a": 100.0, "b": 5.0})]
    assert mean_by_layer(records, 2) == {"a": 2.0}


def test_a_damaged_file_of_gradient_norms_is_named(tmp_path):
    lines = [json.dumps({"update": 1, "norms": {"a": 1.0}}), "{"]
    (tmp_path / GRADIENT_NORMS_FILE).write_text("\n".join(lines))
    problems: list[str] = []
    assert read_gradient_norms(tmp_path, problems) == [(1, {"a": 1.0})]
    assert f"{GRADIENT_NORMS_FILE}:2 is no record of gradient norms" in problems[0]


def test_the_command_writes_plots_and_shows_gradient_norms(tiny, tmp_path, run_command):
    home = tiny.copied_to(tmp_path)
    done = run_command("compare", f"runs={home.folder}", "plots=plots", cwd=tmp_path)
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["dev_bleu.png", "dev_loss.png"]
    [heading] = [line for line in done.out.splitlines() if "largest gradient norm" in line]
    assert heading.startswith("| run  | seeds | parameters | updates |")
    record = read_run(home.folder)
    mean = max(norm for _, norm in record.scalars["train/gradient_norm"])
    assert record.largest_gradient_norm >= mean > 0


def test_a_refused_command_leaves_no_folder(tiny, tmp_path, run_command):
    """It once left the empty folder of its plots behind."""
    done = run_command("compare", f"runs={tiny.folder}", "plots=plots", "filter=[run=x]", cwd=tmp_path)
    assert done.code == 2
    assert not (tmp_path / "plots").exists()
