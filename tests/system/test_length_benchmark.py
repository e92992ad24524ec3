"""scripts/benchmark.py task=length, which times the model of any experiment over the length of sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from benchmarks.length import LengthWorkload, workloads
from gnmt.config.cli import CONFIG_FOLDER, recipe
from gnmt.errors import InputError


def workload(tokens: int, num_batches: int = 1) -> LengthWorkload:
    [made] = workloads(["claims/gnmt"], [tokens], batch_tokens=48, num_batches=num_batches, seed=1, device="cpu")
    return made


@pytest.mark.parametrize("tokens", [2, 3, 8, 24])
def test_batches_have_equally_many_tokens_at_every_length(tokens):
    for batch in workload(tokens, num_batches=2).batches():
        assert batch.num_real_tokens == 48
        for side in (batch.source, batch.labels):
            assert side.lengths_B.tolist() == [tokens] * (24 // tokens)


def test_a_sentence_longer_than_the_budget_is_a_batch_of_its_own():
    [batch] = workload(100).batches()
    assert batch.source.lengths_B.tolist() == [100]


def test_the_model_is_that_of_the_experiment_and_has_fixed_weights():
    model = workload(4).model()
    assert model.source_embedding.weight.shape == (4000, 128)
    assert model.training
    assert torch.equal(model.source_embedding.weight, workload(8).model().source_embedding.weight)


def test_a_recipe_can_be_composed_inside_a_hydra_command():
    """Hydra's state is global to the process, and the benchmark itself runs as a Hydra command."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        assert recipe("claims/transformer")["model"]["embedding_size"] == 112
        assert compose("benchmark").task == "decoding"


def test_an_unknown_experiment_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"claims/gnnt.*did you mean claims/gnmt"):
        recipe("claims/gnnt")


def test_every_default_length_fits_every_default_model():
    """The command failed at claims/convolutional with 320 tokens, and its earlier measurements were lost."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("benchmark", ["task=length"])
    made = workloads(list(cfg.sizes), list(cfg.sentence_tokens), batch_tokens=48, num_batches=1, seed=1, device="cpu")
    assert len(made) == len(cfg.sizes) * len(cfg.sentence_tokens)
    [longest] = [each for each in made if (each.size, each.sentence_tokens) == ("claims/convolutional", 320)]
    assert torch.isfinite(longest.call("fp32")())


def test_length_benchmark_writes_finite_figures(run_command: Callable[..., object], tmp_path: Path) -> None:
    finished = run_command(
        "benchmark", "task=length", "sizes=[claims/gnmt,claims/convolutional]", "sentence_tokens=[3,6]", "device=cpu",
        "batch_tokens=24", "repetitions=2", "memory=false", "precisions=[fp32]", "output=length.json", cwd=tmp_path,
    )  # fmt: skip
    assert finished.code == 0, finished.err
    written = json.loads((tmp_path / "length.json").read_text(encoding="utf-8"))
    cells = [(figure["size"], figure["sentence_tokens"], figure["num_sentences"]) for figure in written["figures"]]
    assert cells == [(f"claims/{name}", *shape) for name in ("gnmt", "convolutional") for shape in ((3, 4), (6, 2))]
    for figure in written["figures"]:
        assert len(figure["seconds"]) == 2
        assert 0 < figure["step_milliseconds"] < math.inf
        assert figure["tokens_per_second"] == pytest.approx(24_000 / figure["step_milliseconds"])
    assert written["setting"]["batch_tokens"] == 24


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sizes=[]", "there is nothing to measure: give sizes= (names of experiments)"),
        ("sizes=[nothing]", '\n  experiment: found "nothing", allowed is one of'),
        ("sizes=[claims/seq2seq]", "sizes: cannot measure claims/seq2seq: "),
        (
            "sentence_tokens=[20,400]",
            "sentence_tokens: found 400, but claims/convolutional has 336 learned positions: remove",
        ),
        ("sentence_tokens=[1]", "sentence_tokens.0: found 1, allowed is a whole number of at least 2"),
        ("sentence_tokens=[]", "sentence_tokens: found [], allowed is a list of at least one"),
        ("lengths=[mixed]", "lengths: found mixed, allowed are equal"),
    ],
)
def test_wrong_values_are_refused_with_their_key(
    run_command: Callable[..., object], tmp_path: Path, override: str, message: str
) -> None:
    finished = run_command("benchmark", "task=length", override, cwd=tmp_path)
    assert finished.code == 2
    assert message in finished.err
