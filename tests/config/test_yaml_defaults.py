"""The defaults of constructors equal the values in the default YAML file of their group."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from gnmt.config.build import find_class, resolve
from gnmt.config.cli import CONFIG_FOLDER

FILES = [f"data.{split}.{side}={split}" for split in ("train", "dev") for side in ("source", "target")]
# The default files of the groups. Others, such as greedy, paper and gnmt_8, differ from the defaults by design.
PLAIN = {
    "trainer/default": ["schedule=constant"],  # the limit is the schedule's own length where it has one
    "decoding/default": [],
    "loss/label_smoothed": [],
    "objective/maximum_likelihood": [],
    "objective/expected_reward": [],
    "tokenizer/bpe": [],
    "data/demo": [],
    "data/files": FILES,
    "data/multi30k": [],
    "data/koen": ["data.folder=x"],
    "data/wmt16_german": [],
    "data/wmt14_french": [],
    "data/cleaning/default": [],
    "schedule/constant": [],
    "schedule/cosine": [],
    "schedule/plateau": [],
    "schedule/inverse_square_root": [],
    "schedule/warmup_step_decay": [],
    "model/attention/additive": [],
    "model/attention/general": [],
    "model/attention/dot": [],
    "model/encoder/lstm": [],
    "model/encoder/transformer": [],
    "model/encoder/convolutional": [],
    "model/decoder/gnmt": [],
    "model/decoder/attention": [],
    "model/decoder/transformer": ["~model/attention"],
    "model/decoder/convolutional": ["~model/attention"],
}
DROPOUT = "a setting of recipes: a layer that is built in Python has no dropout by default"
WARMUP = "a setting of recipes: a schedule that is built in Python starts at its rate"
DIFFERENT = {
    ("LSTMEncoder", "dropout"): DROPOUT,
    ("GNMTDecoder", "dropout"): DROPOUT,
    ("AttentionDecoder", "dropout"): DROPOUT,
    ("Cosine", "warmup_steps"): WARMUP,
    ("Cosine", "final_fraction"): "a setting of recipes: plain annealing ends at 0",
    ("WarmupStepDecay", "warmup_steps"): WARMUP,
    ("ArchivedCorpus", "download_folder"): "each corpus has its own folder inside the default",
    ("KoreanEnglish", "folder"): "given here",
    ("ParallelFiles", "source"): "given here",
    ("ParallelFiles", "target"): "given here",
}


def differences(node: Any) -> list[tuple[str, str, Any, Any]]:
    """Return (class, keyword, value in the YAML, default of the constructor) for a component and those inside it."""
    if not isinstance(node, dict):
        return []
    found = [item for value in node.values() for item in differences(value)]
    if "_target_" in node and node["_target_"].startswith("gnmt."):
        component = find_class(node["_target_"])
        for name, parameter in inspect.signature(component).parameters.items():
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            plain = default is None or isinstance(default, bool | int | float | str | list)
            if name in node and plain and node[name] != default:
                found.append((component.__name__, name, node[name], default))
    return found


@pytest.mark.parametrize("choice", PLAIN)
def test_the_defaults_of_python_are_those_of_the_yaml(choice: str) -> None:
    """TrainerOptions() once trained five times as long as `trainer: default` and evaluated half as often."""
    group, _, name = choice.rpartition("/")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        node = resolve(compose("train", ["experiment=none", f"{group}={name}", *PLAIN[choice]]))
    for part in group.replace("model/attention", "model/decoder/attention").split("/"):
        node = node[part]
    assert "_target_" in node
    assert [item for item in differences(node) if item[:2] not in DIFFERENT] == []
