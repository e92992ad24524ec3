"""scripts/tune_decoding.py: the grid, the choice of the best combination, and the written config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gnmt.decoding.options import SearchOptions, build_search_options
from gnmt.errors import InputError
from gnmt.evaluation.metrics import Scores
from gnmt.evaluation.tune_decoding import Trial, best_trial, combinations, table_of, write_config

RECORDED = SearchOptions(beam_size=4, max_length_offset=3)


def trial(alpha: float, beta: float, bleu: float, chrf: float) -> Trial:
    values = {"length_penalty_alpha": alpha, "coverage_beta": beta}
    signatures = {"bleu": "signature of BLEU", "chrf": "signature of chrF"}
    return Trial(RECORDED.with_changes(values), values, Scores(bleu, chrf, 0.0, None, 0.0, signatures, 2))


TRIALS = [trial(0.6, 0.0, 30.0, 50.0), trial(0.6, 0.2, 31.0, 49.0), trial(1.0, 0.0, 31.0, 51.0)]


def test_every_combination_is_tried_in_order_and_null_keeps_the_recorded_value():
    grid = {"beam_size": None, "length_penalty_alpha": [0.5, 1.0], "no_repeat_ngram": [None, 3]}
    found = combinations(RECORDED, grid)
    assert [values for _, values in found] == [
        {"length_penalty_alpha": alpha, "no_repeat_ngram": size} for alpha in (0.5, 1.0) for size in (None, 3)
    ]
    for options, values in found:
        assert (options.beam_size, options.max_length_offset) == (4, 3)
        assert options.length_penalty_alpha == values["length_penalty_alpha"]
        assert options.no_repeat_ngram == values["no_repeat_ngram"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"beam_size": None}, r"grid has no values to try: give some, as in grid\.length_penalty_alpha"),
        ({"coverage_beta": []}, r"grid\.coverage_beta=\[\] has no values"),
        ({"coverage": [0.1]}, r"grid: decoding\.coverage is no search option.*did you mean decoding\.coverage_beta"),
        ({"beam_size": [5, 0]}, r"grid: decoding\.beam_size: found 0"),
    ],
)
def test_a_wrong_grid_is_refused(grid, message):
    with pytest.raises(InputError, match=message):
        combinations(RECORDED, grid)


def test_the_best_is_the_first_of_equal_ones_by_the_chosen_metric():
    assert best_trial(TRIALS, "bleu") is TRIALS[1]
    assert best_trial(TRIALS, "chrf") is TRIALS[2]


def test_the_table_marks_the_best_and_tells_which_value_is_at_the_end_of_its_list():
    table = table_of(TRIALS, TRIALS[2])
    assert table.header == ["length_penalty_alpha", "coverage_beta", "BLEU", "chrF", ""]
    assert table.rows[2] == ["1.0", "0.0", "31.00", "51.00", "best"]
    assert [row[-1] for row in table.rows[:2]] == ["", ""]
    assert table.notes == [
        "length_penalty_alpha=1.0 is the largest value tried: larger ones may be better",
        "signature of BLEU",
        "signature of chrF",
    ]


def test_the_written_config_holds_all_options_of_the_best(tmp_path: Path):
    path = tmp_path / "tuned.yaml"
    write_config(path, TRIALS[1], "bleu", ["runs/a/best.pt"], "dev", len(TRIALS))
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert build_search_options(node, {}) == TRIALS[1].options
    lines = path.read_text().splitlines()
    assert lines[0] == "# The best of 3 combinations by bleu on dev, runs/a/best.pt:"
    assert lines[1:3] == ["# BLEU 31.00 (signature of BLEU)", "# chrF 49.00 (signature of chrF)"]


@pytest.mark.slow
def test_the_command_writes_a_config_that_evaluation_takes_and_that_has_the_printed_score(run_command, tiny, tmp_path):
    run = tiny.copied_to(tmp_path)
    grid = ["grid.length_penalty_alpha=[0.0,1.0]", "grid.coverage_beta=[0.0]", "grid.beam_size=[1,3]"]
    done = run_command("tune_decoding", "checkpoint=runs/tiny/best.pt", *grid, cwd=tmp_path)
    assert done.code == 0, done.err
    rows = [line.split(" | ") for line in done.out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 4
    [best] = [row for row in rows if "best" in row[-1]]
    assert "decoding config: runs/tiny/decoding/tuned.yaml   (--config-dir runs/tiny decoding=tuned)" in done.out
    evaluated = run_command(
        "evaluate", "--config-dir", "runs/tiny", "decoding=tuned", "checkpoint=runs/tiny/best.pt", "test_set=dev",
        "output=tuned", cwd=tmp_path,
    )  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    [scores] = (tmp_path / "tuned").glob("*.json")
    found = json.loads(scores.read_text())
    assert f"{found['bleu']:.2f}" == best[-3]
    written = OmegaConf.to_container(OmegaConf.load(run.folder / "decoding" / "tuned.yaml"))
    assert {"_target_": written["_target_"], **found["decoding"]} == written


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["output=tuned.yaml"],
            "output=tuned.yaml is no config of the group decoding",
        ),
        (["grid.beam_sise=[1]"], "beam_size"),
        (["+grid.beam_sise=[1]"], "grid: decoding.beam_sise is no search option"),
        (
            ["grid.coverage_beta=[-1]"],
            "grid: decoding.coverage_beta: found -1, allowed is a number of at least 0 and at most 1000",
        ),
        (["source=a.en"], "source= and target= belong together"),
        (["test_set=dve"], "test_set=dve is not in the training data"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_translated(run_command, tiny, tmp_path, overrides, message):
    tiny.copied_to(tmp_path)
    done = run_command("tune_decoding", "checkpoint=runs/tiny/best.pt", *overrides, cwd=tmp_path)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs" / "tiny" / "decoding").exists()
