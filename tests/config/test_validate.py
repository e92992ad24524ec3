"""Validation of component nodes: only classes of trusted packages are built, and all errors are reported at once."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gnmt.config.build import build, find_class
from gnmt.config.validate import check_component
from gnmt.errors import InputError

ATTENTION = {
    "_target_": "gnmt.model.attention.AdditiveAttention",
    "query_size": 4,
    "memory_size": 4,
    "hidden_size": 4,
    "normalize": True,
    "initial_scale": 1.0,
}
ENCODER = {"_target_": "gnmt.model.recurrent.encoder.LSTMEncoder", "input_size": 4, "hidden_size": 4, "num_layers": 2}
DECODER = {
    "_target_": "gnmt.model.recurrent.gnmt_decoder.GNMTDecoder",
    "input_size": 4,
    "hidden_size": 4,
    "num_layers": 2,
    "attention": ATTENTION,
}
MODEL = {"_target_": "gnmt.model.seq2seq.Seq2Seq", "encoder": ENCODER, "decoder": DECODER, "embedding_size": 4}
SIZES = ("source_vocabulary_size", "target_vocabulary_size")


def with_value(node: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy of the node with the value at a dotted key."""
    first, _, rest = key.partition(".")
    return {**node, first: with_value(node[first], rest, value) if rest else value}


def check_model(node: Any) -> list[str]:
    return check_component(node, "model", supplied=SIZES)


def test_a_correct_model_passes_and_builds() -> None:
    assert check_model(MODEL) == []
    model = build(MODEL, source_vocabulary_size=9, target_vocabulary_size=9)
    assert model.decoder.attention.output_size == 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("encoder.num_layers", "two", 'model.encoder.num_layers: found "two", allowed is a whole number of at least 1'),
        ("encoder.num_layers", 0, "model.encoder.num_layers: found 0, allowed is a whole number of at least 1"),
        ("encoder.num_layers", "???", "model.encoder.num_layers: is missing; give it as model.encoder.num_layers=..."),
        (
            "encoder.nm_layers",
            3,
            "model.encoder.nm_layers: LSTMEncoder takes no such key; did you mean model.encoder.num_layers?",
        ),
        ("decoder.query", "last", 'model.decoder.query: found "last", allowed is one of previous, current'),
        (
            "decoder.attention",
            ENCODER,
            "model.decoder.attention._target_: found gnmt.model.recurrent.encoder.LSTMEncoder, allowed is "
            "gnmt.model.interfaces.Attention or a class derived from it",
        ),
        ("decoder.attention", "additive", 'model.decoder.attention: found "additive", allowed is a component'),
        (
            "decoder.attention._target_",
            "gnmt.model.attention.AdditivAttention",
            "model.decoder.attention._target_: found gnmt.model.attention.AdditivAttention, but AdditivAttention does "
            "not exist; did you mean AdditiveAttention?",
        ),
        ("source_vocabulary_size", 9, "model.source_vocabulary_size: is given by the program itself; leave it out"),
    ],
)
def test_errors_name_the_full_key(key: str, value: Any, message: str) -> None:
    errors = check_model(with_value(MODEL, key, value))
    assert len(errors) == 1
    assert errors[0].startswith(message)


def test_all_errors_are_reported_at_once() -> None:
    node = with_value(with_value(MODEL, "encoder.num_layers", 0), "decoder.attention.query_size", None)
    node = with_value({key: value for key, value in node.items() if key != "embedding_size"}, "size", 4)
    assert [error.split(":")[0] for error in check_model(node)] == [
        "model.size",
        "model.embedding_size",
        "model.encoder.num_layers",
        "model.decoder.attention.query_size",
    ]


def test_option_sets_check_how_their_options_fit_together() -> None:
    node = {"_target_": "gnmt.data.parallel_text.ParallelFiles", "source": ["a.en", "b.en"], "target": "a.de"}
    (error,) = check_component(node, "data.train")
    assert error.startswith("data.train: ")
    assert "source names 2 files (a.en, b.en) and target names 1 file (a.de)" in error


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.nn.Linear",
        "torch.optim.optimizer.torch.load",
        "torch.optim.optimizer.torch.nn.Linear",
        "torch.optim.lr_scheduler.partial",
        "torch.optim.Adam.__init__",
        "torch.optim.adam.adam",
        "gnmt.model.recurrent.layers.shift_one_step",
        "gnmt.model.recurrent.gnmt_decoder.nn.Linear",
        "gnmt.model.recurrent.gnmt_decoder.Tensor",
        "gnmt.model",
        "gnmt",
        "gnmt_evil.Model",
        "gnmt..model",
        ".gnmt.model",
        "gnmt.model.attention:AdditiveAttention",
        "",
        None,
        7,
        ["gnmt.model.attention.AdditiveAttention"],
    ],
)
def test_a_target_that_is_not_a_class_of_a_trusted_package_is_refused(target: Any) -> None:
    with pytest.raises(InputError):
        find_class(target)
    (error,) = check_component({"_target_": target}, "model")
    assert error.startswith("model._target_: found ")


def test_a_foreign_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = with_value(MODEL, "encoder", {"_target_": "evil_module.Model"})
    (error,) = check_model(node)
    assert "trusted_packages=[evil_module]" in error
    assert not (tmp_path / "ran").exists()
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_convert_", "_recursive_"])
def test_hydras_other_keys_are_refused(key: str) -> None:
    (error,) = check_model(with_value(MODEL, f"encoder.{key}", [1]))
    assert error.startswith(f"model.encoder.{key}: is refused")


def test_components_hidden_in_containers_are_checked() -> None:
    """A keyword without annotation may contain anything, and components in it are built."""
    node = {"_target_": "torch.optim.SGD", "lr": 0.1, "params": [{"deep": {"_target_": "os.system"}}]}
    errors = check_component(node, "optimizer")
    assert any(error.startswith("optimizer.params") for error in errors)


def test_interpolations_of_a_foreign_config_stay_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    node = {"_target_": "gnmt.data.parallel_text.ParallelFiles", "source": "${oc.env:SECRET}", "target": "${a"}
    assert check_component(node, "data") == []
    files = build(node)
    assert (files.source, files.target) == ("${oc.env:SECRET}", "${a")


def test_the_optimizer_steps_on_the_parameters_themselves() -> None:
    """hydra.utils.instantiate may copy supplied tensors; an optimizer of copies trains nothing."""
    node = {"_target_": "torch.optim.Adam", "lr": 0.1, "betas": [0.9, 0.98]}
    assert check_component(node, "optimizer", supplied=("params",)) == []
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build(node, params=[parameter])
    assert optimizer.param_groups[0]["params"][0] is parameter


def test_errors_of_torchs_annotations_name_the_key() -> None:
    node = {"_target_": "torch.optim.Adam", "lr": "fast", "betas": [0.9], "moment": 1}
    errors = check_component(node, "optimizer", supplied=("params",))
    assert [error.split(":")[0] for error in errors] == ["optimizer.moment", "optimizer.lr", "optimizer.betas"]


def test_a_users_own_package_can_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mylab_encoders.py").write_text(
        "from gnmt.model.interfaces import Encoder\n"
        "class Mine(Encoder):\n"
        "    def __init__(self, width: int, **rest: int) -> None:\n"
        "        super().__init__()\n"
        "        self.input_size, self.output_size = 4, width\n"
        "class Other: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = with_value(MODEL, "encoder", {"_target_": "mylab_encoders.Mine", "width": 4, "anything": 1})
    assert len(check_model(node)) == 1
    assert check_component(node, "model", supplied=SIZES, trusted_packages=["mylab_encoders"]) == []
    model = build(node, source_vocabulary_size=9, target_vocabulary_size=9)
    assert model.encoder.output_size == 4
    other = with_value(MODEL, "encoder", {"_target_": "mylab_encoders.Other"})
    (error,) = check_component(other, "model", supplied=SIZES, trusted_packages=["mylab_encoders"])
    assert "gnmt.model.interfaces.Encoder" in error


def test_a_trusted_package_that_is_not_installed() -> None:
    (error,) = check_component({"_target_": "no_such_lab.Model"}, "model", trusted_packages=["no_such_lab"])
    assert "there is no module no_such_lab" in error


def test_nothing_is_built_where_a_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option sets are built to run their own checks, but only if all their keywords are correct."""
    (tmp_path / "mylab_options.py").write_text(
        "import pathlib\nfrom dataclasses import dataclass\n@dataclass\nclass Options:\n    path: str\n"
        "    def __post_init__(self):\n        pathlib.Path(self.path).mkdir()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mylab_options.Options", "path": str(tmp_path / "made")}
    assert check_component({**node, "wrong": 1}, "x", trusted_packages=["mylab_options"])
    assert not (tmp_path / "made").exists()
    assert check_component(node, "x", trusted_packages=["mylab_options"]) == []
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("values", "errors"),
    [
        ({"lr": float("inf")}, ["optimizer.lr: found Infinity, allowed is a finite number"]),  # passed every check once
        ({"lr": float("nan")}, ["optimizer.lr: found NaN, allowed is a finite number"]),  # gave two errors once
        ({"lr": -1.0}, ["optimizer.lr: found -1.0, allowed is a number above 0"]),
        ({"betas": [0.9, float("nan")]}, ["optimizer.betas.1: found NaN, allowed is a finite number"]),
        ({"betas": [0.9, 1.5]}, ["optimizer.betas: found [0.9, 1.5], allowed is a list of numbers, each of at"]),
    ],
)
def test_a_number_that_is_not_finite_is_one_error(values: dict[str, Any], errors: list[str]) -> None:
    found = check_component({"_target_": "torch.optim.Adam", **values}, "optimizer", supplied=("params",))
    assert len(found) == len(errors) == 1
    assert found[0].startswith(errors[0])
