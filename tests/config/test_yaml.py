"""Every YAML file composes, passes validation and builds."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from gnmt.config.build import build, find_class, resolve
from gnmt.config.cli import CONFIG_FOLDER, check_sweep, sweep_overrides
from gnmt.config.run_folder import override_key
from gnmt.config.schema import SCHEMAS
from gnmt.config.validate import OPTIMIZER_RANGES, check_component, check_config, check_optimizer
from gnmt.decoding.options import build_search_options, given_options
from gnmt.errors import InputError

COMMANDS = sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))
CHOICES = sorted(str(path.relative_to(CONFIG_FOLDER).with_suffix("")) for path in CONFIG_FOLDER.glob("*/**/*.yaml"))
FILES = [f"data.{split}.{side}={split}.{side}" for split in ("train", "dev") for side in ("source", "target")]
SUPPLIED = {
    "gnmt.model.seq2seq.Seq2Seq": {"source_vocabulary_size", "target_vocabulary_size"},
    "gnmt.training.objective.LabelSmoothedCrossEntropy": {"vocabulary_size", "never_produced"},
}


@contextmanager
def config_folder() -> Iterator[None]:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        yield


@cache
def composed(command: str, *overrides: str) -> DictConfig:
    with config_folder():
        return compose(command, list(overrides))


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every component node of a resolved config."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for item in value.values():
            yield from nodes(item)


FIRST = [f"data.{text}.{side}=a.{side}" for text in ("corpora.first.text", "dev") for side in ("source", "target")]
NEEDED_BY = {
    "data/files": FILES,
    "data/koen": ["data.folder=koen"],
    "experiment/own_text": FILES,
    "experiment/koen_ko_en": ["data.folder=koen"],
    "experiment/koen_en_ko": ["data.folder=koen"],
    "data/mixture": FIRST,
    "data/translated": [override.replace("corpora.first", "corpora.parallel") for override in FIRST],
    "data/multilingual": ["+data@data.corpora.first=multi30k"],
    "model/decoder/plain": ["model=seq2seq"],
    "tokenizer/existing": ["tokenizer.source=a.model", "tokenizer.target=a.model"],
    "model/decoder/transformer": ["~model/attention"],  # instead of a decoder that has one
    "model/decoder/convolutional": ["~model/attention"],
}


def test_no_yaml_escapes_these_tests() -> None:
    first = [
        "average_checkpoints",
        "benchmark",
        "compare",
        "evaluate",
        "export_checkpoint",
        "import_checkpoint",
        "inspect_checkpoint",
    ]
    others = ["prepare", "report", "score", "significance", "train", "translate", "tune_decoding"]
    assert [*first, *others] == COMMANDS
    assert set(COMMANDS) == set(SCHEMAS)
    assert len(CHOICES) == len(list(CONFIG_FOLDER.rglob("*.yaml"))) - len(COMMANDS) == 102


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_and_passes_the_check(command: str) -> None:
    needed = {"average_checkpoints": ["output=x.pt"], "benchmark": [], "prepare": [], "train": []}
    needed["compare"] = ["runs=x"]
    needed["significance"] = needed["report"] = ["systems=[a.txt,b.txt]"]
    needed["export_checkpoint"] = ["checkpoint=x.pt", "output=x"]
    needed["import_checkpoint"] = ["source=safetensors", "checkpoint=x", "output=x.pt"]
    check_config(composed(command, *needed.get(command, ["checkpoint=x.pt"])))


def group_and_name(choice: str) -> tuple[str, str]:
    """Split a path into group and choice. A subfolder is a group of its own, but part of the name below experiment/."""
    group, _, name = choice.partition("/") if choice.startswith("experiment/") else choice.rpartition("/")
    return group, name


def command_of(choice: str) -> tuple[str, list[str]]:
    """Return a command that has the choice's group, and the overrides that it needs."""
    if choice.startswith("task/"):
        return "benchmark", []
    return ("translate", ["checkpoint=x.pt"]) if choice.endswith("/recorded") else ("train", [])


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if not choice.startswith("hydra")])
def test_every_choice_of_a_group_composes_and_passes_the_check(choice: str) -> None:
    group, name = group_and_name(choice)
    command, needed = command_of(choice)
    check_config(composed(command, *needed, f"{group}={name}", *NEEDED_BY.get(choice, [])))


def test_the_search_space_has_keys_and_values_of_train() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    swept = sweep_overrides("train", ["hydra/sweeper=search"], [])
    assert [override_key(one) for one in swept if one.is_sweep_override()] == [
        "optimizer.lr",
        "model.encoder.dropout",
        "model.encoder.num_layers",
    ]
    check_sweep("train", swept, [])


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if not choice.startswith(("experiment", "hydra"))])
def test_every_constructor_keyword_is_in_the_yaml(choice: str) -> None:
    group, name = group_and_name(choice)
    command, needed = command_of(choice)
    for node in nodes(resolve(composed(command, *needed, f"{group}={name}", *NEEDED_BY.get(choice, [])))):
        component = find_class(node["_target_"])
        if component.__module__.startswith("gnmt"):
            keywords = set(inspect.signature(component).parameters) - SUPPLIED.get(node["_target_"], set())
            assert keywords == set(node) - {"_target_"}, node["_target_"]


@pytest.mark.parametrize("choice", [*COMMANDS, *(c for c in CHOICES if not c.startswith(("experiment", "hydra")))])
def test_every_value_has_a_comment(choice: str) -> None:
    for line in (CONFIG_FOLDER / f"{choice}.yaml").read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*\w+: \S", line) and "_target_:" not in line:
            assert " # " in line, line


@pytest.mark.parametrize(
    "model",
    [choice.removeprefix("model/") for choice in CHOICES if choice.count("/") == 1 and choice.startswith("model/")],
)
def test_every_model_builds(model: str) -> None:
    cfg = composed("train", f"model={model}")
    with torch.device("meta"):
        built = build(cfg.model, source_vocabulary_size=6000, target_vocabulary_size=6000)
    assert all(parameter.is_meta for parameter in built.parameters())
    assert built.output_layer.out_features == 6000


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith(("optimizer/", "schedule/", "decoding/"))])
def test_every_optimizer_schedule_and_decoding_builds(choice: str) -> None:
    group, _, name = choice.partition("/")
    if name == "recorded":
        return
    node = composed("train", f"{group}={name}")[group]
    supplied = {"params": [torch.nn.Parameter(torch.zeros(2))]} if group == "optimizer" else {}
    assert isinstance(build(node, **supplied), find_class(node["_target_"]))


def test_one_width_and_one_depth_set_those_of_all_components() -> None:
    model = resolve(composed("train", "model.embedding_size=512", "model.encoder.num_layers=3"))["model"]
    assert model["decoder"]["num_layers"] == 3
    attention = model["decoder"]["attention"]
    sizes = {model["encoder"]["hidden_size"], model["decoder"]["hidden_size"]}
    sizes |= {attention[name] for name in ("query_size", "memory_size", "hidden_size")}
    assert sizes == {512}


def test_an_experiment_overrides_the_defaults_and_the_command_line_the_experiment() -> None:
    """With `_self_` after the experiment in the defaults list, train.yaml would override the experiment."""
    assert composed("train").model.decoder.dropout != 0.3
    cfg = composed("train", "experiment=multi30k_en_de")
    assert (cfg.data.name, cfg.model.encoder.dropout, cfg.model.decoder.dropout) == ("multi30k", 0.3, 0.3)
    cfg = composed("train", "experiment=multi30k_en_de", "model.encoder.dropout=0.1", "schedule=constant")
    assert (cfg.model.encoder.dropout, cfg.schedule.warmup_steps) == (0.1, 150)


def test_training_ends_with_its_schedule_and_max_steps_does_not_change_the_schedule() -> None:
    assert composed("train", "schedule.total_steps=777").trainer.max_steps == 777
    assert composed("train", "trainer.max_steps=2").schedule.total_steps > 2
    assert composed("train", "schedule=constant").trainer.max_steps == 20000


def test_the_paper_recipe() -> None:
    model = composed("train", "model=gnmt_8").model
    assert (model.embedding_size, model.encoder.num_layers, model.decoder.num_layers) == (1024, 8, 8)
    assert (model.decoder.query, model.decoder.dropout) == ("previous", 0.2)


def check_message(command: str, *overrides: str) -> str:
    """Return the message of the check."""
    with pytest.raises(InputError) as caught:
        check_config(composed(command, *overrides))
    return str(caught.value)


def test_the_check_reports_all_errors_at_once() -> None:
    message = check_message(
        "train", "precision=fb16", "device=cuda:x", "seed=-1", "resume=maybe", "model.encoder.num_layers=0",
        "model.decoder.num_layers=2", "decoding.stop=frist", "optimizer.lr=fast", "data.num_train=0", "~loss.smoothing",
        "+trainer.steps=3",
    )  # fmt: skip
    lines = message.splitlines()
    assert lines[0] == "9 errors in the config:"
    assert [line.split(":")[0].split(" must")[0].strip() for line in lines[1:]] == [
        "seed", "device", "precision", "resume", "data.num_train", "model.encoder.num_layers", "optimizer.lr",
        "trainer.steps", "decoding.stop",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("train", ["precision=fb16"], 'precision: found "fb16", allowed is one of auto, fp32, tf32, bf16, fp16; did'),
        ("train", ["device=gpu"], 'device: found "gpu", allowed is auto, cpu, cuda or cuda:N'),
        ("train", ["seed=-1"], "seed: found -1, allowed is a whole number of at least 0"),
        ("train", ["optimizer.lr=fast"], 'optimizer.lr: found "fast", allowed is a number\n'),
        ("train", ["trainer.subword_regularization=1.5"], "found 1.5, allowed is a number of at least 0 and at most 1"),
        ("train", ["data=files"], "data.train names no files"),
        ("train", ["model._target_=os.system"], "model._target_: found os.system, which lies outside"),
        ("train", ["model._target_=torch.optim.SGD"], "allowed is gnmt.model.seq2seq.Seq2Seq or a class derived"),
        ("train", ["schedule._target_=gnmt.training.trainer.TrainerOptions"], "allowed is gnmt.training.schedule"),
        ("train", ["+model.source_vocabulary_size=9"], "model.source_vocabulary_size: is given by the program itself"),
        ("train", ["model.encoder.dropout=${nope}"], "nope"),
        ("train", ["decoding=recorded"], "decoding: found "),
        ("evaluate", [], "checkpoint: is missing; give it as checkpoint=..."),
        ("translate", ["checkpoint=x", "decoding.beam_size=0"], "decoding.beam_size: found 0, allowed is a whole numb"),
        ("translate", ["checkpoint=x", "batch_size=0"], "batch_size: found 0, allowed is a whole number of at least 1"),
        ("train", ["seed=two"], 'seed: found "two", allowed is a whole number'),
        ("train", ["seed=null"], "seed: found null, allowed is a whole number"),
        ("train", ["seed=3.7"], "seed: found 3.7, allowed is a whole number"),  # was rounded to 3
        ("train", ["deterministic=3"], "deterministic: found 3, allowed is true or false"),  # meant true
        ("train", ["deterministic=yes"], 'deterministic: found "yes", allowed is true or false'),
        ("evaluate", ["checkpoint=x", "lowercase=1"], "lowercase: found 1, allowed is true or false"),
        ("translate", ["checkpoint=x", "batch_size=2.5"], "batch_size: found 2.5, allowed is a whole number"),
        ("benchmark", ["beams=[5,0]"], "beams.1: found 0, allowed is a whole number of at least 1"),
        ("inspect_checkpoint", ["checkpoint=x", "format=yaml"], 'format: found "yaml", allowed is one of text, json'),
    ],
)
def test_messages_of_the_check(command: str, overrides: list[str], message: str) -> None:
    assert message in check_message(command, *overrides) + "\n"


def test_a_wrong_value_is_reported_once_at_the_key_that_holds_it() -> None:
    """`model.encoder.dropout=1.5` was reported for the decoder too, which takes its dropout from the encoder."""
    assert check_message("train", "model.encoder.dropout=1.5").splitlines()[1:] == [
        "  model.encoder.dropout: found 1.5, allowed is a number of at least 0 and below 1"
    ]
    message = check_message("train", "model=gnmt_small", "model.encoder.variational_dropout=3")
    assert "model.decoder.variational_dropout" not in message
    message = check_message("train", "trainer.evaluate_every_steps=${optimizer.lr}")
    assert "allowed is a whole number of at least 1 (from ${optimizer.lr})" in message


def test_a_number_from_an_environment_variable_points_to_oc_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LR", "0.01")
    message = check_message("train", "optimizer.lr=${oc.env:LR}")
    advice = 'optimizer.lr="${oc.decode:${oc.env:LR}}"'
    assert message.endswith(f"needs oc.decode: '{advice}'")
    check_config(composed("train", advice))


def test_an_environment_variable_that_is_not_set_is_named_without_internals_of_python(monkeypatch: pytest.MonkeyPatch):
    """The message began with "KeyError raised while resolving interpolation"."""
    monkeypatch.delenv("GNMT_LR", raising=False)
    with pytest.raises(InputError, match=r"^optimizer\.lr: Environment variable 'GNMT_LR' not found$"):
        resolve(composed("train", "optimizer.lr=${oc.env:GNMT_LR}"))


def test_values_of_an_optimizer_are_checked_with_all_others() -> None:
    """torch's own "Invalid learning rate: -1" names no key, hides other errors and accepts a rate or an eps of 0."""
    message = check_message(
        "train", "optimizer.lr=-1", "optimizer.betas=[0.9,1.0]", "optimizer.eps=0", "optimizer.weight_decay=-0.1",
        "seed=-1",
    )  # fmt: skip
    assert message.splitlines() == [
        "5 errors in the config:",
        "  seed: found -1, allowed is a whole number of at least 0",
        "  optimizer.lr: found -1, allowed is a number above 0",
        "  optimizer.betas: found [0.9, 1.0], allowed is a list of numbers, each of at least 0 and below 1",
        "  optimizer.eps: found 0, allowed is a number above 0",
        "  optimizer.weight_decay: found -0.1, allowed is a number of at least 0",
    ]
    message = check_message("train", "optimizer=sgd", "optimizer.lr=0", "optimizer.momentum=1")
    assert "optimizer.lr: found 0, allowed is a number above 0" in message
    assert "optimizer.momentum: found 1, allowed is a number of at least 0 and below 1" in message
    stages = "trainer.stages.1.optimizer.lr: found 0, allowed is a number above 0"
    assert stages in check_message("train", "trainer=adam_then_sgd", "trainer.stages.1.optimizer.lr=0")


def test_optimizers_without_ranges_pass() -> None:
    for name in ("LBFGS", "Adafactor", "Rprop", "ASGD"):
        errors = check_component(
            {"_target_": f"torch.optim.{name}", "lr": 0.5},
            "optimizer",
            supplied=("params",),
            expected=(torch.optim.Optimizer,),
        )
        assert errors == [], name


def test_ranges_name_keywords_of_their_optimizers_and_contain_their_defaults() -> None:
    for name, ranges in OPTIMIZER_RANGES.items():
        optimizer = getattr(torch.optim, name)
        parameters = inspect.signature(optimizer).parameters
        defaults = {keyword: parameters[keyword].default for keyword in ranges}
        assert check_optimizer(defaults, optimizer, "optimizer") == []


def test_bleu_tokenization_follows_the_target_language() -> None:
    for overrides, expected in (
        (("experiment=koen_ko_en", "data.folder=x"), "13a"),
        (("experiment=koen_en_ko", "data.folder=x"), "ko-mecab"),
        (("experiment=koen_en_ko", "data.folder=x", "data.bleu_tokenize=char"), "char"),
        (("experiment=multi30k_en_de",), "13a"),
        (("data=files", *FILES), "13a"),
        (("data=files", *FILES, "data.target_language=zh-CN"), "zh"),
    ):
        assert build(composed("train", *overrides).data).bleu_tokenizer == expected, overrides


def test_the_check_touches_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_config(composed("train", "data=files", *FILES, "initialize_from=nowhere.pt", "device=cuda:7"))
    check_config(composed("train", "data=multi30k", "data.folder=nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_given_decoding_options_replace_recorded_ones() -> None:
    recorded = resolve(composed("train").decoding)
    given = composed("translate", "checkpoint=x", "decoding.beam_size=1").decoding
    assert build_search_options(recorded, given_options(given)) == build({**recorded, "beam_size": 1})
    paper = composed("translate", "checkpoint=x", "decoding=paper").decoding
    assert build_search_options(recorded, given_options(paper)) == build(resolve(paper))
    nothing = given_options(composed("translate", "checkpoint=x").decoding)
    assert build_search_options(recorded, nothing) == build(recorded)
